//! The order to stop, which every connection and live reader waits for. Waiting must cost next to nothing until it
//! comes: a token shared by ten thousand tasks has a lock that each of them would take at every poll.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The order to stop; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    given: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Stopping {
    /// Gives the order.
    pub fn give(&self) {
        self.given.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Whether it was given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// Completes when the order is given, for a part of a task that also waits for the order elsewhere: it wakes no
    /// task by itself, and costs nothing to keep.
    pub fn noticed(&self) -> impl Future<Output = ()> + Send + '_ {
        std::future::poll_fn(|_| if self.is_given() { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Completes when the order is given.
    #[must_use]
    pub fn wait(&self) -> Stopped {
        Stopped {
            given: self.given.clone(),
            inner: Box::pin(self.token.clone().cancelled_owned()),
            registered: None,
        }
    }
}

/// Waits for the order to stop. Its lock is taken once for each task that waits, not at every poll.
pub struct Stopped {
    given: Arc<AtomicBool>,
    inner: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The waker that is registered with the order.
    registered: Option<Waker>,
}

impl Future for Stopped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.given.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.registered = Some(cx.waker().clone());
        self.inner.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_woken_and_who_comes_later_does_not_wait() {
        let stopping = Stopping::default();
        let waiters: Vec<_> = (0..3).map(|_| tokio::spawn(stopping.wait())).collect();
        tokio::task::yield_now().await;
        assert!(!stopping.is_given() && waiters.iter().all(|waiter| !waiter.is_finished()));
        stopping.give();
        for waiter in waiters {
            waiter.await.unwrap();
        }
        stopping.wait().await;
    }
}
