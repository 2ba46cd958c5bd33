//! The stream's messages: tables become sources, rows become changes, and a writer's own message names the transaction
//! and the client.

use std::collections::HashSet;
use std::sync::Arc;

use bourn_protocol::{ClientId, TransactionId};
use bytes::Bytes;

use super::{Leader, StreamItem};
use crate::databases::postgres::capture::Lost;
use crate::databases::postgres::capture::change::{Change, Ids, Kind, Source};
use crate::databases::postgres::pgoutput::{Message, Relation, decode};
use crate::databases::postgres::refresh;
use crate::databases::postgres::shared::Tables;
use crate::databases::postgres::tables::catalog::{self, Table};
use crate::databases::postgres::tables::layout::Layout;
use crate::databases::postgres::writes::ledger::MESSAGE_PREFIX;

impl Leader<'_> {
    /// Takes one message about tables or rows.
    pub(in super::super) async fn message(&mut self, data: Bytes) -> Result<(), Lost> {
        match decode(data)? {
            Message::Relation(relation) => {
                self.relation(&relation).await?;
                self.relations.insert(relation.id, relation);
            }
            Message::Insert { relation, new } => self.change(relation, Kind::Insert(new)),
            Message::Update { relation, old, new } => self.change(relation, Kind::Update(old, new)),
            Message::Delete { relation, old } => self.change(relation, Kind::Delete(old)),
            Message::Truncate { relations } => {
                let sources = relations.iter().filter_map(|id| self.sources.get(id).cloned().flatten());
                let sources: Vec<_> = sources.collect();
                if !sources.is_empty() {
                    self.truncate(sources).await?;
                }
            }
            Message::Other => {}
        }
        Ok(())
    }

    fn change(&mut self, relation: u32, mut kind: Kind) {
        let Some(open) = self.open.as_ref().filter(|open| !open.covered) else { return };
        let Some(Some(source)) = self.sources.get(&relation) else { return };
        match &mut kind {
            Kind::Insert(new) | Kind::Update(None, new) => source.layout.name_as_json(new),
            Kind::Update(Some(old), new) => {
                source.layout.name_as_json(&mut old.tuple);
                source.layout.name_as_json(new);
            }
            Kind::Delete(old) => source.layout.name_as_json(&mut old.tuple),
        }
        let mut change = Change {
            source: source.clone(),
            kind,
            ids: open.ids.clone(),
            commit: open.commit,
            settled: !self.reconciler.compares(&source.entity.name) && !self.stops.has(&source.entity.name),
        };
        // The log may lack a skipped row, though the table had it.
        change.settled &= !self.stops.skips(&change);
        self.items.push(StreamItem::Change(Box::new(change)));
    }

    /// Takes the shape that a table's rows have from here on.
    async fn relation(&mut self, relation: &Relation) -> Result<(), Lost> {
        let tables = self.tables_with(relation).await?;
        let Some((entity, table)) = streamed(&tables, relation)
            .and_then(|(name, table)| Some((self.inner.catalog.by_name(name)?, table)))
        else {
            self.sources.insert(relation.id, None);
            return Ok(());
        };
        let known = table.columns.iter().map(|column| (&column.name, column.type_id));
        if !known.eq(relation.columns.iter().map(|column| (&column.name, column.type_id)))
            || table.id != relation.id
        {
            self.recheck = true;
        }
        let missing: HashSet<u32> = relation.columns.iter().map(|column| column.type_id).collect();
        let missing: HashSet<u32> = missing.into_iter().filter(|id| !self.forms.contains_key(id)).collect();
        if !missing.is_empty() {
            let mut reading = self.inner.db.single().await?;
            self.forms.extend(catalog::type_forms(reading.connection(), missing).await?);
        }
        let columns = relation.columns.iter().map(|column| {
            let form = self.forms.get(&column.type_id).cloned();
            (column.name.clone(), form.unwrap_or(crate::databases::postgres::tables::value::Form::Text))
        });
        let layout = Layout::new(entity, &table.checked.kept, columns.collect::<Vec<_>>());
        if layout.is_none() {
            // Its key or its scope is gone: its changes cannot be logged until an operator has mended that.
            self.recheck = true;
            self.reconciler.compare_again(&entity.name);
        }
        let source = layout.map(|layout| Arc::new(Source { entity: entity.clone(), layout }));
        self.sources.insert(relation.id, source);
        Ok(())
    }

    /// The tables that are streamed. Where this one seems not to be, they are looked at again: its changes from here on
    /// are passed over, and any entity type that has no table now must be compared when it has one again.
    async fn tables_with(&mut self, relation: &Relation) -> Result<Arc<Tables>, Lost> {
        let tables = self.inner.shared.tables();
        if streamed(&tables, relation).is_some() {
            return Ok(tables);
        }
        self.recheck = true;
        refresh::look(self.inner, true).await?;
        let tables = self.inner.shared.tables();
        if streamed(&tables, relation).is_none() {
            self.note_unavailable().await?;
        }
        Ok(tables)
    }

    /// Reads the stream's descriptions of the tables again, after the tables have changed: the stream does not repeat
    /// them.
    pub(in super::super) async fn tell_tables_again(&mut self) -> Result<(), Lost> {
        for relation in std::mem::take(&mut self.relations).into_values() {
            self.relation(&relation).await?;
            self.relations.insert(relation.id, relation);
        }
        self.recheck = false;
        Ok(())
    }

    /// A writer names its transaction and client: for the changes that follow, and, at the first time, for those of the
    /// same transaction that still wait.
    pub(in super::super) fn named(&mut self, prefix: &str, content: &[u8]) {
        let Some(open) = self.open.as_mut().filter(|_| prefix == MESSAGE_PREFIX) else { return };
        let Ok(Ids { transaction_id, client_id, subject }) = serde_json::from_slice(content) else {
            tracing::warn!("a logical message with the prefix `{MESSAGE_PREFIX}` is not understood");
            return;
        };
        let ids = Arc::new(Ids {
            transaction_id: transaction_id.filter(|id| TransactionId::new(id).is_ok()),
            client_id: client_id.filter(|id| ClientId::new(id).is_ok()),
            subject,
        });
        if open.ids.is_none() {
            for item in self.items.iter_mut().rev() {
                match item {
                    StreamItem::Change(change) => change.ids = Some(ids.clone()),
                    StreamItem::End(_) => break,
                }
            }
        }
        open.ids = Some(ids);
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
