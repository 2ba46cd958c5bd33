//! Rows that leave while their table is compared with the log. A list may have given such a row to a client that
//! follows the stream from there on, although the log does not have the row, or has it in another scope. So before the
//! row leaves its place (its key, its scope, or being visible), the log gets the row as it was; where the stream does
//! not send that, the log gets a deletion alone.

use bourn_protocol::Action;

use super::change::{Change, ChangeKind, RowBefore, Source};
use super::new_activity::NewActivity;
use super::settle::{LoggedRow, RowName, Settler};
use crate::databases::postgres::pgoutput::{Cell, OldTuple, Tuple};
use crate::databases::postgres::tables::layout::Piece;

impl Settler {
    /// Logs a row as it must be known before a change of a table that is being compared removes it.
    pub(super) fn catch_up(&mut self, change: &Change) {
        let source = &*change.source;
        let (old, new) = match &change.kind {
            ChangeKind::Insert(_) => return,
            ChangeKind::Update(old, new) => (old.as_ref(), Some(new)),
            ChangeKind::Delete(old) => (Some(old), None),
        };
        let Some(key) = change.former_key().or_else(|| change.key()) else { return };
        let whole = old.filter(|old| old.whole).map(|old| &old.tuple);
        // A row that was not visible is in no list.
        if whole.is_some_and(|old| !visible(source, old)) {
            return;
        }
        let scope = scope_of(source, old);
        let stays = |new: &Tuple| {
            change.former_key().is_none()
                && visible(source, new)
                && scope.as_ref().is_none_or(|scope| in_scope(source, new, scope.as_deref()))
        };
        if new.is_some_and(stays) {
            return;
        }
        let name: RowName = (source.entity.name.clone(), key.to_owned());
        let logged = self.logged_of(&name);
        if let Some(alive) = &logged.alive
            && scope.as_ref().is_none_or(|scope| *scope == alive.scope)
        {
            // The change itself is logged as a deletion there.
            return;
        }
        match whole {
            Some(old) => {
                if let Some(alive) = &logged.alive {
                    let before = RowBefore::of_logged(source, alive.scope.clone(), &alive.value);
                    let left = self.activity(change, Action::Delete, key, alive.scope.clone());
                    self.push(&name, left.was(source, &before));
                }
                let before = RowBefore::whole(source, old);
                let there = self.activity(change, Action::Create, key, before.scope.clone());
                self.push(&name, NewActivity { value: Some(before.json(source)), ..there });
            }
            None if self.has_ended(&logged) => {}
            None => {
                let scope = scope.unwrap_or_else(|| likely_scope(source, new, &logged));
                let left = self.activity(change, Action::Delete, key, scope);
                let left = left.by(change.ids.as_deref(), None, None);
                match logged.alive {
                    // In another scope it is alive until the change itself is logged.
                    Some(_) => self.activities.push(left),
                    None => self.push(&name, left),
                }
            }
        }
    }

    /// Whether the log has the row's deletion, from the time since this server logs all changes.
    fn has_ended(&self, logged: &LoggedRow) -> bool {
        logged.alive.is_none() && logged.commit.is_some_and(|commit| commit >= self.since)
    }
}

fn visible(source: &Source, tuple: &Tuple) -> bool {
    source.layout.visible(|at| Piece::of(tuple.get(at).and_then(Cell::text)))
}

/// The scope of the old row; `None` where the stream does not send it.
fn scope_of(source: &Source, old: Option<&OldTuple>) -> Option<Option<String>> {
    let Some(at) = source.layout.scope else { return Some(None) };
    let old = old?;
    let text = old.tuple.get(at).and_then(Cell::text);
    // The columns of an identity that is not the whole row are never null; the other columns are sent as nulls.
    (old.whole || text.is_some()).then(|| text.map(Into::into))
}

/// Whether a new row is in this scope. A value that it does not repeat is as before.
fn in_scope(source: &Source, new: &Tuple, scope: Option<&str>) -> bool {
    source.layout.scope.and_then(|at| new.get(at)).is_none_or(|cell| match cell {
        Cell::Unchanged => true,
        cell => cell.text() == scope,
    })
}

/// The scope of a row that an update hides: unchanged if an identity that has the scope says so; else the one that the
/// log last had the row in.
fn likely_scope(source: &Source, new: Option<&Tuple>, logged: &LoggedRow) -> Option<String> {
    let at = source.layout.scope?;
    if let Some(scope) = new.and_then(|new| new.get(at)).and_then(Cell::text) {
        return Some(scope.to_owned());
    }
    let values: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(logged.last_value.as_deref()?).ok()?;
    match values.get(&source.layout.columns[at].name)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
