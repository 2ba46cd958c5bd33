//! From changes of rows to activities: what a change means to those who follow the table. A row that takes another
//! scope or key leaves one place and enters another; one that is deleted softly is gone; an update that changes
//! nothing, or only announces the delete that follows it, is nothing.

use std::collections::HashMap;
use std::sync::Arc;

use bourn_protocol::{Action, ClientId};

use super::change::{Change, ChangeKind, Ids, RowAfter, RowBefore, Source};
use super::new_activity::{NewActivity, mark_last};
use crate::capture::settle::{RowPlace, Transition};
use crate::databases::postgres::pgoutput::Tuple;
use crate::databases::postgres::tables::layout::{Piece, Stamps};

/// Most announced deletes of one transaction that may be pending; further ones are logged as the updates they are.
const ANNOUNCED_MAX: usize = 10_000;

/// A row: its entity type's name and its key.
pub(super) type RowName = (Arc<str>, String);

/// What the log has of a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LoggedRow {
    /// Where it is, if it is alive.
    pub(super) alive: Option<Alive>,
    /// The last version of it, alive or not.
    pub(super) last_value: Option<Arc<str>>,
    /// The transaction of its last activity.
    pub(super) commit: Option<i64>,
}

/// A row that the log has alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alive {
    pub(super) scope: Option<String>,
    pub(super) value: Arc<str>,
}

/// Makes activities of changes, transaction by transaction.
#[derive(Debug, Default)]
pub(super) struct Settler {
    /// The rows whose last versions were asked of the log, kept up to date with the changes since.
    logged: HashMap<RowName, LoggedRow>,
    /// Updates that only announce a delete, until it comes or the transaction ends.
    announced: HashMap<RowName, (usize, NewActivity, Announced)>,
    announced_so_far: usize,
    /// The activities so far.
    pub(super) activities: Vec<NewActivity>,
    /// Entity types that had a change which needs more of the row than the log has.
    pub(super) unknown: Vec<Arc<str>>,
    /// Rows of tables that are being compared that had a change which left nothing in the log, by its transaction.
    pub(super) unseen: Vec<(RowName, i64)>,
    /// From this transaction on, this server logs all changes.
    pub(super) since: i64,
    /// Where the transaction began.
    start: usize,
}

/// The transaction and the client of an announced delete.
#[derive(Debug, Clone)]
struct Announced {
    transaction: Option<String>,
    client: Option<String>,
}

impl Settler {
    /// A settler that gets every transaction from this one on.
    pub(super) fn new(since: i64) -> Settler {
        Settler { since, ..Settler::default() }
    }

    /// Takes what the log has of rows, and forgets what it took before.
    pub(super) fn know(&mut self, logged: HashMap<RowName, LoggedRow>) {
        self.logged = logged;
    }

    /// Takes one change.
    pub(super) fn take(&mut self, change: &Change) {
        let Some(key) = change.key() else { return };
        let name: RowName = (change.source.entity.name.clone(), key.to_owned());
        let announced = self.announced.remove(&name);
        let told = self.activities.len();
        if !change.settled {
            self.catch_up(change);
        }
        match &change.kind {
            ChangeKind::Delete(old) => {
                let ids = announced.map(|(_, _, ids)| ids);
                self.delete(change, &name, &old.tuple, ids);
            }
            kind => {
                if let Some((_, update, _)) = announced {
                    self.activities.push(update);
                }
                match kind {
                    ChangeKind::Insert(new) => self.insert(change, name, new),
                    ChangeKind::Update(_, new) => self.update(change, name, new),
                    ChangeKind::Delete(_) => {}
                }
            }
        }
        if !change.settled && self.activities.len() == told {
            self.unseen.push(((change.source.entity.name.clone(), key.to_owned()), change.commit.id));
        }
    }

    /// Ends a transaction; returns its activities.
    pub(super) fn end_transaction(&mut self) -> &[NewActivity] {
        self.end_part();
        let start = std::mem::replace(&mut self.start, self.activities.len());
        mark_last(&mut self.activities[start..]);
        &self.activities[start..]
    }

    /// The transaction's changes are taken out before it has ended, or at its end: what is announced goes with
    /// them only at the end.
    pub(super) fn end_part(&mut self) {
        let mut announced: Vec<_> =
            self.announced.drain().map(|(_, (order, update, _))| (order, update)).collect();
        announced.sort_by_key(|(order, _)| *order);
        self.activities.extend(announced.into_iter().map(|(_, update)| update));
    }

    /// Returns the activities and starts over.
    pub(super) fn finish(&mut self) -> Vec<NewActivity> {
        self.start = 0;
        std::mem::take(&mut self.activities)
    }

    fn insert(&mut self, change: &Change, name: RowName, new: &Tuple) {
        let source = &*change.source;
        let logged = self.logged.get(&name).cloned().unwrap_or_default();
        let Some(after) = RowAfter::new(source, new, None) else { return self.not_understood(source) };
        let before = logged
            .alive
            .as_ref()
            .map(|alive| RowBefore::of_logged(source, alive.scope.clone(), &alive.value));
        if let Some(before) = before {
            // The log has the row already: the comparison of its table was faster than the stream.
            return self.settle(change, name, Some(&before), None, &after);
        }
        if !source.layout.visible(|at| after.piece(at)) {
            return;
        }
        let known = match &logged.last_value {
            Some(json) => RowBefore::of_logged(source, None, json).stamps,
            None => Stamps::default(),
        };
        let stamps = after.stamps();
        let fresh = |now: &Option<String>, then: &Option<String>| now.clone().filter(|_| now != then);
        let stamp = fresh(&stamps.update, &known.update).or_else(|| fresh(&stamps.insert, &known.insert));
        let first = logged.last_value.is_none();
        let client = client_of(source, &after).filter(|_| first || stamp.is_some());
        let activity = self.activity(change, Action::Create, &name.1, scope_of(source, &after));
        let activity =
            NewActivity { value: Some(after.json()), ..activity.by(change.ids.as_deref(), stamp, client) };
        self.push(&name, activity);
    }

    fn update(&mut self, change: &Change, name: RowName, new: &Tuple) {
        let source = &*change.source;
        if let Some(former) = change.former_key() {
            // It leaves the place of its old key and enters that of the new one.
            let former: RowName = (name.0.clone(), former.to_owned());
            let logged = self.logged.get(&former).cloned().unwrap_or_default();
            let before = before(change, source, &logged);
            let Some(after) = RowAfter::new(source, new, before.as_ref()) else {
                return self.not_understood(source);
            };
            let entered = self.logged.get(&name).and_then(|logged| logged.alive.clone());
            let there = entered.map(|alive| RowBefore::of_logged(source, alive.scope, &alive.value));
            let (stamp, client) = changed_ids(source, before.as_ref(), &after, &["update"]);
            if let Some(before) = &before {
                let activity = self.activity(change, Action::Delete, &former.1, before.scope.clone());
                let activity =
                    activity.by(change.ids.as_deref(), stamp.clone(), client.clone()).was(source, before);
                self.push(&former, activity);
            }
            if there.is_some() {
                return self.settle(change, name, there.as_ref(), None, &after);
            }
            if source.layout.visible(|at| after.piece(at)) {
                let activity = self.activity(change, Action::Create, &name.1, scope_of(source, &after));
                let activity = NewActivity {
                    value: Some(after.json()),
                    ..activity.by(change.ids.as_deref(), stamp, client)
                };
                self.push(&name, activity);
            }
            return;
        }
        let logged = self.logged.get(&name).cloned().unwrap_or_default();
        let hidden = logged.last_value.as_ref().filter(|_| logged.alive.is_none());
        let hidden = hidden.map(|json| RowBefore::of_logged(source, None, json));
        let before = before(change, source, &logged);
        // The log's last state of a hidden row may be old: values that are not repeated are not taken from it.
        let old = change.old_row().map(|tuple| RowBefore::whole(source, tuple));
        let filler = before.as_ref().or(old.as_ref());
        let Some(after) = RowAfter::new(source, new, filler) else { return self.not_understood(source) };
        self.settle(change, name, before.as_ref(), old.as_ref().or(hidden.as_ref()), &after);
    }

    /// Settles a row that keeps its key, from its old to its new version. `hidden` is an old version that was not
    /// visible.
    fn settle(
        &mut self,
        change: &Change,
        name: RowName,
        before: Option<&RowBefore<'_>>,
        hidden: Option<&RowBefore<'_>>,
        after: &RowAfter<'_>,
    ) {
        let source = &*change.source;
        let ids = change.ids.as_deref();
        let scope = scope_of(source, after);
        let place = |scope| RowPlace { key: &name.1, scope };
        let (was, is) = (
            before.map(|before| place(before.scope.as_deref())),
            source.layout.visible(|at| after.piece(at)).then(|| place(scope.as_deref())),
        );
        match (Transition::between(was, is), before) {
            (Transition::Hidden, _) => {}
            (Transition::Enters, _) | (_, None) => {
                let (stamp, client) = changed_ids(source, hidden, after, &["update"]);
                let activity = self.activity(change, Action::Create, &name.1, scope).by(ids, stamp, client);
                self.push(&name, NewActivity { value: Some(after.json()), ..activity });
            }
            (Transition::Leaves, Some(before)) => {
                let (stamp, client) = changed_ids(source, Some(before), after, &["delete", "update"]);
                let activity = self.activity(change, Action::Delete, &name.1, before.scope.clone());
                self.push(&name, activity.by(ids, stamp, client).was(source, before));
            }
            (Transition::Moves, Some(before)) => {
                let (stamp, client) = changed_ids(source, Some(before), after, &["update"]);
                let left = self.activity(change, Action::Delete, &name.1, before.scope.clone());
                self.push(&name, left.by(ids, stamp.clone(), client.clone()).was(source, before));
                let entered = self.activity(change, Action::Create, &name.1, scope).by(ids, stamp, client);
                self.push(&name, NewActivity { value: Some(after.json()), ..entered });
            }
            (Transition::Stays, Some(before)) => {
                let changed = after.changed(before);
                // An update that alters no value still takes a dropped column out of the log's version.
                let dropped = before.dropped(source);
                if changed.is_empty() && dropped.is_empty() {
                    return;
                }
                let (stamp, client) = changed_ids(source, Some(before), after, &["update"]);
                let keys = changed.iter().map(|&at| &source.layout.columns[at]);
                let keys = keys.filter(|column| !column.bookkeeping).map(|column| &*column.name);
                let keys: Vec<_> = keys.chain(dropped).collect();
                let announced = self.announcement(source, before, after, &changed);
                let activity = self
                    .activity(change, Action::Update, &name.1, scope)
                    .by(ids, stamp, client)
                    .was(source, before);
                let value = after.json();
                let changed_keys = serde_json::to_string(&keys).ok();
                let activity = NewActivity { value: Some(value.clone()), changed_keys, ..activity };
                if let Some(announced) = announced {
                    self.note(&name, &activity);
                    self.announced_so_far += 1;
                    self.announced.insert(name, (self.announced_so_far, activity, announced));
                } else {
                    self.push(&name, activity);
                }
            }
        }
    }

    /// The update only names who is about to delete the row: the delete that follows carries that.
    fn announcement(
        &self,
        source: &Source,
        before: &RowBefore<'_>,
        after: &RowAfter<'_>,
        changed: &[usize],
    ) -> Option<Announced> {
        let quiet = |at: &usize| Some(*at) == source.layout.transactions || Some(*at) == source.layout.client;
        let now = after.stamps();
        let announces =
            now.delete.is_some() && now.delete != before.stamps.delete && now.update == before.stamps.update;
        let fits = announces && changed.iter().all(quiet) && self.announced.len() < ANNOUNCED_MAX;
        fits.then(|| Announced { transaction: now.delete, client: client_of(source, after) })
    }

    fn delete(&mut self, change: &Change, name: &RowName, old: &Tuple, announced: Option<Announced>) {
        let source = &*change.source;
        let logged = self.logged.get(name).cloned().unwrap_or_default();
        let before = match change.old_row() {
            Some(_) => RowBefore::of_tuple(source, old),
            None => logged.alive.map(|alive| RowBefore::of_logged(source, alive.scope, &alive.value)),
        };
        let Some(before) = before else { return };
        let (stamp, client) = announced.map_or((None, None), |ids| (ids.transaction, ids.client));
        let activity = self.activity(change, Action::Delete, &name.1, before.scope.clone());
        self.push(name, activity.by(change.ids.as_deref(), stamp, client).was(source, &before));
    }

    /// What the log has of a row.
    pub(super) fn logged_of(&self, name: &RowName) -> LoggedRow {
        self.logged.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn activity(
        &self,
        change: &Change,
        action: Action,
        key: &str,
        scope: Option<String>,
    ) -> NewActivity {
        NewActivity {
            entity: change.source.entity.clone(),
            action,
            key: key.to_owned(),
            scope,
            transaction: None,
            client: None,
            subject: None,
            changed_keys: None,
            value: None,
            previous: None,
            commit: change.commit,
            last: 0,
        }
    }

    pub(super) fn push(&mut self, name: &RowName, activity: NewActivity) {
        self.note(name, &activity);
        self.activities.push(activity);
    }

    /// Updates what is known of the log's rows with an activity that is about to be appended.
    fn note(&mut self, name: &RowName, activity: &NewActivity) {
        if let Some(logged) = self.logged.get_mut(name) {
            logged.alive = activity.value.clone().map(|value| Alive { scope: activity.scope.clone(), value });
            logged.last_value = activity.value.clone().or(logged.last_value.take());
            logged.commit = Some(activity.commit.id);
        }
    }

    fn not_understood(&mut self, source: &Source) {
        if !self.unknown.contains(&source.entity.name) {
            self.unknown.push(source.entity.name.clone());
        }
    }
}

impl NewActivity {
    /// Sets the transaction and the client: from the row itself first, then from a message.
    pub(super) fn by(
        mut self,
        ids: Option<&Ids>,
        stamp: Option<String>,
        client: Option<String>,
    ) -> NewActivity {
        self.transaction = stamp.or_else(|| ids.and_then(|ids| ids.transaction_id.clone()));
        self.client = client.or_else(|| ids.and_then(|ids| ids.client_id.clone()));
        self.subject = ids.and_then(|ids| ids.subject.clone());
        self
    }

    /// Adds the row before the change, where its type keeps that.
    pub(super) fn was(mut self, source: &Source, before: &RowBefore<'_>) -> NewActivity {
        self.previous = self.entity.previous_values.then(|| before.json(source));
        self
    }
}

/// The row before the change, if it was visible.
fn before<'a>(change: &'a Change, source: &Source, logged: &LoggedRow) -> Option<RowBefore<'a>> {
    match change.old_row() {
        Some(tuple) => RowBefore::of_tuple(source, tuple),
        None => {
            logged.alive.as_ref().map(|alive| RowBefore::of_logged(source, alive.scope.clone(), &alive.value))
        }
    }
}

fn scope_of(source: &Source, after: &RowAfter<'_>) -> Option<String> {
    text_at(after, source.layout.scope)
}

fn client_of(source: &Source, after: &RowAfter<'_>) -> Option<String> {
    text_at(after, source.layout.client).filter(|client| ClientId::new(client).is_ok())
}

fn text_at(after: &RowAfter<'_>, at: Option<usize>) -> Option<String> {
    match after.piece(at?) {
        Piece::Null => None,
        Piece::Text(text) => Some(text.to_owned()),
        Piece::Json(json) => serde_json::from_str(json).ok(),
    }
}

/// The first of the row's transaction ids that this change has set, and the client, if the change set that or another
/// client than before. A writer that left `transactions` as it was passes on no id of an earlier writer.
fn changed_ids(
    source: &Source,
    before: Option<&RowBefore<'_>>,
    after: &RowAfter<'_>,
    actions: &[&str],
) -> (Option<String>, Option<String>) {
    let none = Stamps::default();
    let then = before.map_or(&none, |before| &before.stamps);
    let now = after.stamps();
    let stamp = actions.iter().find_map(|action| {
        let pick = |stamps: &Stamps| match *action {
            "update" => stamps.update.clone(),
            _ => stamps.delete.clone(),
        };
        pick(&now).filter(|stamp| Some(stamp) != pick(then).as_ref())
    });
    let client = client_of(source, after);
    let same = client.as_ref() == before.and_then(|before| before.client.as_ref());
    let client = client.filter(|_| !same || stamp.is_some());
    (stamp, client)
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
