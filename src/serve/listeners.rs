//! The listeners: each takes its address before the database is opened, listens once there is something to serve, and
//! gives its connections to the service of its role.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::tls::{self, Certificate};
use super::{StartError, connection};
use crate::config::{AccessMode, Config, ListenerConfig, ListenerRole};
use crate::http::{App, BournService, Gate};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1_024;
/// Connections that are refused at once: each is given a moment to say what it wants.
const REFUSALS: usize = 256;
/// How long to wait after the system had no room for a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// An address that is taken.
pub(super) struct BoundListener {
    address: SocketAddr,
    role: ListenerRole,
    socket: TcpSocket,
    tls: Option<(TlsAcceptor, Arc<Certificate>)>,
}

/// An address that is listened on.
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) role: ListenerRole,
    tcp: TcpListener,
    pub(super) tls: Option<(TlsAcceptor, Arc<Certificate>)>,
}

/// Takes the addresses of the configuration.
pub(super) fn bind(config: &Config) -> Result<Vec<BoundListener>, StartError> {
    let open = config.access.mode == AccessMode::Open && !config.access.insecure_open;
    config.listeners.iter().map(|listener| take(listener, open)).collect()
}

fn take(listener: &ListenerConfig, open: bool) -> Result<BoundListener, StartError> {
    let address = listener.address.get();
    if open && listener.role != ListenerRole::Admin && !address.ip().is_loopback() {
        return Err(StartError::Open(address));
    }
    let tls = tls::open(listener)?;
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // What is left of the last server's connections must not keep the next one from starting.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    let socket = bind().map_err(|error| StartError::Bind { address, error })?;
    Ok(BoundListener { address, role: listener.role, socket, tls })
}

impl BoundListener {
    /// Begins to listen.
    pub(super) fn listen(self) -> Result<Listener, StartError> {
        let BoundListener { address, role, socket, tls } = self;
        let tcp = socket.listen(BACKLOG).map_err(|error| StartError::Bind { address, error })?;
        // With the port that the system chose, where it was asked to.
        let address = tcp.local_addr().unwrap_or(address);
        Ok(Listener { address, role, tcp, tls })
    }
}

impl Listener {
    /// The URL under which it is reached by its address.
    pub(super) fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.address)
    }
}

/// How many connections there may be, on all listeners together.
pub(super) struct Places {
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

impl Places {
    pub(super) fn new(connections: usize) -> Places {
        Places { served: Arc::new(Semaphore::new(connections)), refused: Arc::new(Semaphore::new(REFUSALS)) }
    }
}

/// Accepts connections until the server is to stop.
pub(super) async fn accept(
    listener: Listener,
    app: Arc<App>,
    places: Arc<Places>,
    connections: TaskTracker,
    stop: CancellationToken,
) {
    let gate = Gate::new(&app.limits, listener.address, &app.streams.public_url, app.access.origins());
    let service = BournService::new(&app, Arc::new(gate), listener.role);
    let acceptor = listener.tls.map(|(acceptor, _)| acceptor);
    loop {
        let accepted = tokio::select! {
            accepted = listener.tcp.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => match places.served.clone().try_acquire_owned() {
                Ok(place) => {
                    let (service, acceptor) = (service.clone(), acceptor.clone());
                    connections.spawn(connection::serve(stream, acceptor, app.clone(), service, place));
                }
                // More than that are closed without a word.
                Err(_) => {
                    // An answer in plain HTTP means nothing to a client that speaks TLS.
                    if let Ok(place) = places.refused.clone().try_acquire_owned()
                        && acceptor.is_none()
                    {
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
