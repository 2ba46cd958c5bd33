//! A socket whose peer must keep up. A reader that takes nothing for too long of what is ready for it, or too little, is cut
//! off: what waits for it is memory. A peer that neither asks nor is being answered for too long is cut off, too: one
//! that is idle, or that never comes to the end of its request's head.
//!
//! A client may close its side of the connection once it has sent its request (`nc -N` does); the end of what it sends is
//! kept back here until it has its answer. Of a reader that waits for what is to come, it means that it has gone.
//!
//! hyper has a timer for heads of its own; it is set and put away again for every request, which costs a
//! twentieth of a small answer. Here one timer runs per connection, and looks when it fires.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::http::WatchBody;

/// How long the end of what a peer sends is kept back while the body of its request is not complete.
const INCOMPLETE: Duration = Duration::from_secs(1);

/// How many requests a connection has begun and finished.
#[derive(Debug, Default)]
pub(super) struct Requests {
    begun: AtomicU64,
    finished: AtomicU64,
    /// The current one waits for what is to come.
    waits: AtomicBool,
    /// The current one's body is not all here.
    receiving: AtomicBool,
    /// The task to wake when the current one is finished, if one waits.
    wakes: AtomicBool,
    waking: Mutex<Option<Waker>>,
}

impl Requests {
    /// Begins one; it is finished when the value is dropped.
    pub(super) fn begin(self: &Arc<Self>, waits: bool, receiving: bool) -> InFlight {
        self.waits.store(waits, Ordering::Relaxed);
        self.receiving.store(receiving, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    fn is_any_in_flight(&self) -> bool {
        self.begun.load(Ordering::Relaxed) != self.finished()
    }

    /// Whether an answer is being made that a client which sends nothing more may still want.
    fn is_any_wanted(&self) -> bool {
        self.is_any_in_flight() && !self.waits.load(Ordering::Relaxed)
    }

    fn is_receiving(&self) -> bool {
        self.receiving.load(Ordering::Relaxed)
    }

    /// Wakes a task when the request in flight is finished.
    fn wake_when_finished(&self, waker: &Waker) {
        *self.waking.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        self.wakes.store(true, Ordering::Relaxed);
    }
}

impl WatchBody for Requests {
    fn received(&self) {
        self.receiving.store(false, Ordering::Relaxed);
    }
}

/// A request that is being answered, until the last byte of its answer is taken.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Requests>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.finished.fetch_add(1, Ordering::Relaxed);
        if self.0.wakes.swap(false, Ordering::Relaxed)
            && let Some(waker) = self.0.waking.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            waker.wake();
        }
    }
}

pub(super) struct KeepUp<S> {
    stream: S,
    write_timeout: Duration,
    /// Least bytes that the reader must take in that time.
    least: u64,
    /// Runs from when the reader falls behind until it has taken all; made then, for most never do.
    behind: Option<Pin<Box<Sleep>>>,
    /// What it has taken since the timer was last set.
    taken: u64,
    /// The peer sends nothing more.
    ended: bool,
    /// Runs while that is kept back although a body is not known to be complete.
    incomplete: Option<Pin<Box<Sleep>>>,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
    /// Who is woken when the idle timer fires.
    waking: Option<Waker>,
    /// Requests finished when the idle timer was last set.
    seen: u64,
    requests: Arc<Requests>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> KeepUp<S> {
    pub(super) fn new(
        stream: S,
        write_timeout: Duration,
        write_rate: u64,
        idle_timeout: Duration,
        requests: Arc<Requests>,
    ) -> KeepUp<S> {
        let idle = Box::pin(tokio::time::sleep(idle_timeout));
        KeepUp {
            stream,
            write_timeout,
            least: least_bytes(write_rate, write_timeout),
            behind: None,
            taken: 0,
            ended: false,
            incomplete: None,
            idle_timeout,
            idle,
            waking: None,
            seen: 0,
            requests,
        }
    }

    fn watch(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => {
                if self.behind.is_some() {
                    self.taken = self.taken.saturating_add(u64::try_from(*bytes).unwrap_or(u64::MAX));
                }
                written
            }
            Poll::Ready(Err(_)) => written,
            Poll::Pending => {
                let timeout = self.write_timeout;
                if self.behind.is_none() {
                    self.taken = 0;
                }
                let behind = self.behind.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                while behind.as_mut().poll(cx).is_ready() {
                    if self.taken < self.least {
                        let slow = "the reader does not keep up";
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, slow)));
                    }
                    self.taken = 0;
                    behind.as_mut().reset(Instant::now() + timeout);
                }
                Poll::Pending
            }
        }
    }

    /// Whether the end of what the peer sends is not to be seen yet; the task is woken when it is.
    fn keep_end_back(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.requests.is_any_wanted() {
            return false;
        }
        if self.requests.is_receiving() {
            // All of the body may have been read from the socket, and not yet by the endpoint.
            let timer = self.incomplete.get_or_insert_with(|| Box::pin(tokio::time::sleep(INCOMPLETE)));
            if timer.as_mut().poll(cx).is_ready() {
                return false;
            }
        }
        self.requests.wake_when_finished(cx.waker());
        true
    }

    /// Ready once the peer has been idle for the timeout, and twice that at the most.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Asking the timer costs more than looking at it, and it knows already whom to wake.
        let known = self.waking.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if known && !self.idle.is_elapsed() {
            return Poll::Pending;
        }
        self.waking = Some(cx.waker().clone());
        while self.idle.as_mut().poll(cx).is_ready() {
            let finished = self.requests.finished();
            if !self.requests.is_any_in_flight() && finished == self.seen {
                return Poll::Ready(());
            }
            self.seen = finished;
            let next = Instant::now() + self.idle_timeout;
            self.idle.as_mut().reset(next);
        }
        Poll::Pending
    }
}

/// What must be taken in a time at a rate: something, whatever the rate.
fn least_bytes(rate: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    (rate.saturating_mul(millis) / 1_000).max(1)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for KeepUp<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended && self.keep_end_back(cx) {
            return Poll::Pending;
        }
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if matches!(read, Poll::Ready(Ok(()))) && room > 0 && buf.filled().len() == before {
            self.ended = true;
            if self.keep_end_back(cx) {
                return Poll::Pending;
            }
        }
        if read.is_pending() && self.poll_idle(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer asks for nothing")));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for KeepUp<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // All that was ready has been taken.
        self.behind = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
