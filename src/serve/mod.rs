//! The server: opens the database, accepts connections, and shuts down gracefully.

mod connection;
mod io;
mod listeners;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Access, AccessSetupError};
use crate::config::{Config, ListenerRole};
use crate::databases::{self, Database, OpenError};
use crate::feed::entity::{Catalog, EntityType};
use crate::feed::session::LogReader;
use crate::feed::tail::Tail;
use crate::http::feed::FeedContext;
use crate::http::ops::OpsContext;
use crate::http::renderers::RenderContext;
use crate::http::streams::StreamsContext;
use crate::http::{App, BodyMemory, BournService, CallerLimits, Gate, HotAnswers};
use crate::reading::{ChunkCache, chunk_limits};
use crate::storage_error::StorageError;
use crate::streams::StreamChange;
use crate::streams::bells::Bells;
use crate::streams::session::StreamReader;
use crate::streams::subscriptions::Subscriptions;
use crate::tasks::stopping::Stopping;
use crate::tasks::supervisor::{Supervisor, TaskFailure};
use crate::telemetry::Metrics;
use listeners::{BoundListener, Listener, Places};
pub use tls::TlsError;

/// How often histograms are folded.
const UPKEEP: Duration = Duration::from_secs(1);

/// Why the server could not start; the text is for the operator's terminal.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Anybody who reaches the address could do everything.
    #[error(
        "listening on {0} without access control would let whoever reaches it read and write everything; configure [access] with \
         mode = \"token\", or set insecure_open = true if something in front of the server lets in only those who may"
    )]
    Open(SocketAddr),
    /// The database could not be opened.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The database was opened and then failed.
    #[error("the database cannot be read: {0}")]
    Storage(#[from] StorageError),
    /// The address could not be bound.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// A listener has no TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Access control could not be set up.
    #[error(transparent)]
    Access(#[from] AccessSetupError),
    /// The figures could not be set up.
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
}

/// A server whose database is open. It listens on an address of its own, or is a service in another application.
pub struct Server {
    /// None in another application.
    listeners: Vec<Listener>,
    app: Arc<App>,
    tail: Arc<Tail>,
    bells: Arc<Bells>,
    changes: [broadcast::Receiver<Arc<[StreamChange]>>; 2],
    database: Database,
    supervisor: Supervisor,
}

impl Server {
    /// Takes the addresses, then opens the database, then listens: an address that is taken leaves no trace in the database,
    /// and no client is let in before there is something to serve.
    ///
    /// # Errors
    /// When any of that fails.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        let bound = listeners::bind(&config)?;
        Server::open_with(config, || bound.into_iter().map(BoundListener::listen).collect()).await
    }

    /// Opens the database and takes no address: what [`Server::service`] gives is mounted in another application, which
    /// says whom it lets in. The setting `public_url` says where that is, and [`Server::run`] has to run beside it.
    ///
    /// # Errors
    /// When the database cannot be opened.
    pub async fn open(config: Config) -> Result<Server, StartError> {
        Server::open_with(config, || Ok(Vec::new())).await
    }

    async fn open_with(
        config: Config,
        listen: impl FnOnce() -> Result<Vec<Listener>, StartError>,
    ) -> Result<Server, StartError> {
        let supervisor = Supervisor::default();
        let access = Arc::new(Access::open(&config.access, &config.entities)?);
        let limits = Arc::new(config.limits);
        let callers = CallerLimits::new(&config.rates, &config.access.trusted_proxies, limits.clone());
        let catalog = Arc::new(Catalog::new(&config.entities));
        let database = databases::open(&limits, catalog.clone(), config.demo, &supervisor).await?;
        let metrics = Metrics::install().map_err(StartError::Metrics)?;
        let chunk = chunk_limits(&limits);
        let (memory, sweep) = (limits.tail_memory.bytes(), limits.tail_sweep.get());
        let tail = Arc::new(Tail::new(database.log.clone(), &*database.capture, chunk, memory, sweep));
        let bells = Arc::new(Bells::default());
        // Subscribed to before the first client is served.
        let changes = [database.streams.stream_changes(), database.streams.stream_changes()];
        let listeners = listen()?;
        let public = listeners.iter().find(|listener| listener.role == ListenerRole::Public);
        let public_url = match (limits.public_url.trim_end_matches('/'), public) {
            ("", Some(listener)) => listener.url(),
            (url, _) => url.to_owned(),
        };
        let has_admin = listeners.iter().any(|listener| listener.role == ListenerRole::Admin);
        let base_path = url::Url::parse(&public_url).map(|url| url.path().trim_end_matches('/').to_owned());
        let (store, streams) = (database.subscriptions.clone(), database.streams.clone());
        let head = database.capture.head();
        let subscriptions = Subscriptions::open(store, streams, head, &public_url, &limits).await?;
        let stopping = Stopping::default();
        let render =
            RenderContext { limits: limits.clone(), metrics: metrics.clone(), stopping: stopping.clone() };
        let bodies = BodyMemory::new(limits.body_memory);
        let chunks = Arc::new(ChunkCache::new(limits.chunk_cache.get() / 2));
        let feed = FeedContext {
            catalog: catalog.clone(),
            access: access.clone(),
            log: database.log.clone(),
            tables: database.tables.clone(),
            writer: database.writer.clone(),
            reader: Arc::new(LogReader::new(
                database.log.clone(),
                &*database.capture,
                tail.clone(),
                catalog.clone(),
                chunks.clone(),
                chunk,
            )),
            tail: tail.clone(),
            bodies: bodies.clone(),
            base_path: base_path.unwrap_or_default(),
            render: render.clone(),
        };
        let streams = StreamsContext {
            streams: database.streams.clone(),
            reader: Arc::new(StreamReader::new(database.streams.clone(), bells.clone(), chunks, chunk)),
            subscriptions: Arc::new(subscriptions),
            uploads: BodyMemory::new(limits.append_memory),
            bodies,
            public_url,
            render,
        };
        let ops = OpsContext {
            log: database.log.clone(),
            capture: database.capture.clone(),
            catalog,
            tail: tail.clone(),
            metrics: metrics.clone(),
            stopping: stopping.clone(),
            supervisor: supervisor.clone(),
            access: access.clone(),
            has_admin,
        };
        let hot = Arc::new(HotAnswers::new(limits.chunk_cache.get() / 2, database.capture.version()));
        let metrics = Arc::new(metrics);
        let (feed, streams) = (Arc::new(feed), Arc::new(streams));
        let app = Arc::new(App {
            feed,
            streams,
            ops,
            access,
            callers: Arc::new(callers),
            hot,
            limits,
            metrics,
            stopping,
        });
        Ok(Server { listeners, app, tail, bells, changes, database, supervisor })
    }

    /// The endpoints, for another application's router.
    #[must_use]
    pub fn service(&self) -> BournService {
        // Hosts and origins are the application's business, unless the configuration names some.
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let gate = Gate::new(&self.app.limits, any, &self.app.streams.public_url, self.app.access.origins());
        BournService::new(&self.app, Arc::new(gate), ListenerRole::Public)
    }

    /// The URLs that are listened on by address, with the role of each; ports that the system chose are filled in.
    #[must_use]
    pub fn addresses(&self) -> Vec<(ListenerRole, String)> {
        self.listeners.iter().map(|listener| (listener.role, listener.url())).collect()
    }

    /// The entity types that cannot be served now, each with the reason.
    #[must_use]
    pub fn unavailable(&self) -> Vec<(Arc<str>, String)> {
        let reason = |entity: &Arc<EntityType>| Some((entity.name.clone(), entity.schema().err()?));
        self.app.feed.catalog.iter().filter_map(reason).collect()
    }

    /// Serves until `stop` fires or a background task fails, then lets what is under way end: live readers get a last event,
    /// requests their answers, queued writes their commit. What is not done by the shutdown timeout is cut off.
    ///
    /// # Errors
    /// When it stopped because a background task failed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskFailure> {
        let Server { listeners, app, tail, bells, changes, database, supervisor } = self;
        let stopping = app.stopping.clone();
        let background = TaskTracker::new();
        let ended = CancellationToken::new();
        let [to_bells, to_subscriptions] = changes;
        let (following, ringing, watching, upkeep) =
            (ended.clone(), ended.clone(), ended.clone(), ended.clone());
        let subscriptions = app.streams.subscriptions.clone();
        background.spawn(supervisor.watch("subscriptions", subscriptions.run(to_subscriptions, watching)));
        background.spawn(supervisor.watch("tail", async move { tail.run(following).await }));
        background.spawn(supervisor.watch("bells", async move { bells.run(to_bells, ringing).await }));
        for reader in app.access.readers() {
            let ended = ended.clone();
            background.spawn(supervisor.watch("keys", async move {
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = reader => {}
                }
            }));
        }
        let metrics = app.metrics.clone();
        background.spawn(supervisor.watch("metrics", async move {
            while tokio::time::timeout(UPKEEP, upkeep.cancelled()).await.is_err() {
                metrics.upkeep();
            }
        }));
        let certificates: Vec<_> =
            listeners.iter().filter_map(|listener| Some(listener.tls.as_ref()?.1.clone())).collect();
        if !certificates.is_empty() {
            let ended = ended.clone();
            background.spawn(supervisor.watch("certificates", async move {
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = tls::renew(certificates) => {}
                }
            }));
        }
        let connections = TaskTracker::new();
        let places = Arc::new(Places::new(app.limits.connections));
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(listeners::accept(
                listener,
                app.clone(),
                places.clone(),
                connections.clone(),
                stop.clone(),
            ));
        }
        let failure = tokio::select! {
            () = stop.cancelled() => None,
            failure = supervisor.failed() => Some(failure),
        };
        supervisor.stopping();
        // Closed at once, so that a supervisor may start the next server on the same addresses.
        accepting.shutdown().await;
        stopping.give();
        connections.close();
        let timeout = app.limits.shutdown_timeout.get();
        if tokio::time::timeout(timeout, connections.wait()).await.is_err() {
            tracing::warn!(left = connections.len(), "connections are cut off: they did not end in time");
        }
        if tokio::time::timeout(timeout, database.writer.close()).await.is_err() {
            tracing::warn!("writes are left undone: the database does not take them");
        }
        ended.cancel();
        background.close();
        background.wait().await;
        failure.map_or(Ok(()), Err)
    }
}
