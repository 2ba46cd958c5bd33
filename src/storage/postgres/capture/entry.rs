//! An activity on its way into the log.

use std::collections::HashSet;
use std::sync::Arc;

use bourn_protocol::Action;

use crate::entity::EntityType;

/// One activity that has no place in the log yet.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) entity: Arc<EntityType>,
    pub(super) action: Action,
    pub(super) key: String,
    pub(super) scope: Option<String>,
    pub(super) transaction: Option<String>,
    pub(super) client: Option<String>,
    /// A JSON array.
    pub(super) changed_keys: Option<String>,
    /// The row after the change.
    pub(super) value: Option<Arc<str>>,
    /// The row before the change, where the type keeps it.
    pub(super) previous: Option<Arc<str>>,
    pub(super) commit: CommitMark,
    /// Of what it is its transaction's last change: 1 of its feed, 2 of its entity type.
    pub(super) last: i16,
}

/// Which transaction made a change, and when it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitMark {
    /// The transaction's number, epoch included.
    pub(super) id: i64,
    /// Microseconds since 1970.
    pub(super) micros: i64,
}

/// Marks the last changes of a whole transaction.
pub(super) fn mark_last(transaction: &mut [Entry]) {
    if let [only] = transaction {
        only.last = 3;
        return;
    }
    let (mut feeds, mut types) = (HashSet::new(), HashSet::new());
    for entry in transaction.iter_mut().rev() {
        let feed = feeds.insert((entry.entity.name.clone(), entry.scope.clone()));
        entry.last = i16::from(feed) + 2 * i16::from(types.insert(entry.entity.name.clone()));
    }
}
