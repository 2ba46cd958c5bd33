//! One change of one row as the replication stream reports it, and what follows from it alone.

use std::collections::HashMap;
use std::sync::Arc;

use bourn_protocol::ClientId;
use serde_json::value::RawValue;

use super::new_activity::CommitMark;
use crate::databases::postgres::pgoutput::{Cell, OldTuple, Tuple};
use crate::databases::postgres::tables::layout::{Layout, Piece, Stamps};
use crate::feed::entity::EntityType;

/// A streamed table as the stream describes it now.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) entity: Arc<EntityType>,
    pub(super) layout: Layout,
}

/// What happened to a row.
#[derive(Debug)]
pub(super) enum ChangeKind {
    Insert(Tuple),
    Update(Option<OldTuple>, Tuple),
    Delete(OldTuple),
}

/// One change of one row.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) source: Arc<Source>,
    pub(super) kind: ChangeKind,
    /// The transaction and the client, as a logical message named them.
    pub(super) ids: Option<Arc<Ids>>,
    pub(super) commit: CommitMark,
    /// The log has the table as it is, so that the row's old version can be taken from the stream.
    pub(super) settled: bool,
}

/// The transaction and the client that a logical message names.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ids {
    pub(super) transaction_id: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) subject: Option<String>,
}

impl Change {
    /// The key of the row after the change; of a deleted row, before it.
    pub(super) fn key(&self) -> Option<&str> {
        let at = self.source.layout.key;
        match &self.kind {
            ChangeKind::Insert(new) => new.get(at)?.text(),
            // A long key that did not change may not be repeated in the new row; the old one has it then.
            ChangeKind::Update(old, new) => {
                new.get(at)?.text().or_else(|| old.as_ref()?.tuple.get(at)?.text())
            }
            ChangeKind::Delete(old) => old.tuple.get(at)?.text(),
        }
    }

    /// The key before the change, if that changed it.
    pub(super) fn former_key(&self) -> Option<&str> {
        match &self.kind {
            ChangeKind::Update(Some(old), _) => {
                old.tuple.get(self.source.layout.key)?.text().filter(|key| Some(*key) != self.key())
            }
            _ => None,
        }
    }

    /// The whole old row, if the change has it and it can be relied on.
    pub(super) fn old_row(&self) -> Option<&Tuple> {
        match &self.kind {
            ChangeKind::Update(Some(old), _) | ChangeKind::Delete(old) if old.whole && self.settled => {
                Some(&old.tuple)
            }
            _ => None,
        }
    }

    /// Whether the log must be asked for the row's last version.
    pub(super) fn needs_log(&self) -> bool {
        match &self.kind {
            // The row may have existed before: ids that it contains may be another writer's.
            ChangeKind::Insert(new) => {
                !self.settled || {
                    let stamps = self.source.stamps(new);
                    stamps.update.or(stamps.insert).is_some_and(|stamp| {
                        self.ids.as_ref().and_then(|ids| ids.transaction_id.as_ref()) != Some(&stamp)
                    })
                }
            }
            ChangeKind::Update(..) | ChangeKind::Delete(_) => self.old_row().is_none(),
        }
    }
}

impl Source {
    /// The ids in a row's `transactions`.
    pub(super) fn stamps(&self, tuple: &Tuple) -> Stamps {
        Stamps::read(self.layout.transactions.and_then(|at| tuple.get(at)?.text()))
    }

    /// The value of a row's column, if the row is whole.
    pub(super) fn text<'a>(&self, tuple: &'a Tuple, at: Option<usize>) -> Option<&'a str> {
        at.and_then(|at| tuple.get(at)).and_then(Cell::text)
    }
}

/// A row's version before the change.
pub(super) struct RowBefore<'a> {
    pub(super) scope: Option<String>,
    pub(super) stamps: Stamps,
    pub(super) client: Option<String>,
    /// Its values, from the stream or from the log.
    values: Values<'a>,
}

enum Values<'a> {
    Tuple(&'a Tuple),
    Logged(HashMap<String, Box<RawValue>>, Arc<str>),
}

impl<'a> RowBefore<'a> {
    /// From the stream's whole old row; `None` if that was not visible.
    pub(super) fn of_tuple(source: &Source, tuple: &'a Tuple) -> Option<RowBefore<'a>> {
        let piece = |i: usize| Piece::of(tuple.get(i).and_then(Cell::text));
        source.layout.visible(piece).then(|| RowBefore::whole(source, tuple))
    }

    /// From the stream's whole old row, visible or not.
    pub(super) fn whole(source: &Source, tuple: &'a Tuple) -> RowBefore<'a> {
        RowBefore {
            scope: source.text(tuple, source.layout.scope).map(Into::into),
            stamps: source.stamps(tuple),
            client: source
                .text(tuple, source.layout.client)
                .filter(|client| ClientId::new(client).is_ok())
                .map(Into::into),
            values: Values::Tuple(tuple),
        }
    }

    /// From the log's last version.
    pub(super) fn of_logged(source: &Source, scope: Option<String>, json: &Arc<str>) -> RowBefore<'a> {
        let values: HashMap<String, Box<RawValue>> = serde_json::from_str(json).unwrap_or_default();
        let named = |at: Option<usize>| at.and_then(|at| values.get(&source.layout.columns[at].name));
        let client =
            named(source.layout.client).and_then(|raw| serde_json::from_str(raw.get()).ok()).flatten();
        let client = client.filter(|client: &String| ClientId::new(client).is_ok());
        RowBefore {
            scope,
            stamps: Stamps::read(named(source.layout.transactions).map(|raw| raw.get())),
            client,
            values: Values::Logged(values, json.clone()),
        }
    }

    /// The row as JSON.
    pub(super) fn json(&self, source: &Source) -> Arc<str> {
        match &self.values {
            Values::Tuple(tuple) => {
                source.layout.json(|at| Piece::of(tuple.get(at).and_then(Cell::text))).into()
            }
            Values::Logged(_, json) => json.clone(),
        }
    }

    /// The columns with values that the table no longer has; only the log's version of a row can have such.
    pub(super) fn dropped(&self, source: &Source) -> Vec<&str> {
        let Values::Logged(values, _) = &self.values else { return Vec::new() };
        let has = |name: &str| source.layout.columns.iter().any(|column| *column.name == *name);
        let dropped = values.iter().filter(|(name, value)| value.get() != "null" && !has(name));
        let mut dropped: Vec<_> = dropped.map(|(name, _)| name.as_str()).collect();
        dropped.sort_unstable();
        dropped
    }

    fn piece(&self, source: &Source, at: usize) -> Option<Piece<'_>> {
        match &self.values {
            Values::Tuple(tuple) => tuple.get(at).map(|cell| Piece::of(cell.text())),
            Values::Logged(values, _) => {
                values.get(&source.layout.columns[at].name).map(|raw| match raw.get() {
                    "null" => Piece::Null,
                    json => Piece::Json(json),
                })
            }
        }
    }
}

/// A row's version after the change: values that the change does not repeat are as before.
pub(super) struct RowAfter<'a> {
    source: &'a Source,
    tuple: &'a Tuple,
    before: Option<&'a RowBefore<'a>>,
}

impl<'a> RowAfter<'a> {
    /// `None` if a value is neither in the change nor known from before.
    pub(super) fn new(
        source: &'a Source,
        tuple: &'a Tuple,
        before: Option<&'a RowBefore<'a>>,
    ) -> Option<RowAfter<'a>> {
        let after = RowAfter { source, tuple, before };
        let known = |(i, cell): (usize, &Cell)| {
            *cell != Cell::Unchanged || before.is_some_and(|before| before.piece(source, i).is_some())
        };
        tuple.iter().enumerate().all(known).then_some(after)
    }

    pub(super) fn piece(&self, at: usize) -> Piece<'_> {
        match self.tuple.get(at) {
            Some(Cell::Text(_)) => Piece::of(self.tuple.get(at).and_then(Cell::text)),
            Some(Cell::Unchanged) => {
                self.before.and_then(|before| before.piece(self.source, at)).unwrap_or(Piece::Null)
            }
            Some(Cell::Null) | None => Piece::Null,
        }
    }

    pub(super) fn json(&self) -> Arc<str> {
        self.source.layout.json(|at| self.piece(at)).into()
    }

    pub(super) fn stamps(&self) -> Stamps {
        match self.source.layout.transactions.map(|at| self.piece(at)) {
            Some(Piece::Text(json) | Piece::Json(json)) => Stamps::read(Some(json)),
            _ => Stamps::default(),
        }
    }

    /// The columns that changed, by index.
    pub(super) fn changed(&self, before: &RowBefore<'_>) -> Vec<usize> {
        let differs = |&at: &usize| {
            if self.tuple.get(at) == Some(&Cell::Unchanged) {
                return false;
            }
            let now = self.piece(at);
            match before.piece(self.source, at) {
                // A column that was added alone is no change.
                None => now != Piece::Null,
                Some(then) if then == now => false,
                Some(Piece::Json(then)) => {
                    let mut json = Vec::new();
                    now.push(&self.source.layout.columns[at].form, &mut json);
                    json != then.as_bytes()
                }
                Some(_) => true,
            }
        };
        (0..self.source.layout.columns.len()).filter(differs).collect()
    }
}
