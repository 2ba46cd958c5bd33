//! What a step of comparing a table with the log finds: rows that differ from the log's last state of them.

use std::collections::HashMap;
use std::sync::Arc;

use bourn_protocol::Action;

use super::new_activity::{CommitMark, NewActivity};
use super::prior::Prior;
use super::scan::Step;
use super::settle::RowName;
use crate::capture::compare::same;
use crate::feed::entity::EntityType;

/// The activities that the log lacks of a step. Transactions of activities up to `foreign_until` were another
/// database's; `changed_unseen` is whether a row was changed by a transaction that the step's snapshot does not see.
pub(super) fn differences(
    entity: &Arc<EntityType>,
    step: &Step,
    priors: &HashMap<RowName, Prior>,
    commit: CommitMark,
    foreign_until: i64,
    changed_unseen: impl Fn(&RowName) -> bool,
) -> Vec<NewActivity> {
    let entry =
        |action, key: &str, scope: Option<String>, value: Option<Arc<str>>, previous: Option<Arc<str>>| {
            NewActivity {
                entity: entity.clone(),
                action,
                key: key.to_owned(),
                scope,
                transaction: None,
                client: None,
                subject: None,
                changed_keys: None,
                value,
                previous: previous.filter(|_| entity.previous_values),
                commit,
                last: 0,
            }
        };
    let newest = |key: &str| priors.get(&(entity.name.clone(), key.to_owned()));
    let known = |prior: &Prior| prior.seq <= foreign_until || step.snapshot.sees(prior.commit_id);
    let seen = |key: &str| newest(key).is_none_or(known);
    let counts = |key: &str| seen(key) && !changed_unseen(&(entity.name.clone(), key.to_owned()));
    let mut entries = Vec::new();
    for row in step.rows.iter().filter(|row| counts(&row.key)) {
        let (key, value) = (&row.key, Some(row.value.clone()));
        match newest(key).and_then(|prior| prior.logged.alive.clone()) {
            None => entries.push(entry(Action::Create, key, row.scope.clone(), value, None)),
            Some(alive) if alive.scope != row.scope => {
                entries.push(entry(Action::Delete, key, alive.scope, None, Some(alive.value)));
                entries.push(entry(Action::Create, key, row.scope.clone(), value, None));
            }
            Some(alive) if !same(Some(&alive.value), &row.value) => {
                entries.push(entry(Action::Update, key, row.scope.clone(), value, Some(alive.value)));
            }
            Some(_) => {}
        }
    }
    for key in step.missing.iter().filter(|key| counts(key)) {
        if let Some(alive) = newest(key).and_then(|prior| prior.logged.alive.clone()) {
            entries.push(entry(Action::Delete, key, alive.scope, None, Some(alive.value)));
        }
    }
    entries
}
