//! The activities that this server has just appended to the log, so that its own live tail need not read them back.
//! Empty on servers that do not append.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bourn_protocol::Seq;

use crate::feed::Activity;

/// Most activities that are kept.
const ROWS_MAX: usize = 4_096;
/// Maximum size in bytes of their rows that are kept.
const BYTES_MAX: usize = 8 << 20;

/// The newest activities of the log, without gaps.
#[derive(Debug, Default)]
pub(in super::super) struct Recent(Mutex<ActivityRing>);

#[derive(Debug, Default)]
struct ActivityRing {
    activities: VecDeque<Activity>,
    bytes: usize,
}

impl Recent {
    /// Takes activities that were appended. If they do not follow those that are kept, they replace them.
    pub(in super::super) fn push(&self, appended: impl IntoIterator<Item = Activity>) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for activity in appended {
            if ring.activities.back().is_some_and(|last| last.seq.get() + 1 != activity.seq.get()) {
                *ring = ActivityRing::default();
            }
            ring.bytes += activity.row_bytes();
            ring.activities.push_back(activity);
            while ring.activities.len() > ROWS_MAX || ring.bytes > BYTES_MAX {
                let Some(oldest) = ring.activities.pop_front() else { break };
                ring.bytes -= oldest.row_bytes();
            }
        }
    }

    /// Forgets all activities: another server appends now.
    pub(in super::super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ActivityRing::default();
    }

    /// The activities after a place, within limits, and whether a limit was reached; `None` if some of them are not
    /// here.
    pub(in super::super) fn after(
        &self,
        place: Seq,
        most_rows: usize,
        most_bytes: usize,
    ) -> Option<(Vec<Activity>, bool)> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.activities.front()?.seq;
        let skipped = usize::try_from((place.get() + 1).checked_sub(first.get())?).ok()?;
        let (mut activities, mut bytes) = (Vec::new(), 0);
        for activity in ring.activities.iter().skip(skipped) {
            bytes += activity.row_bytes();
            activities.push(activity.clone());
            if activities.len() >= most_rows || bytes >= most_bytes {
                return Some((activities, true));
            }
        }
        // At the end of these the database may have more: another server may append.
        (!activities.is_empty()).then_some((activities, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bourn_protocol::{Action, Last};

    fn activity(seq: u64) -> Activity {
        Activity {
            seq: Seq::new(seq).unwrap(),
            action: Action::Create,
            entity_type: "page".into(),
            entity_id: seq.to_string(),
            organization_id: None,
            transaction_id: None,
            client_id: None,
            changed_keys: None,
            value: Some("{}".into()),
            previous_values: None,
            commit_id: 1,
            last: Last::default(),
            created_at: String::new(),
            subject: None,
        }
    }

    fn after(recent: &Recent, place: u64) -> Option<Vec<u64>> {
        let (activities, _) = recent.after(Seq::new(place).unwrap(), 100, 1 << 20)?;
        Some(activities.iter().map(|activity| activity.seq.get()).collect())
    }

    #[test]
    fn only_what_follows_without_a_gap_is_given() {
        let recent = Recent::default();
        assert_eq!(after(&recent, 0), None);
        recent.push((5..8).map(activity));
        assert_eq!(after(&recent, 3), None, "what lies between is not here");
        assert_eq!(after(&recent, 4), Some(vec![5, 6, 7]));
        assert_eq!(after(&recent, 6), Some(vec![7]));
        assert_eq!(after(&recent, 7), None, "the database is asked");
        recent.push([activity(10)]);
        assert_eq!(after(&recent, 7), None);
        assert_eq!(after(&recent, 9), Some(vec![10]));
        recent.clear();
        assert_eq!(after(&recent, 9), None);
    }

    #[test]
    fn memory_is_bounded() {
        let recent = Recent::default();
        recent.push((1..10_000).map(activity));
        assert_eq!(after(&recent, 0), None);
        assert_eq!(recent.0.lock().unwrap().activities.len(), ROWS_MAX);
    }
}
