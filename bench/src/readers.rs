//! Thousands of readers of an event stream, as cheap as they can be: one task each, one buffer a thread, and
//! nothing looked for but the mark that each event carries. Some are sampled for latency.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::measure::{Latencies, now_nanos};
use crate::publish::{MARK, Stamps};
use crate::wire;

/// Bytes taken from a socket at once.
const BUFFER: usize = 64 * 1024;
/// Connections that are being opened at once.
const OPENING: usize = 128;
/// How long a connection may take to be opened and answered.
const OPEN: Duration = Duration::from_secs(30);

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// A connection whose answer has begun, and what finds its stamps if it is sampled.
type Opened = (TcpStream, Option<Stamps>);

/// What all readers have received.
pub(crate) struct Tally {
    messages: AtomicU64,
    bytes: AtomicU64,
    ended: AtomicU64,
    latencies: Mutex<Latencies>,
}

impl Tally {
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Connections that the server has ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// The latencies since this was last asked.
    pub(crate) fn take_latencies(&self) -> Latencies {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = latencies.clone();
        latencies.clear();
        taken
    }
}

/// Readers that read for as long as this lives.
pub(crate) struct Readers {
    pub(crate) tally: Arc<Tally>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Readers {
    /// Opens so many readers of a path, `sampled` of them with an eye on latency, and waits until each has been
    /// answered.
    pub(crate) async fn open(
        address: SocketAddr,
        path: &str,
        count: usize,
        sampled: usize,
    ) -> Result<Readers> {
        let tally = Arc::new(Tally {
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            latencies: Mutex::new(Latencies::new()?),
        });
        let request: Arc<[u8]> = wire::get(address, path, None).into();
        let mut readers = Readers { tally, tasks: Vec::with_capacity(count) };
        let mut opening = JoinSet::new();
        let every = count.div_ceil(sampled.max(1));
        for i in 0..count {
            if opening.len() >= OPENING {
                readers.begin(opening.join_next().await)?;
            }
            let request = request.clone();
            opening.spawn(async move {
                let opened = tokio::time::timeout(OPEN, open(address, &request)).await;
                let stamps = i.is_multiple_of(every).then(Stamps::default);
                Ok((opened.context("a reader was not answered")??, stamps))
            });
        }
        while let Some(opened) = opening.join_next().await {
            readers.begin(Some(opened))?;
        }
        Ok(readers)
    }

    fn begin(&mut self, opened: Option<Result<Result<Opened>, JoinError>>) -> Result<()> {
        let Some(opened) = opened else { return Ok(()) };
        let (stream, stamps) = opened??;
        let reader = Reader { stream, stamps, tally: self.tally.clone() };
        self.tasks.push(tokio::spawn(reader.read()).abort_handle());
        Ok(())
    }
}

/// Connects, sends the request and takes the head of the answer, byte by byte so that no event is taken too.
pub(crate) async fn open(address: SocketAddr, request: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    let mut head = Vec::with_capacity(512);
    let mut peeked = [0; 2048];
    while !head.ends_with(b"\r\n\r\n") {
        let seen = stream.peek(&mut peeked).await?;
        ensure!(seen > 0 && head.len() < 16 * 1024, "the answer has no head");
        let seen = peeked.get(..seen).unwrap_or_default();
        let mut whole = head.clone();
        whole.extend_from_slice(seen);
        let end = memchr::memmem::find(&whole, b"\r\n\r\n").map_or(whole.len(), |at| at + 4);
        let from = head.len();
        head.resize(end, 0);
        stream.read_exact(head.get_mut(from..).unwrap_or_default()).await?;
    }
    ensure!(head.starts_with(b"HTTP/1.1 200"), "a reader was refused");
    Ok(stream)
}

struct Reader {
    stream: TcpStream,
    stamps: Option<Stamps>,
    tally: Arc<Tally>,
}

impl Reader {
    async fn read(mut self) {
        let tally = self.tally.clone();
        while std::future::poll_fn(|cx| self.poll_once(cx)).await {}
        tally.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes what is there; says whether there can be more.
    fn poll_once(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        SHARED.with_borrow_mut(|shared| {
            let mut buffer = ReadBuf::new(shared);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            let bytes = buffer.filled();
            if read.is_err() || bytes.is_empty() {
                return Poll::Ready(false);
            }
            let marks = memchr::memchr_iter(MARK, bytes).count();
            self.tally.bytes.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
            if let Some(stamps) = &mut self.stamps {
                let now = now_nanos();
                let mut latencies = self.tally.latencies.lock().unwrap_or_else(PoisonError::into_inner);
                stamps.scan(bytes, |stamp| latencies.record(now.saturating_sub(stamp)));
            }
            self.tally.messages.fetch_add(u64::try_from(marks).unwrap_or(0), Ordering::Relaxed);
            Poll::Ready(true)
        })
    }
}
