//! The server: opens the database, accepts connections, and shuts down gracefully.

mod connection;
mod io;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::entity::{Catalog, EntityType};
use crate::http::{App, BodyMemory, Gate, HotAnswers};
use crate::read::{Reader, chunk_limits};
use crate::stopping::Stopping;
use crate::storage::streams::StreamChange;
use crate::storage::{self, OpenError, Storage, StorageError};
use crate::subscriptions::Subscriptions;
use crate::supervisor::{Supervisor, TaskFailure};
use crate::tail::{Bells, Tail};
use crate::telemetry::Metrics;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1_024;
/// How often histograms are folded.
const UPKEEP: Duration = Duration::from_secs(1);
/// Connections that are refused at once: each is given a moment to say what it wants.
const REFUSALS: usize = 256;
/// How long to wait after the system had no room for a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Why the server could not start; the text is for the operator's terminal.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
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
    /// The figures could not be set up.
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
}

/// A server that is ready to accept.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
    tail: Arc<Tail>,
    bells: Arc<Bells>,
    changes: [broadcast::Receiver<Arc<[StreamChange]>>; 2],
    storage: Arc<dyn Storage>,
    supervisor: Supervisor,
}

impl Server {
    /// Takes the address, then opens the database, then listens: an address that is taken leaves no trace in the database,
    /// and no client is let in before there is something to serve.
    ///
    /// # Errors
    /// When either fails.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        let supervisor = Supervisor::default();
        let limits = Arc::new(config.limits);
        let address = limits.listen.get();
        let socket = bind(address).map_err(|error| StartError::Bind { address, error })?;
        let catalog = Arc::new(Catalog::new(&config.entities));
        let storage = storage::open(&limits, catalog.clone(), config.demo, &supervisor).await?;
        let metrics = Metrics::install().map_err(StartError::Metrics)?;
        let (memory, sweep) = (limits.tail_memory.bytes(), limits.tail_sweep.get());
        let tail = Arc::new(Tail::new(storage.clone(), chunk_limits(&limits), memory, sweep));
        let bells = Arc::new(Bells::default());
        // Listened to before anybody can be let in.
        let changes = [storage.stream_changes(), storage.stream_changes()];
        let reader = Arc::new(Reader::new(storage.clone(), tail.clone(), bells.clone(), &limits));
        let listener = socket.listen(BACKLOG).map_err(|error| StartError::Bind { address, error })?;
        let stopping = Stopping::default();
        let public_url = match limits.public_url.trim_end_matches('/') {
            "" => format!("http://{}", listener.local_addr().unwrap_or(address)),
            url => url.to_owned(),
        };
        let subscriptions = Subscriptions::open(storage.clone(), &public_url, &limits).await?;
        let (uploads, bodies) = (BodyMemory::new(limits.append_memory), BodyMemory::new(limits.body_memory));
        let gate = Gate::new(&limits, listener.local_addr().unwrap_or(address), &public_url);
        let hot = HotAnswers::new(limits.chunk_cache.get() / 2, storage.version());
        let app = App {
            storage: storage.clone(),
            reader,
            tail: tail.clone(),
            catalog,
            subscriptions: Arc::new(subscriptions),
            uploads,
            bodies,
            gate,
            public_url,
            hot,
            limits,
            metrics,
            stopping,
            supervisor: supervisor.clone(),
        };
        Ok(Server { listener, app: Arc::new(app), tail, bells, changes, storage, supervisor })
    }

    /// The address that is listened on; with the port that the system chose, where it was asked to.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The entity types that cannot be served now, each with the reason.
    #[must_use]
    pub fn unavailable(&self) -> Vec<(Arc<str>, String)> {
        let reason = |entity: &Arc<EntityType>| Some((entity.name.clone(), entity.schema().err()?));
        self.app.catalog.iter().filter_map(reason).collect()
    }

    /// Serves until `stop` fires or a background task fails, then lets what is under way end: live readers get a last event,
    /// requests their answers, queued writes their commit. What is not done by the shutdown timeout is cut off.
    ///
    /// # Errors
    /// When it stopped because a background task failed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskFailure> {
        let Server { listener, app, tail, bells, changes, storage, supervisor } = self;
        let stopping = app.stopping.clone();
        let background = TaskTracker::new();
        let ended = CancellationToken::new();
        let [to_bells, to_subscriptions] = changes;
        let (following, ringing, watching, upkeep) =
            (ended.clone(), ended.clone(), ended.clone(), ended.clone());
        let subscriptions = app.subscriptions.clone();
        background.spawn(supervisor.watch("subscriptions", subscriptions.run(to_subscriptions, watching)));
        background.spawn(supervisor.watch("tail", async move { tail.run(following).await }));
        background.spawn(supervisor.watch("bells", async move { bells.run(to_bells, ringing).await }));
        let metrics = app.metrics.clone();
        background.spawn(supervisor.watch("metrics", async move {
            while tokio::time::timeout(UPKEEP, upkeep.cancelled()).await.is_err() {
                metrics.upkeep();
            }
        }));
        let connections = TaskTracker::new();
        let failure = tokio::select! {
            () = accept(&listener, &app, &connections, &stop) => None,
            failure = supervisor.failed() => Some(failure),
        };
        supervisor.stopping();
        // Closed at once, so that a supervisor may start the next server on the same address.
        drop(listener);
        stopping.give();
        connections.close();
        let timeout = app.limits.shutdown_timeout.get();
        if tokio::time::timeout(timeout, connections.wait()).await.is_err() {
            tracing::warn!(left = connections.len(), "connections are cut off: they did not end in time");
        }
        if tokio::time::timeout(timeout, storage.close()).await.is_err() {
            tracing::warn!("writes are left undone: the database does not take them");
        }
        ended.cancel();
        background.close();
        background.wait().await;
        failure.map_or(Ok(()), Err)
    }
}

/// Takes an address without listening on it yet.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // What is left of the last server's connections must not keep the next one from starting.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(listener: &TcpListener, app: &Arc<App>, connections: &TaskTracker, stop: &CancellationToken) {
    let places = Arc::new(Semaphore::new(app.limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    connections.spawn(connection::serve(stream, app.clone(), place));
                }
                // More than that are closed without a word.
                Err(_) => {
                    if let Ok(place) = refusals.clone().try_acquire_owned() {
                        connections.spawn(connection::refuse(stream, app.clone(), place));
                    }
                }
            },
            Err(error) => {
                // Out of file descriptors, most likely: what is open goes on, new ones wait.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}
