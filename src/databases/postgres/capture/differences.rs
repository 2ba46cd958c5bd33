//! What a step of comparing a table with the log finds: rows that differ from the log's last state of them.

use std::collections::HashMap;
use std::sync::Arc;

use bourn_protocol::Action;

use super::new_activity::{CommitMark, NewActivity};
use super::prior::Prior;
use super::scan::ScanStep;
use super::settle::RowName;
use crate::capture::compare::{Difference, RowVersion, difference};
use crate::feed::entity::EntityType;

/// The activities that the log lacks of a step. Transactions of activities up to `foreign_until` were another
/// database's; `changed_unseen` is whether a row was changed by a transaction that the step's snapshot does not see.
pub(super) fn differences(
    entity: &Arc<EntityType>,
    step: &ScanStep,
    priors: &HashMap<RowName, Prior>,
    commit: CommitMark,
    foreign_until: i64,
    changed_unseen: impl Fn(&RowName) -> bool,
) -> Vec<NewActivity> {
    let activity =
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
    let rows = step.rows.iter().map(|row| (row.key.as_str(), Some(row)));
    let missing = step.missing.iter().map(|key| (key.as_str(), None));
    let mut activities = Vec::new();
    for (key, row) in rows.chain(missing).filter(|(key, _)| counts(key)) {
        let alive = newest(key).and_then(|prior| prior.logged.alive.clone());
        let logged = alive.as_ref().map(|alive| version(alive.scope.as_deref(), &alive.value));
        let difference = difference(key, logged, row.map(|row| version(row.scope.as_deref(), &row.value)));
        let (logged_scope, previous) = alive.map(|alive| (alive.scope, alive.value)).unzip();
        let (scope, value) = row.map(|row| (row.scope.clone(), row.value.clone())).unzip();
        let (logged_scope, scope) = (logged_scope.flatten(), scope.flatten());
        match difference {
            Difference::Nothing => {}
            Difference::Create => activities.push(activity(Action::Create, key, scope, value, None)),
            Difference::Update => activities.push(activity(Action::Update, key, scope, value, previous)),
            Difference::Delete => {
                activities.push(activity(Action::Delete, key, logged_scope, None, previous));
            }
            Difference::Move => {
                activities.push(activity(Action::Delete, key, logged_scope, None, previous));
                activities.push(activity(Action::Create, key, scope, value, None));
            }
        }
    }
    activities
}

fn version<'a>(scope: Option<&'a str>, json: &'a str) -> RowVersion<'a> {
    RowVersion { scope, json }
}
