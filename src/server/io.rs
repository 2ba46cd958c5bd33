//! A socket whose peer must keep up. A write that makes no progress for too long fails, and with it the connection:
//! nothing is buffered for a reader that does not read. A peer that neither asks nor is being answered for too
//! long is cut off, too: one that is idle, or that never comes to the end of its request's head.
//!
//! hyper has a timer for heads of its own; it is set and put away again for every request, which costs a
//! twentieth of a small answer. Here one timer runs per connection, and looks when it fires.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// How many requests a connection has begun and finished.
#[derive(Debug, Default)]
pub(super) struct Requests {
    begun: AtomicU64,
    finished: AtomicU64,
}

impl Requests {
    /// Begins one; it is finished when the value is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.begun.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    fn is_any_in_flight(&self) -> bool {
        self.begun.load(Ordering::Relaxed) != self.finished()
    }
}

/// A request that is being answered, until the last byte of its answer is taken.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Requests>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.finished.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) struct KeepUp {
    stream: TcpStream,
    write_timeout: Duration,
    /// Runs while a write is stuck; made then, for most never are.
    stuck: Option<Pin<Box<Sleep>>>,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
    /// Who is woken when the idle timer fires.
    waking: Option<Waker>,
    /// Requests finished when the idle timer was last set.
    seen: u64,
    requests: Arc<Requests>,
}

impl KeepUp {
    pub(super) fn new(
        stream: TcpStream,
        write_timeout: Duration,
        idle_timeout: Duration,
        requests: Arc<Requests>,
    ) -> KeepUp {
        let idle = Box::pin(tokio::time::sleep(idle_timeout));
        KeepUp { stream, write_timeout, stuck: None, idle_timeout, idle, waking: None, seen: 0, requests }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader does not keep up")))
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

impl AsyncRead for KeepUp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() && self.poll_idle(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer asks for nothing")));
        }
        read
    }
}

impl AsyncWrite for KeepUp {
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
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
