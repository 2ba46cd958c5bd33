//! Mutations as SQL: one row made, changed or deleted, inside the writer's transaction. Capture sees them like any
//! other writer's.

use std::sync::Arc;

use bourn_protocol::{Action, ClientId, EntityKey, Seq, TransactionId};
use bytes::Bytes;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::{Assignment, WriteContext, rollback};
use crate::databases::sqlite::error;
use crate::databases::sqlite::file::sequencer;
use crate::databases::sqlite::ledger::{self, MutationResult};
use crate::databases::sqlite::payload::{self, bind};
use crate::databases::sqlite::sql::{
    by_key, bytes, ident, is_plain, key_text, lossy, scope_text, transaction_of,
};
use crate::feed::entity::{Catalog, ColumnKind, Columns, EntityType, TableSchema};
use crate::feed::stamps::{self, Stamp};
use crate::feed::{Mutation, Operation, WriteError, Written, undo};
use crate::storage_error::StorageError;

/// The row does not exist after it was written.
const REFUSED: WriteError =
    WriteError::Constraint("a trigger of the database refuses the row without saying so");
/// Length of a key that the server makes up.
const MADE_KEY_LENGTH: usize = 21;

/// Does a mutation that was not done before, or returns its earlier result. `before` is the head of the log.
pub(in super::super) fn apply(
    connection: &Connection,
    catalog: &Catalog,
    mutation: &Mutation,
    before: Seq,
    ledger_expires: i64,
) -> Result<(Written, Seq), WriteError> {
    let context = WriteContext {
        connection,
        catalog,
        transaction: &mutation.transaction_id,
        client: mutation.client_id.as_ref(),
        permit: &mutation.permit,
    };
    mutation.check_given_scope()?;
    let fingerprint = mutation.fingerprint();
    if let Some(entry) = ledger::find(connection, &mutation.transaction_id).map_err(|e| error::write(&e))? {
        if entry.fingerprint != fingerprint {
            return Err(WriteError::Reused);
        }
        return context.repeated(&entry).map(|written| (written, before));
    }
    // The ledger forgets; the log recognises an id for as long as it has that transaction's changes.
    let logged = ledger::logged(connection, &mutation.transaction_id).map_err(|e| error::write(&e))?;
    if !logged.is_empty() {
        let change = logged.into_iter().find(|change| change.may_be_of(&mutation.operation));
        let entry = ledger::LedgerEntry::of(change.ok_or(WriteError::Reused)?, &mutation.operation);
        return context.repeated(&entry).map(|written| (written, before));
    }
    let mut done = match &mutation.operation {
        Operation::Create { entity, key, columns } => {
            context.create(entity, key.as_ref(), columns, before)?
        }
        Operation::Update { entity, key, columns, expected } => {
            context.update(entity, key, columns, expected.as_ref(), before)?
        }
        Operation::Delete { entity, key, expected } => context.delete(entity, key, expected.as_ref())?,
        Operation::Rollback { target, cascade } => rollback::undo(&context, target, *cascade)?,
    };
    done.head = sequencer::head(connection).map_err(|e| error::write(&e))?;
    if let Some(subject) = mutation.permit.subject() {
        connection
            .prepare_cached("UPDATE activities SET subject = ?1 WHERE seq > ?2 AND seq <= ?3")
            .and_then(|mut set| set.execute(params![subject, before.as_i64(), done.head.as_i64()]))
            .map_err(|e| error::write(&e))?;
    }
    ledger::record(connection, mutation, fingerprint, &done, ledger_expires).map_err(|e| error::write(&e))?;
    let written = Written { repeated: false, row: done.row, key: Some(done.key), undone: done.undone };
    Ok((written, done.head))
}

/// The columns of an entity type's table, or a storage error with the reason why there are none.
fn schema_of(entity: &EntityType) -> Result<std::sync::Arc<TableSchema>, WriteError> {
    entity.schema().map_err(|reason| WriteError::Storage(StorageError::Entity(reason)))
}

impl WriteContext<'_> {
    fn create(
        &self,
        entity: &EntityType,
        key: Option<&EntityKey>,
        columns: &Columns,
        before: Seq,
    ) -> Result<MutationResult, WriteError> {
        let schema = schema_of(entity)?;
        let mut names = Vec::new();
        let mut values = Vec::new();
        let mut set = |name: &str, value: Sql| {
            names.push(ident(name));
            values.push(value);
        };
        let key_kind = schema.column(&entity.key).map_or(ColumnKind::Any, |column| column.kind);
        let key = match key {
            Some(key) => Some(key.as_str().to_owned()),
            None if key_kind == ColumnKind::Integer => None,
            None => Some(bourn_protocol::ids::random_text(MADE_KEY_LENGTH)),
        };
        if let Some(key) = &key {
            if self.exists(entity, &schema, key)? {
                return Err(WriteError::AlreadyExists(key.clone()));
            }
            set(&entity.key, Sql::Text(key.clone()));
        }
        for (name, value) in columns.iter().filter(|(name, _)| *name != entity.key) {
            if let Some(column) = schema.column(name) {
                set(name, bind(column, value));
            }
        }
        for (name, stamp) in stamps::of_new_row(&schema, |name| columns.has(name)) {
            set(
                name,
                match stamp {
                    Stamp::Transaction => Sql::Text(undo::stamp(Some(self.transaction.as_str()), None, None)),
                    Stamp::Client => text_or_null(self.client.map(ClientId::as_str)),
                    Stamp::Now => Sql::Text(self.now()?),
                },
            );
        }
        let places = vec!["?"; values.len()].join(", ");
        let into = match names.is_empty() {
            true => format!("INSERT INTO {} DEFAULT VALUES", ident(&entity.table)),
            false => format!("INSERT INTO {} ({}) VALUES ({places})", ident(&entity.table), names.join(", ")),
        };
        // The statement returns the row itself, whatever triggers insert beside it.
        let sql = format!("{into} RETURNING {}", key_text(entity, &schema, &ident(&entity.table)));
        let mut made = None;
        self.in_context(self.needs_context(&schema), || {
            made = self.returned(&sql, values)?;
            Ok(())
        })?;
        let made = made.ok_or(REFUSED)?;
        if key.is_some_and(|key| key != made) {
            return Err(WriteError::Constraint(
                "the column of the id keeps numbers, and would keep this id as another text: write the number as it is \
                 kept (12 for 0012, 100000 for 1e5), or declare the column as TEXT",
            ));
        }
        self.done(entity, &schema, &made, before)
    }

    fn update(
        &self,
        entity: &EntityType,
        key: &EntityKey,
        columns: &Columns,
        expected: Option<&TransactionId>,
        before: Seq,
    ) -> Result<MutationResult, WriteError> {
        let schema = schema_of(entity)?;
        self.expect(entity, &schema, key, expected)?;
        let sets: Vec<Assignment<'_>> = columns
            .iter()
            .filter(|(name, _)| *name != entity.key)
            .filter_map(|(name, value)| {
                schema.column(name).map(|column| Assignment::new(column, bind(column, value)))
            })
            .collect();
        self.set(entity, &schema, key.as_str(), &sets, Action::Update)?;
        self.done(entity, &schema, key.as_str(), before)
    }

    fn delete(
        &self,
        entity: &EntityType,
        key: &EntityKey,
        expected: Option<&TransactionId>,
    ) -> Result<MutationResult, WriteError> {
        let schema = schema_of(entity)?;
        self.expect(entity, &schema, key, expected)?;
        let row = self.remove(entity, &schema, key.as_str())?;
        Ok(MutationResult {
            entity_type: entity.name.to_string(),
            key: key.to_string(),
            row,
            ..MutationResult::default()
        })
    }

    /// Sets columns of a row, and with them its transaction, client and time.
    pub(in super::super) fn set(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &str,
        sets: &[Assignment<'_>],
        action: Action,
    ) -> Result<(), WriteError> {
        let mut parts: Vec<String> =
            sets.iter().map(|set| format!("{} = {}", ident(&set.column.name), set.source)).collect();
        let mut values: Vec<Sql> = sets.iter().map(|set| set.value.clone()).collect();
        let given = |name: &str| sets.iter().any(|set| set.column.name == name);
        for (name, stamp) in stamps::of_change(schema, given) {
            let name_sql = ident(name);
            values.push(match stamp {
                Stamp::Transaction => {
                    let fields =
                        [Action::Create, Action::Update, Action::Delete].map(|of| match of == action {
                            true => format!("'{}', ?", of.operation()),
                            false => {
                                let known = transaction_of(schema, &ident(&entity.table), of);
                                format!("'{}', {known}", of.operation())
                            }
                        });
                    parts.push(format!("{name_sql} = json_object({})", fields.join(", ")));
                    Sql::Text(self.transaction.to_string())
                }
                Stamp::Client => {
                    parts.push(format!("{name_sql} = ?"));
                    text_or_null(self.client.map(ClientId::as_str))
                }
                Stamp::Now => {
                    parts.push(format!("{name_sql} = ?"));
                    Sql::Text(self.now()?)
                }
            });
        }
        if parts.is_empty() {
            return Ok(());
        }
        values.push(Sql::Text(key.to_owned()));
        let sql = format!(
            "UPDATE {} SET {} WHERE {}",
            ident(&entity.table),
            parts.join(", "),
            by_key(entity, schema, "?")
        );
        self.in_context(self.needs_context(schema), || self.execute(&sql, values))
    }

    /// Deletes a row, softly where the table can; returns it as it last was.
    pub(in super::super) fn remove(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &str,
    ) -> Result<Option<Bytes>, WriteError> {
        let soft = schema.kept.deleted_at.as_deref().and_then(|name| schema.column(name));
        if let Some(column) = soft {
            let now = Sql::Text(self.now()?);
            self.set(entity, schema, key, &[Assignment::new(column, now)], Action::Delete)?;
            return self.row(entity, schema, key);
        }
        let row = self.row(entity, schema, key)?;
        let sql = format!("DELETE FROM {} WHERE {}", ident(&entity.table), by_key(entity, schema, "?"));
        self.in_context(true, || self.execute(&sql, vec![Sql::Text(key.to_owned())]))?;
        Ok(row)
    }

    /// Whether a row of this key is there, deleted softly or not.
    pub(in super::super) fn exists(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &str,
    ) -> Result<bool, WriteError> {
        let sql = format!("SELECT 1 FROM {} t WHERE {}", ident(&entity.table), by_key(entity, schema, "?1"));
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.exists([key]))
            .map_err(|e| error::write(&e))
    }

    pub(in super::super) fn row(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &str,
    ) -> Result<Option<Bytes>, WriteError> {
        let row = self.payload(entity, schema, key)?;
        Ok(row.map(|row| Bytes::from(payload::json(&row).into_owned())))
    }

    /// Whether the caller may write a row of the scope that it has, as it is stored: triggers may have given it another one than
    /// was asked for.
    pub(in super::super) fn may_have(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &str,
    ) -> Result<(), WriteError> {
        if self.permit.is_unlimited() {
            return Ok(());
        }
        let scope = self.scope_of(entity, schema, key)?.flatten();
        Ok(self.permit.check_row(&entity.name, scope.as_deref())?)
    }

    /// The scope of a row, as the log would have it; none if there is no such row.
    fn scope_of(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &str,
    ) -> Result<Option<Option<String>>, WriteError> {
        let sql = format!(
            "SELECT {} FROM {} t WHERE {}",
            scope_text(entity, schema, "t"),
            ident(&entity.table),
            by_key(entity, schema, "?1")
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.query_row([key], |row| lossy(row, 0)).optional())
            .map_err(|e| error::write(&e))
    }

    /// The row as the log would keep it.
    pub(in super::super) fn payload(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &str,
    ) -> Result<Option<Vec<u8>>, WriteError> {
        let sql = format!(
            "SELECT {} FROM {} t WHERE {}",
            payload::row(schema, "t"),
            ident(&entity.table),
            by_key(entity, schema, "?1")
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| {
                statement.query_row([key], |row| Ok(bytes(row, 0)?.map(<[u8]>::to_vec))).optional()
            })
            .map(Option::flatten)
            .map_err(|e| error::write(&e))
    }

    /// The answer to a create or an update: the row as capture has just written it into the log.
    fn done(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &str,
        before: Seq,
    ) -> Result<MutationResult, WriteError> {
        self.may_have(entity, schema, key)?;
        let logged: Option<Option<String>> = self
            .connection
            .prepare_cached(
                "SELECT value FROM activities WHERE seq > ?1 AND entity_type = ?2 AND entity_id = ?3 \
                 ORDER BY seq DESC LIMIT 1",
            )
            .and_then(|mut statement| {
                statement
                    .query_row(rusqlite::params![before.as_i64(), &*entity.name, key], |row| {
                        payload::row_json(row, 0)
                    })
                    .optional()
            })
            .map_err(|e| error::write(&e))?;
        let row = match logged.flatten() {
            Some(value) => Some(Bytes::from(value)),
            None => self.row(entity, schema, key)?,
        };
        let row = Some(row.ok_or(REFUSED)?);
        Ok(MutationResult {
            entity_type: entity.name.to_string(),
            key: key.to_owned(),
            row,
            ..MutationResult::default()
        })
    }

    /// Whether the caller may still see a row that it has written: where it is now, or was at last.
    fn may_repeat(&self, entity: Option<&Arc<EntityType>>, key: &str) -> Result<(), WriteError> {
        let (Some(entity), false) = (entity, self.permit.is_unlimited()) else { return Ok(()) };
        let there = match entity.schema() {
            Ok(schema) => self.scope_of(entity, &schema, key)?,
            Err(_) => None,
        };
        let sql = "SELECT organization_id FROM activities WHERE entity_id = ?1 AND entity_type = ?2 ORDER BY seq DESC LIMIT 1";
        let last = || {
            let select = |mut s: rusqlite::CachedStatement<'_>| {
                s.query_row([key, &*entity.name], |row| lossy(row, 0)).optional()
            };
            self.connection.prepare_cached(sql).and_then(select).map_err(|e| error::write(&e))
        };
        let scope = match there {
            Some(scope) => scope,
            None => last()?.flatten(),
        };
        match self.permit.may_see(&entity.name, scope.as_deref()) {
            true => Ok(()),
            false => Err(WriteError::NotFound(key.to_owned())),
        }
    }

    /// The answer to a mutation that was done before: the row as it is, or, where it is gone, as the mutation
    /// left it.
    fn repeated(&self, entry: &ledger::LedgerEntry) -> Result<Written, WriteError> {
        let entity = self.catalog.by_name(&entry.entity_type);
        self.may_repeat(entity, &entry.entity_id)?;
        let mut row = match entity.map(|entity| (entity, entity.schema())) {
            Some((entity, Ok(schema))) => self.row(entity, &schema, &entry.entity_id)?,
            _ => None,
        };
        if row.is_none() {
            let sql = "SELECT coalesce(value, previous_values) FROM activities \
                       WHERE transaction_id = ?1 AND entity_id = ?2 ORDER BY seq DESC LIMIT 1";
            let logged: Option<Option<String>> = self
                .connection
                .prepare_cached(sql)
                .and_then(|mut s| {
                    s.query_row([self.transaction.as_str(), &entry.entity_id], |row| {
                        payload::row_json(row, 0)
                    })
                    .optional()
                })
                .map_err(|e| error::write(&e))?;
            row = logged.flatten().map(Bytes::from);
        }
        let undone = entry.outcome.as_deref().map(undo::read_outcome).unwrap_or_default();
        Ok(Written { repeated: true, row, key: Some(entry.entity_id.clone()), undone })
    }

    pub(in super::super) fn execute(&self, sql: &str, values: Vec<Sql>) -> Result<(), WriteError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params_from_iter(values)))
            .map(|_| ())
            .map_err(|e| error::write(&e))
    }

    /// Runs an insertion; returns the text that it returns, if it has inserted a row.
    fn returned(&self, sql: &str, values: Vec<Sql>) -> Result<Option<String>, WriteError> {
        let insert = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(params_from_iter(values))?;
            let returned = rows.next()?.map(|row| lossy(row, 0)).transpose()?;
            // Run to its end: constraints may still refuse the row there.
            while rows.next()?.is_some() {}
            Ok(returned.flatten())
        };
        insert().map_err(|e| error::write(&e))
    }

    /// Whether the rows of the table cannot say which transaction has written them.
    pub(in super::super) fn needs_context(&self, schema: &TableSchema) -> bool {
        schema.kept.transactions.is_none() || !is_plain(self.transaction.as_str())
    }

    /// Runs a statement with the ids of the transaction and the client where triggers find them, if `needed`.
    pub(in super::super) fn in_context(
        &self,
        needed: bool,
        run: impl FnOnce() -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        if !needed {
            return run();
        }
        let set = "UPDATE bourn_context SET transaction_id = ?, client_id = ?";
        let ids =
            vec![Sql::Text(self.transaction.to_string()), text_or_null(self.client.map(ClientId::as_str))];
        self.execute(set, ids)?;
        let done = run();
        self.execute(set, vec![Sql::Null, Sql::Null])?;
        done
    }

    pub(in super::super) fn now(&self) -> Result<String, WriteError> {
        self.connection
            .prepare_cached("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(|e| error::write(&e))
    }
}

fn text_or_null(text: Option<&str>) -> Sql {
    text.map_or(Sql::Null, |text| Sql::Text(text.to_owned()))
}
