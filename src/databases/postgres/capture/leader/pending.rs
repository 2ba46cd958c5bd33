//! Changes that have come from the replication stream and wait to be appended, in the order of the stream; and the
//! transaction that the stream is sending.

use std::sync::Arc;

use pgwire_replication::Lsn;

use crate::databases::postgres::capture::append::AppendInParts;
use crate::databases::postgres::capture::change::{Change, Ids};
use crate::databases::postgres::capture::new_activity::CommitMark;

/// Changes that are appended together, at most.
const BATCH_CHANGES: usize = 4_096;
/// Bytes of changes that are appended together, roughly at most.
const BATCH_BYTES: usize = 4 << 20;

/// One item of the stream.
pub(in super::super) enum StreamItem {
    Change(Box<Change>),
    /// A transaction ends; with the transaction and the client that it named, if any.
    End(Option<Arc<Ids>>),
}

impl StreamItem {
    pub(in super::super) fn ends_transaction(&self) -> bool {
        matches!(self, StreamItem::End(_))
    }
}

/// The transaction that the stream is sending.
pub(in super::super) struct StreamedTransaction {
    pub(in super::super) commit: CommitMark,
    pub(in super::super) ids: Option<Arc<Ids>>,
    /// The log has it already.
    pub(in super::super) covered: bool,
    /// It is appended in parts.
    pub(in super::super) in_parts: Option<AppendInParts>,
}

/// What has come and is not appended.
pub(in super::super) struct PendingChanges {
    items: Vec<StreamItem>,
    bytes: usize,
    pub(in super::super) transaction: Option<StreamedTransaction>,
    /// The end of the last transaction that the stream has sent.
    pub(in super::super) received: Lsn,
    /// A full transaction number that the stream's short ones lie near.
    near: i64,
}

impl PendingChanges {
    /// Nothing yet, of a stream that continues behind `position`, near this transaction.
    pub(in super::super) fn new(position: Lsn, near: i64) -> PendingChanges {
        PendingChanges { items: Vec::new(), bytes: 0, transaction: None, received: position, near }
    }

    /// Begins a transaction.
    pub(in super::super) fn begin(&mut self, xid: u32, micros_since_2000: i64, covered: bool) {
        let commit = self.mark(xid, micros_since_2000);
        self.transaction = Some(StreamedTransaction { commit, ids: None, covered, in_parts: None });
    }

    /// Counts bytes of the stream.
    pub(in super::super) fn count_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Takes a change of the transaction.
    pub(in super::super) fn push(&mut self, change: Change) {
        self.items.push(StreamItem::Change(Box::new(change)));
    }

    /// Takes the ids that a writer gave the transaction: for the changes that follow, and, at the first time, for those
    /// that wait.
    pub(in super::super) fn name(&mut self, ids: Arc<Ids>) {
        let Some(transaction) = self.transaction.as_mut() else { return };
        if transaction.ids.is_none() {
            for item in self.items.iter_mut().rev() {
                match item {
                    StreamItem::Change(change) => change.ids = Some(ids.clone()),
                    StreamItem::End(_) => break,
                }
            }
        }
        transaction.ids = Some(ids);
    }

    /// Ends the transaction; returns it if its last part is still to be appended.
    pub(in super::super) fn end(&mut self, end: Lsn) -> Option<AppendInParts> {
        let transaction = self.transaction.take()?;
        self.received = self.received.max(end);
        if transaction.in_parts.is_none() && !transaction.covered {
            self.items.push(StreamItem::End(transaction.ids));
        }
        transaction.in_parts
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether nothing waits and no transaction is being sent.
    pub(in super::super) fn is_idle(&self) -> bool {
        self.items.is_empty() && self.transaction.is_none()
    }

    /// Whether so much waits that it must be appended now.
    pub(in super::super) fn is_full(&self) -> bool {
        self.items.len() >= BATCH_CHANGES || self.bytes >= BATCH_BYTES
    }

    /// Takes out the transactions that have ended; `None` where none has.
    pub(in super::super) fn take_ended(&mut self) -> Option<Vec<StreamItem>> {
        let last = self.items.iter().rposition(StreamItem::ends_transaction)?;
        let rest = self.items.split_off(last + 1);
        self.bytes = 0;
        Some(std::mem::replace(&mut self.items, rest))
    }

    /// Takes out all that waits.
    pub(in super::super) fn take_all(&mut self) -> Vec<StreamItem> {
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }

    /// A transaction by its short number.
    fn mark(&mut self, xid: u32, micros_since_2000: i64) -> CommitMark {
        const MICROS_TO_2000: i64 = 946_684_800_000_000;
        let low = u32::try_from(self.near & i64::from(u32::MAX)).unwrap_or_default();
        let step = xid.wrapping_sub(low).cast_signed();
        let id = self.near + i64::from(step);
        self.near = self.near.max(id);
        CommitMark { id, micros: micros_since_2000 + MICROS_TO_2000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> PendingChanges {
        PendingChanges::new(Lsn::ZERO, (5 << 32) - 1)
    }

    #[test]
    fn short_transaction_numbers_get_the_epoch_that_they_lie_near() {
        let mut pending = pending();
        assert_eq!(pending.mark(u32::MAX - 1, 0).id, (5 << 32) - 2, "older than the newest");
        assert_eq!(pending.mark(3, 0).id, (5 << 32) + 3, "after the wrap");
        assert_eq!(pending.mark(u32::MAX, 0).id, (5 << 32) - 1, "before it");
    }

    #[test]
    fn ended_transactions_leave_and_the_one_that_is_being_sent_stays() {
        let mut pending = pending();
        assert!(pending.take_ended().is_none() && pending.is_idle());
        for xid in [1, 2] {
            pending.begin(xid, 0, false);
            assert!(pending.end(Lsn::from_u64(u64::from(xid))).is_none());
        }
        pending.begin(3, 0, false);
        assert!(!pending.is_idle());
        assert_eq!(pending.take_ended().map(|items| items.len()), Some(2));
        assert!(pending.is_empty() && pending.take_ended().is_none());
        assert_eq!(pending.received, Lsn::from_u64(2));
    }

    #[test]
    fn a_transaction_that_the_log_has_leaves_nothing() {
        let mut pending = pending();
        pending.begin(1, 0, true);
        assert!(pending.end(Lsn::from_u64(1)).is_none());
        assert!(pending.is_idle());
    }

    #[test]
    fn a_batch_is_full_by_its_bytes() {
        let mut pending = pending();
        pending.count_bytes(BATCH_BYTES);
        assert!(pending.is_full());
        pending.take_all();
        assert!(!pending.is_full());
    }
}
