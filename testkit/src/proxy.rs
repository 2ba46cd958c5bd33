//! A TCP proxy that behaves like a bad network: between a client and a server it delays, limits, cuts, refuses, stalls,
//! and swallows what passes. Tests put it in front of PostgreSQL or of a Bourn server, and change its rules while
//! connections are open. It runs on a thread of its own, so that a test that blocks does not hold it up.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{PATIENCE, within};

/// Open connections; further ones are reset.
const MAX_CONNECTIONS: usize = 1024;
/// Bytes that are read at once.
const BLOCK: usize = 16 * 1024;
/// Blocks on their way in one direction of one connection; past them the sender has to wait.
const BLOCKS_UNDERWAY: usize = 64;
/// How long the upstream may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 256;
/// The pause before another attempt to listen or to accept.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Which of a connection's directions a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the upstream.
    Up,
    /// From the upstream to the client.
    Down,
    Both,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Flow {
    #[default]
    Pass,
    /// Bytes wait, and pass once the proxy is healed.
    Stall,
    /// Bytes and ends of streams disappear; the connection stays open on both sides.
    Swallow,
}

/// What happens to new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Door {
    #[default]
    Open,
    /// They are accepted and reset at once.
    Cut,
    /// Nothing listens.
    Closed,
}

#[derive(Debug, Clone, Copy, Default)]
struct Direction {
    flow: Flow,
    delay: Duration,
    bytes_per_second: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    upstream: SocketAddr,
    door: Door,
    up: Direction,
    down: Direction,
    /// Connections of an earlier generation are reset.
    generation: u64,
    /// How often the connections that were open were stranded.
    strandings: u64,
    /// How often the proxy was healed: a connection that has lost bytes by then is reset.
    heals: u64,
}

impl Rules {
    /// What holds for a connection that began under these rules, in one of its directions.
    fn since(self, began: Rules, direction: Direction) -> Direction {
        let flow = if self.strandings == began.strandings { direction.flow } else { Flow::Swallow };
        Direction { flow, ..direction }
    }

    fn each(&mut self, way: Way, mut change: impl FnMut(&mut Direction)) {
        if way != Way::Down {
            change(&mut self.up);
        }
        if way != Way::Up {
            change(&mut self.down);
        }
    }
}

/// A proxy in front of one upstream. It ends, with all of its connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    rules: Option<watch::Sender<Rules>>,
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of loopback and forwards to this address, at first without any trouble.
    pub fn start(upstream: SocketAddr) -> Proxy {
        let (up, down) = (Direction::default(), Direction::default());
        let rules = Rules { upstream, door: Door::Open, up, down, generation: 0, strandings: 0, heals: 0 };
        let (rules, watched) = watch::channel(rules);
        let open = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&open);
        let (address, told) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("the proxy has a runtime");
            runtime.block_on(async move {
                // Holds the port also while nothing listens.
                let reserved = reserve((Ipv4Addr::LOCALHOST, 0).into()).expect("a port is free");
                let own = reserved.local_addr().expect("the port has a number");
                let listener = listen(own).expect("the reserved port can be listened on");
                let _ = address.send(own);
                accept(own, listener, watched, counted).await;
                drop(reserved);
            });
        });
        let address = told.recv().expect("the proxy starts");
        Proxy { address, rules: Some(rules), open, thread: Some(thread) }
    }

    /// The same, in front of a port of this machine.
    pub fn to_port(port: u16) -> Proxy {
        Self::start((Ipv4Addr::LOCALHOST, port).into())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The upstream's URL with the proxy's address in place of `127.0.0.1` and the upstream's port.
    pub fn url(&self, upstream_url: &str) -> String {
        let upstream = self.rules().borrow().upstream.to_string();
        assert!(upstream_url.contains(&upstream), "{upstream_url} is not at {upstream}");
        upstream_url.replacen(&upstream, &self.address.to_string(), 1)
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Holds every byte back for this long, and every end of a stream.
    pub fn delay(&self, way: Way, time: Duration) {
        self.change(|rules| rules.each(way, |direction| direction.delay = time));
    }

    /// Lets at most this many bytes a second pass in each connection.
    pub fn limit(&self, way: Way, bytes_per_second: u64) {
        let limit = Some(bytes_per_second.max(1));
        self.change(|rules| rules.each(way, |direction| direction.bytes_per_second = limit));
    }

    /// Half-open: takes bytes and forwards none, and forwards no end of a connection either. Connections that lost
    /// something are reset when the proxy is healed.
    pub fn swallow(&self, way: Way) {
        self.change(|rules| rules.each(way, |direction| direction.flow = Flow::Swallow));
    }

    /// Half-open: swallows what passes on the connections that are open now, both ways; new ones are served.
    pub fn strand(&self) {
        self.change(|rules| rules.strandings += 1);
    }

    /// Takes no bytes; they go on when the proxy is healed.
    pub fn stall(&self, way: Way) {
        self.change(|rules| rules.each(way, |direction| direction.flow = Flow::Stall));
    }

    /// Resets every open connection; new ones are served. Returns when the old ones are gone.
    pub fn cut(&self) {
        self.change(|rules| rules.generation += 1);
        // New ones may come at once, so the count alone does not tell; but the old ones end in a moment.
        within(Duration::from_millis(100), || self.connections() == 0);
    }

    /// Accepts new connections only to reset them; open ones stay.
    pub fn cut_new(&self) {
        self.change(|rules| rules.door = Door::Cut);
    }

    /// Stops listening: new connections are refused; open ones stay.
    pub fn refuse(&self) {
        self.change(|rules| rules.door = Door::Closed);
        let refused = || std::net::TcpStream::connect(self.address).is_err();
        assert!(within(PATIENCE, refused), "the proxy goes on listening");
    }

    /// Forwards new connections to another address, and resets those to the present one.
    pub fn redirect(&self, upstream: SocketAddr) {
        self.change(|rules| {
            rules.upstream = upstream;
            rules.generation += 1;
        });
    }

    /// Ends all trouble.
    pub fn heal(&self) {
        let closed = self.rules().borrow().door == Door::Closed;
        self.change(|rules| {
            (rules.up, rules.down, rules.door) = (Direction::default(), Direction::default(), Door::Open);
            rules.heals += 1;
        });
        let listens = || std::net::TcpStream::connect(self.address).is_ok();
        assert!(!closed || within(PATIENCE, listens), "the proxy does not listen again");
    }

    fn rules(&self) -> &watch::Sender<Rules> {
        self.rules.as_ref().expect("the rules are there until the proxy is dropped")
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        self.rules().send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.rules.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    reserve(address)?.listen(BACKLOG)
}

/// Counts a connection for as long as it is open.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Counted {
        open.fetch_add(1, Ordering::SeqCst);
        Counted(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Accepts connections until the proxy is dropped.
async fn accept(
    own: SocketAddr,
    listener: TcpListener,
    mut rules: watch::Receiver<Rules>,
    open: Arc<AtomicUsize>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let now = *rules.borrow_and_update();
        if now.door == Door::Closed {
            listener = None;
        } else if listener.is_none() {
            listener = listen(own).ok();
        }
        let arrival = async {
            match &listener {
                Some(listener) => listener.accept().await,
                // Closed, or the port is not free yet: the rules or the pause wake the loop.
                None if now.door == Door::Closed => std::future::pending().await,
                None => {
                    sleep(RETRY_PAUSE).await;
                    Err(io::ErrorKind::AddrInUse.into())
                }
            }
        };
        tokio::select! {
            changed = rules.changed() => if changed.is_err() { break },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            arrival = arrival => match arrival {
                Ok((client, _)) => {
                    // The rules may have changed while nobody came.
                    let now = *rules.borrow();
                    if now.door == Door::Open && connections.len() < MAX_CONNECTIONS {
                        connections.spawn(serve(client, now, rules.clone(), Counted::new(&open)));
                    } else {
                        reset(client);
                    }
                }
                Err(_) => sleep(RETRY_PAUSE).await,
            },
        }
    }
    drop(listener);
    // They see that the rules are gone, and reset themselves.
    while connections.join_next().await.is_some() {}
}

#[allow(clippy::needless_pass_by_value, reason = "dropping the stream is what sends the reset")]
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

/// One connection, from its beginning to its end.
async fn serve(mut client: TcpStream, began: Rules, mut rules: watch::Receiver<Rules>, _counted: Counted) {
    let connected = tokio::select! {
        connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(began.upstream)) => connected,
        () = outdated(began.generation, &mut rules) => return reset(client),
    };
    let Ok(Ok(mut upstream)) = connected else { return reset(client) };
    let _ = client.set_nodelay(true);
    let _ = upstream.set_nodelay(true);
    let in_order = {
        let ((from_client, to_client), (from_upstream, to_upstream)) = (client.split(), upstream.split());
        let both = async {
            tokio::try_join!(
                forward(from_client, to_upstream, rules.clone(), move |now| now.since(began, now.up)),
                forward(from_upstream, to_client, rules.clone(), move |now| now.since(began, now.down))
            )
        };
        let mut watched = rules.clone();
        tokio::select! {
            both = both => both.is_ok(),
            () = outdated(began.generation, &mut watched) => false,
        }
    };
    if !in_order {
        reset(client);
        reset(upstream);
    }
}

/// Waits until the connections of this generation are to be reset, or the proxy is dropped.
async fn outdated(generation: u64, rules: &mut watch::Receiver<Rules>) {
    let _ = rules.wait_for(|rules| rules.generation != generation).await;
}

/// What is on its way, and when it may arrive.
type Underway = (Instant, Vec<u8>);

/// One direction, until its stream ends or something was lost in it. An empty block is the stream's end.
async fn forward(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    rules: watch::Receiver<Rules>,
    direction: impl Fn(&Rules) -> Direction + Copy,
) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(BLOCKS_UNDERWAY);
    let receive = receive(from, sender, rules.clone(), direction);
    tokio::try_join!(receive, deliver(to, receiver, rules, direction))?;
    Ok(())
}

async fn receive(
    mut from: ReadHalf<'_>,
    underway: mpsc::Sender<Underway>,
    mut rules: watch::Receiver<Rules>,
    direction: impl Fn(&Rules) -> Direction + Copy,
) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        passing(&mut rules, direction).await;
        let read = from.read(&mut block).await?;
        let now = *rules.borrow();
        if direction(&now).flow == Flow::Swallow {
            return lose(from, &mut block, read, now.heals, &mut rules).await;
        }
        let arrival = Instant::now() + direction(&now).delay;
        let bytes = block.get(..read).unwrap_or_default().to_vec();
        if underway.send((arrival, bytes)).await.is_err() || read == 0 {
            return Ok(());
        }
    }
}

/// Swallows everything until the proxy is healed, which resets the connection: its bytes are not whole any more.
async fn lose(
    mut from: ReadHalf<'_>,
    block: &mut [u8],
    mut read: usize,
    heals: u64,
    rules: &mut watch::Receiver<Rules>,
) -> io::Result<()> {
    loop {
        let more = async {
            if read == 0 {
                // The end is swallowed, too.
                return std::future::pending().await;
            }
            from.read(block).await.unwrap_or(0)
        };
        tokio::select! {
            more = more => read = more,
            _ = rules.wait_for(|rules| rules.heals != heals) => return Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

async fn deliver(
    mut to: WriteHalf<'_>,
    mut underway: mpsc::Receiver<Underway>,
    mut rules: watch::Receiver<Rules>,
    direction: impl Fn(&Rules) -> Direction + Copy,
) -> io::Result<()> {
    while let Some((arrival, bytes)) = underway.recv().await {
        sleep_until(arrival).await;
        passing(&mut rules, direction).await;
        let now = *rules.borrow();
        if direction(&now).flow == Flow::Swallow {
            // What was on its way is lost like what comes after it.
            let _ = rules.wait_for(|rules| rules.heals != now.heals).await;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if bytes.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(&bytes).await?;
        if let Some(limit) = direction(&now).bytes_per_second {
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            sleep(Duration::from_nanos(length.saturating_mul(1_000_000_000) / limit)).await;
        }
    }
    Ok(())
}

/// Waits while the direction is stalled.
async fn passing(rules: &mut watch::Receiver<Rules>, direction: impl Fn(&Rules) -> Direction + Copy) {
    let _ = rules.wait_for(|rules| direction(rules).flow != Flow::Stall).await;
}
