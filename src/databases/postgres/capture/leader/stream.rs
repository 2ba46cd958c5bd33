//! The stream's messages: tables become sources, rows become changes, and a writer's own message names the transaction
//! and the client.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bourn_protocol::{ClientId, TransactionId};
use bytes::Bytes;

use super::Leader;
use crate::databases::postgres::capture::CaptureError;
use crate::databases::postgres::capture::change::{Change, ChangeKind, Ids, Source};
use crate::databases::postgres::pgoutput::{Message, Relation, decode};
use crate::databases::postgres::refresh;
use crate::databases::postgres::shared::Tables;
use crate::databases::postgres::tables::catalog::{self, Table};
use crate::databases::postgres::tables::layout::Layout;
use crate::databases::postgres::tables::value::Form;
use crate::databases::postgres::writes::ledger::MESSAGE_PREFIX;

/// The tables as the stream describes them.
#[derive(Default)]
pub(in super::super) struct StreamedTables {
    /// What their rows become, by the numbers that the stream gives the tables; `None` for those that are not streamed.
    sources: HashMap<u32, Option<Arc<Source>>>,
    described: HashMap<u32, Relation>,
    /// How the values of a type are written, by its number.
    pub(in super::super) forms: HashMap<u32, Form>,
    /// The stream describes a table otherwise than the catalogue did.
    pub(in super::super) recheck: bool,
    /// The version of the catalogue's tables that the sources were made from.
    pub(in super::super) version: u64,
}

impl Leader<'_> {
    /// Takes one message about tables or rows.
    pub(in super::super) async fn message(&mut self, data: Bytes) -> Result<(), CaptureError> {
        match decode(data)? {
            Message::Relation(relation) => {
                self.relation(&relation).await?;
                self.tables.described.insert(relation.id, relation);
            }
            Message::Insert { relation, new } => self.change(relation, ChangeKind::Insert(new)),
            Message::Update { relation, old, new } => self.change(relation, ChangeKind::Update(old, new)),
            Message::Delete { relation, old } => self.change(relation, ChangeKind::Delete(old)),
            Message::Truncate { relations } => {
                let sources =
                    relations.iter().filter_map(|id| self.tables.sources.get(id).cloned().flatten());
                let sources: Vec<_> = sources.collect();
                if !sources.is_empty() {
                    self.truncate(sources).await?;
                }
            }
            Message::Other => {}
        }
        Ok(())
    }

    fn change(&mut self, relation: u32, mut kind: ChangeKind) {
        let Some(transaction) = self.pending.transaction.as_ref().filter(|open| !open.covered) else {
            return;
        };
        let Some(Some(source)) = self.tables.sources.get(&relation) else { return };
        match &mut kind {
            ChangeKind::Insert(new) | ChangeKind::Update(None, new) => source.layout.name_as_json(new),
            ChangeKind::Update(Some(old), new) => {
                source.layout.name_as_json(&mut old.tuple);
                source.layout.name_as_json(new);
            }
            ChangeKind::Delete(old) => source.layout.name_as_json(&mut old.tuple),
        }
        let mut change = Change {
            source: source.clone(),
            kind,
            ids: transaction.ids.clone(),
            commit: transaction.commit,
            settled: !self.reconciler.compares(&source.entity.name) && !self.stops.has(&source.entity.name),
        };
        // The log may lack a skipped row, though the table had it.
        change.settled &= !self.stops.skips(&change);
        self.pending.push(change);
    }

    /// Takes the shape that a table's rows have from here on.
    async fn relation(&mut self, relation: &Relation) -> Result<(), CaptureError> {
        let tables = self.tables_with(relation).await?;
        let Some((entity, table)) = streamed(&tables, relation)
            .and_then(|(name, table)| Some((self.inner.catalog.by_name(name)?, table)))
        else {
            self.tables.sources.insert(relation.id, None);
            return Ok(());
        };
        let known = table.columns.iter().map(|column| (&column.name, column.type_id));
        if !known.eq(relation.columns.iter().map(|column| (&column.name, column.type_id)))
            || table.id != relation.id
        {
            self.tables.recheck = true;
        }
        let missing: HashSet<u32> = relation.columns.iter().map(|column| column.type_id).collect();
        let missing: HashSet<u32> =
            missing.into_iter().filter(|id| !self.tables.forms.contains_key(id)).collect();
        if !missing.is_empty() {
            let mut reading = self.inner.db.single().await?;
            self.tables.forms.extend(catalog::type_forms(reading.connection(), missing).await?);
        }
        let columns = relation.columns.iter().map(|column| {
            let form = self.tables.forms.get(&column.type_id).cloned();
            (column.name.clone(), form.unwrap_or(Form::Text))
        });
        let layout = Layout::new(entity, &table.checked.kept, columns.collect::<Vec<_>>());
        if layout.is_none() {
            // Its key or its scope is gone: its changes cannot be logged until an operator has mended that.
            self.tables.recheck = true;
            self.reconciler.compare_again(&entity.name);
        }
        let source = layout.map(|layout| Arc::new(Source { entity: entity.clone(), layout }));
        self.tables.sources.insert(relation.id, source);
        Ok(())
    }

    /// The tables that are streamed. Where this one seems not to be, they are looked at again: its changes from here on
    /// are passed over, and any entity type that has no table now must be compared when it has one again.
    async fn tables_with(&mut self, relation: &Relation) -> Result<Arc<Tables>, CaptureError> {
        let tables = self.inner.shared.tables();
        if streamed(&tables, relation).is_some() {
            return Ok(tables);
        }
        self.tables.recheck = true;
        refresh::look(self.inner, true).await?;
        let tables = self.inner.shared.tables();
        if streamed(&tables, relation).is_none() {
            self.note_unavailable().await?;
        }
        Ok(tables)
    }

    /// Reads the stream's descriptions of the tables again, after the tables have changed: the stream does not repeat
    /// them.
    pub(in super::super) async fn tell_tables_again(&mut self) -> Result<(), CaptureError> {
        for relation in std::mem::take(&mut self.tables.described).into_values() {
            self.relation(&relation).await?;
            self.tables.described.insert(relation.id, relation);
        }
        self.tables.recheck = false;
        Ok(())
    }

    /// A writer names its transaction and client.
    pub(in super::super) fn named(&mut self, prefix: &str, content: &[u8]) {
        if prefix != MESSAGE_PREFIX {
            return;
        }
        let Ok(Ids { transaction_id, client_id, subject }) = serde_json::from_slice(content) else {
            tracing::warn!("a logical message with the prefix `{MESSAGE_PREFIX}` is not understood");
            return;
        };
        let ids = Arc::new(Ids {
            transaction_id: transaction_id.filter(|id| TransactionId::new(id).is_ok()),
            client_id: client_id.filter(|id| ClientId::new(id).is_ok()),
            subject,
        });
        self.pending.name(ids);
    }
}

/// The entity type that a table is streamed as: by its number, so that it may have another name for a while, or by
/// its name.
fn streamed<'a>(tables: &'a Tables, relation: &Relation) -> Option<(&'a Arc<str>, &'a Arc<Table>)> {
    let named = |table: &Table| table.schema == relation.schema && table.name == relation.name;
    tables
        .iter()
        .find(|(_, table)| table.id == relation.id)
        .or_else(|| tables.iter().find(|(_, table)| named(table)))
}
