//! An activity on its way into the log.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bourn_protocol::{Action, Last, Seq};

use crate::feed::Activity;
use crate::feed::entity::EntityType;

/// Maximum size in bytes of an activity's rows, the one after the change and the one before. PostgreSQL takes no statement of 1 GiB.
const ROWS_MAX_BYTES: usize = 512 << 20;

/// One activity that has no seq yet.
#[derive(Debug, Clone)]
pub(super) struct NewActivity {
    pub(super) entity: Arc<EntityType>,
    pub(super) action: Action,
    pub(super) key: String,
    pub(super) scope: Option<String>,
    pub(super) transaction: Option<String>,
    pub(super) client: Option<String>,
    /// The caller whose token it was made with.
    pub(super) subject: Option<String>,
    /// A JSON array.
    pub(super) changed_keys: Option<String>,
    /// The row after the change.
    pub(super) value: Option<Arc<str>>,
    /// The row before the change, where the type keeps it.
    pub(super) previous: Option<Arc<str>>,
    pub(super) commit: CommitMark,
    /// Whether this is its transaction's last change of its feed (1) and of its entity type (2).
    pub(super) last: i16,
}

impl NewActivity {
    /// Whether its rows have more bytes than the log takes.
    pub(super) fn is_too_large(&self) -> bool {
        let length = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        length(&self.value) + length(&self.previous) > ROWS_MAX_BYTES
    }
}

/// The transaction that made a change, and when it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitMark {
    /// The transaction's number, epoch included.
    pub(super) id: i64,
    /// Microseconds since 1970.
    pub(super) micros: i64,
}

/// The activities that the log has after these were appended behind a place.
pub(super) fn in_the_log(before: Seq, activities: Vec<NewActivity>) -> impl Iterator<Item = Activity> {
    (before.get() + 1..).zip(activities).filter_map(|(seq, activity)| {
        let time = Duration::from_micros(u64::try_from(activity.commit.micros).unwrap_or_default());
        Some(Activity {
            seq: Seq::new(seq)?,
            action: activity.action,
            entity_type: activity.entity.name.to_string(),
            entity_id: activity.key,
            organization_id: activity.scope,
            transaction_id: activity.transaction,
            client_id: activity.client,
            changed_keys: activity.changed_keys,
            value: activity.value.as_deref().map(Into::into),
            previous_values: activity.previous.as_deref().map(Into::into),
            commit_id: activity.commit.id,
            last: Last::from_log(activity.last.into()),
            created_at: humantime::format_rfc3339_millis(UNIX_EPOCH + time).to_string(),
            subject: activity.subject,
        })
    })
}

/// Marks the last changes of a whole transaction.
pub(super) fn mark_last(transaction: &mut [NewActivity]) {
    if let [only] = transaction {
        only.last = 3;
        return;
    }
    let (mut feeds, mut types) = (HashSet::new(), HashSet::new());
    for activity in transaction.iter_mut().rev() {
        let feed = feeds.insert((activity.entity.name.clone(), activity.scope.clone()));
        activity.last = i16::from(feed) + 2 * i16::from(types.insert(activity.entity.name.clone()));
    }
}

/// Marks the last changes of each of several whole transactions, one after the other.
pub(super) fn mark_last_of_each(activities: &mut [NewActivity]) {
    for transaction in activities.chunk_by_mut(|one, next| one.commit.id == next.commit.id) {
        mark_last(transaction);
    }
}
