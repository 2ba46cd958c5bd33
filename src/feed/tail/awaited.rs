//! Transactions that requests wait for. The tail wakes a request only when it reads the request's transaction, so that
//! a commit costs only the requests that wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bourn_protocol::TransactionId;
use tokio::sync::Notify;

/// Number of ids up to which abandoned ones are not looked for.
const PRUNE_LEAST: usize = 64;

/// One wait for one transaction.
#[derive(Debug)]
pub struct Awaited(Arc<Notify>);

impl Awaited {
    /// Ends when the tail has read the transaction, or may have passed over it.
    pub async fn seen(&self) {
        self.0.notified().await;
    }
}

/// The waiting requests, by transaction id.
#[derive(Debug, Default)]
pub(super) struct AwaitedIds {
    waiting: HashMap<Arc<str>, Vec<Weak<Notify>>>,
    waits: usize,
    prune_at: usize,
}

impl AwaitedIds {
    pub(super) fn wait_for(&mut self, id: &TransactionId) -> Awaited {
        if self.waits >= self.prune_at.max(PRUNE_LEAST) {
            self.prune();
        }
        let notify = Arc::new(Notify::new());
        self.waiting.entry(id.as_str().into()).or_default().push(Arc::downgrade(&notify));
        self.waits += 1;
        Awaited(notify)
    }

    /// Whether no request waits; drops the ids whose requests are gone.
    pub(super) fn is_empty(&mut self) -> bool {
        if !self.waiting.is_empty() {
            self.prune();
        }
        self.waiting.is_empty()
    }

    /// Wakes the requests that wait for one of these transactions.
    pub(super) fn wake<'a>(&mut self, ids: impl Iterator<Item = &'a str>) {
        if self.waiting.is_empty() {
            return;
        }
        for id in ids {
            let Some(waiters) = self.waiting.remove(id) else { continue };
            self.waits -= waiters.len();
            notify(&waiters);
        }
    }

    /// Wakes every request, as any transaction may have been read.
    pub(super) fn wake_all(&mut self) {
        self.waits = 0;
        for waiters in std::mem::take(&mut self.waiting).into_values() {
            notify(&waiters);
        }
    }

    fn prune(&mut self) {
        self.waits = 0;
        self.waiting.retain(|_, waiters| {
            waiters.retain(|waiter| waiter.strong_count() > 0);
            self.waits += waiters.len();
            !waiters.is_empty()
        });
        self.prune_at = 2 * self.waits;
    }
}

fn notify(waiters: &[Weak<Notify>]) {
    for waiter in waiters.iter().filter_map(Weak::upgrade) {
        // `notify_one` keeps the permit for a request that does not wait yet.
        waiter.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_woken_by_their_transaction_alone_and_who_has_gone_is_forgotten() {
        let id = |text: &str| TransactionId::new(text).unwrap();
        let mut ids = AwaitedIds::default();
        let (one, two, gone) =
            (ids.wait_for(&id("one")), ids.wait_for(&id("two")), ids.wait_for(&id("gone")));
        drop(gone);
        ids.wake(["one", "other"].into_iter());
        one.seen().await;
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), two.seen()).await;
        assert!(waits.is_err() && !ids.is_empty());
        ids.wake_all();
        two.seen().await;
        assert!(ids.is_empty());
        for _ in 0..1_000 {
            drop(ids.wait_for(&id("gone")));
        }
        assert!(ids.waits <= 2 * PRUNE_LEAST, "{}", ids.waits);
    }
}
