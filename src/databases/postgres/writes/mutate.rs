//! Mutations as SQL: each is a transaction of its own on a connection of the pool, done once however often it is
//! retried, and capture sees it like any other writer's. The ids travel with it as a logical message.

use bourn_protocol::{Action, ClientId, EntityKey, TransactionId};
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::ledger::{self, NewLedgerEntry};
use super::record::{ColumnParameters, json_value};
use super::{MutationResult, Sets, WriteContext, json, rollback};
use crate::databases::postgres::connections::{scalar, statement};
use crate::databases::postgres::log::walk::{END, START, Walk};
use crate::databases::postgres::names::ident;
use crate::databases::postgres::tables::catalog::Table;
use crate::databases::postgres::tables::layout::Stamps;
use crate::databases::postgres::tables::rows::scope_of;
use crate::databases::postgres::tables::sql::{by_key, texts};
use crate::databases::postgres::{PostgresStorage, error};
use crate::feed::entity::{Columns, EntityType};
use crate::feed::stamps::{self, Stamp};
use crate::feed::{Mutation, Operation, WriteError, Written, undo};
use crate::storage_error::StorageError;

/// How often a mutation is tried in all.
const ATTEMPTS: usize = 4;
/// Length of a key that the server makes up.
const MADE_KEY_LENGTH: usize = 21;

/// Does a mutation that was not done before, or returns its earlier result. One that another session made fail, by a
/// deadlock or a change of the table, is tried again.
pub(in super::super) async fn apply(
    storage: &PostgresStorage,
    mutation: &Mutation,
) -> Result<Written, WriteError> {
    let _turn = storage.turns.write(&mutation.operation).await?;
    let mut attempts = 1;
    loop {
        let attempt = Box::pin(attempt(storage, mutation));
        let written = storage.inner.db.in_time(attempt).await.map_err(|e| error::write(&e))?;
        match &written {
            Err(WriteError::Storage(StorageError::Busy)) if attempts < ATTEMPTS => {}
            Err(WriteError::Storage(StorageError::Entity(_))) if attempts < ATTEMPTS => {
                storage.look_again().await?;
            }
            _ => return written,
        }
        attempts += 1;
    }
}

async fn attempt(storage: &PostgresStorage, mutation: &Mutation) -> Result<Written, WriteError> {
    mutation.check_given_scope()?;
    let context = WriteContext {
        storage,
        transaction: &mutation.transaction_id,
        client: mutation.client_id.as_ref(),
        permit: &mutation.permit,
    };
    let mut transaction = storage.inner.db.begin().await.map_err(|e| error::write(&e))?;
    let (name, key) = context.target(&mutation.operation)?;
    let entry = NewLedgerEntry { mutation, entity_type: name, entity_id: key.as_deref().unwrap_or_default() };
    // The ledger first: a concurrent attempt at the same mutation waits here for the outcome.
    let keep = storage.inner.limits.ledger_retention.get();
    let recorded = match ledger::record(&mut transaction, &entry, keep).await {
        Err(failure) if error::names_nothing(&failure) && mutation.operation.changes() => {
            return Err(WriteError::NotFound(entry.entity_id.to_owned()));
        }
        recorded => recorded.map_err(|e| error::write(&e))?,
    };
    if !recorded {
        let written = context.done_before(&mut transaction, mutation).await?;
        transaction.commit().await.map_err(|e| error::write(&e))?;
        return Ok(written);
    }
    let done = match &mutation.operation {
        Operation::Create { entity, columns, .. } => {
            context.create(&mut transaction, entity, key.clone(), columns).await
        }
        Operation::Update { entity, key, columns, expected } => {
            context.update(&mut transaction, entity, key, columns, expected.as_ref()).await
        }
        Operation::Delete { entity, key, expected } => {
            context.delete(&mut transaction, entity, key, expected.as_ref()).await
        }
        Operation::Rollback { target, cascade } => {
            rollback::undo(&context, &mut transaction, target, *cascade).await
        }
    };
    let done = match (done, &mutation.operation, &key) {
        (Err(WriteError::NotUnique), Operation::Create { entity, .. }, Some(key)) => {
            transaction.rollback().await.map_err(|e| error::write(&e))?;
            return Err(context.not_unique(entity, key.clone()).await);
        }
        (done, ..) => done?,
    };
    if entry.entity_id != done.key || !done.undone.is_empty() {
        ledger::complete(&mut transaction, context.transaction, &done).await.map_err(|e| error::write(&e))?;
    }
    transaction.commit().await.map_err(|e| error::write(&e))?;
    Ok(Written { repeated: false, row: done.row, key: Some(done.key), undone: done.undone })
}

impl WriteContext<'_> {
    /// The entity type and the key that a mutation writes to, as far as they are known before.
    fn target<'o>(&self, operation: &'o Operation) -> Result<(&'o str, Option<String>), WriteError> {
        Ok(match operation {
            Operation::Create { entity, key: Some(key), .. } => (&entity.name, Some(key.to_string())),
            Operation::Create { entity, key: None, .. } => {
                let table = self.storage.table(entity)?;
                let column = table.checked.column(&entity.key);
                let fills_itself = column.is_some_and(|column| column.has_default || column.generated);
                let made = || bourn_protocol::ids::random_text(MADE_KEY_LENGTH);
                (&entity.name, (!fills_itself).then(made))
            }
            Operation::Update { entity, key, .. } | Operation::Delete { entity, key, .. } => {
                (&entity.name, Some(key.to_string()))
            }
            Operation::Rollback { .. } => ("", Some(String::new())),
        })
    }

    async fn create(
        &self,
        connection: &mut PgConnection,
        entity: &EntityType,
        key: Option<String>,
        columns: &Columns,
    ) -> Result<MutationResult, WriteError> {
        let table = self.storage.table(entity)?;
        let mut sets = Sets { values: columns.clone(), now: Vec::new() };
        sets.values.remove(&entity.key);
        if let Some(key) = key {
            sets.values.set_text(&entity.key, Some(&key));
        }
        for (name, stamp) in stamps::of_new_row(&table.checked, |name| columns.has(name)) {
            match stamp {
                Stamp::Transaction => {
                    let stamp = undo::stamp(Some(self.transaction.as_str()), None, None);
                    sets.values.set(name, json_value(stamp)?);
                }
                Stamp::Client => sets.values.set_text(name, self.client.map(ClientId::as_str)),
                Stamp::Now => sets.now.push(name.to_owned()),
            }
        }
        let row = self.insert(connection, &table, &sets).await?;
        self.done(entity, &table, &row)
    }

    /// Inserts a row; returns it.
    pub(in super::super) async fn insert(
        &self,
        connection: &mut PgConnection,
        table: &Table,
        sets: &Sets,
    ) -> Result<PgRow, WriteError> {
        let record = ColumnParameters::new(table, &sets.values, 2);
        let names = sets.values.iter().map(|(name, _)| name).chain(sets.now.iter().map(String::as_str));
        let names: Vec<String> = names.map(ident).collect();
        let now = sets.now.iter().map(|name| now_as(table, name));
        let sources: Vec<String> = record.sources.iter().cloned().chain(now).collect();
        let insert = match names.is_empty() {
            true => format!("INSERT INTO {} AS t DEFAULT VALUES", table.sql),
            false => format!(
                "INSERT INTO {} AS t ({}) SELECT {} FROM {}",
                table.sql,
                names.join(", "),
                sources.join(", "),
                record.reader()
            ),
        };
        let select = statement(AssertSqlSafe(format!("{insert} RETURNING {}", texts(table))));
        let select = if names.is_empty() { select } else { record.bind(select.bind(record.json())) };
        let row = select.fetch_optional(connection).await.map_err(|e| error::write(&e))?;
        row.ok_or(WriteError::Constraint("a trigger of the database refuses the row without saying so"))
    }

    async fn update(
        &self,
        connection: &mut PgConnection,
        entity: &EntityType,
        key: &EntityKey,
        columns: &Columns,
        expected: Option<&TransactionId>,
    ) -> Result<MutationResult, WriteError> {
        let table = self.storage.table(entity)?;
        let known = self.expect(connection, entity, &table, key, expected).await?;
        let mut sets = Sets { values: columns.clone(), now: Vec::new() };
        sets.values.remove(&entity.key);
        let row = self.set(connection, &table, key.as_str(), sets, &known, Action::Update).await?;
        self.done(entity, &table, &row)
    }

    async fn delete(
        &self,
        connection: &mut PgConnection,
        entity: &EntityType,
        key: &EntityKey,
        expected: Option<&TransactionId>,
    ) -> Result<MutationResult, WriteError> {
        let table = self.storage.table(entity)?;
        let known = self.expect(connection, entity, &table, key, expected).await?;
        let row = self.remove(connection, &table, key.as_str(), &known).await?;
        Ok(MutationResult {
            key: key.to_string(),
            row: Some(json(&table, &row)?),
            ..MutationResult::default()
        })
    }

    /// Sets columns of a row, and with them its transaction, client and time; returns the row.
    pub(in super::super) async fn set(
        &self,
        connection: &mut PgConnection,
        table: &Table,
        key: &str,
        mut sets: Sets,
        known: &Stamps,
        action: Action,
    ) -> Result<PgRow, WriteError> {
        let set = |name: &str| sets.values.has(name) || sets.now.iter().any(|now| now == name);
        let planned: Vec<_> = stamps::of_change(&table.checked, set).collect();
        for (name, stamp) in planned {
            match stamp {
                Stamp::Transaction => {
                    let own = |of: Action| (of == action).then_some(self.transaction.as_str());
                    let stamp = undo::stamp(
                        own(Action::Create).or(known.insert.as_deref()),
                        own(Action::Update).or(known.update.as_deref()),
                        own(Action::Delete).or(known.delete.as_deref()),
                    );
                    sets.values.set(name, json_value(stamp)?);
                }
                Stamp::Client => sets.values.set_text(name, self.client.map(ClientId::as_str)),
                Stamp::Now => sets.now.push(name.to_owned()),
            }
        }
        let record = ColumnParameters::new(table, &sets.values, 3);
        let names = sets.values.iter().map(|(name, _)| ident(name));
        let values = names.zip(&record.sources).map(|(name, source)| format!("{name} = {source}"));
        let times = sets.now.iter().map(|name| format!("{} = {}", ident(name), now_as(table, name)));
        let parts: Vec<String> = values.chain(times).collect();
        let sql = match parts.is_empty() {
            true => format!(
                "SELECT {} FROM {} t, (SELECT $1::text) r WHERE {}",
                texts(table),
                table.sql,
                by_key(table, 2)
            ),
            false => format!(
                "UPDATE {} AS t SET {} FROM {} WHERE {} RETURNING {}",
                table.sql,
                parts.join(", "),
                record.reader(),
                by_key(table, 2),
                texts(table)
            ),
        };
        let select = record.bind(statement(AssertSqlSafe(sql)).bind(record.json()).bind(key));
        let row = select.fetch_optional(connection).await.map_err(|e| error::write(&e))?;
        row.ok_or(WriteError::Constraint("a trigger of the database refuses the row without saying so"))
    }

    /// Deletes a row, softly where the table can; returns it as it last was.
    pub(in super::super) async fn remove(
        &self,
        connection: &mut PgConnection,
        table: &Table,
        key: &str,
        known: &Stamps,
    ) -> Result<PgRow, WriteError> {
        if let Some(name) = &table.checked.kept.deleted_at {
            let sets = Sets { values: Columns::default(), now: vec![name.clone()] };
            return self.set(connection, table, key, sets, known, Action::Delete).await;
        }
        let sql =
            format!("DELETE FROM {} AS t WHERE {} RETURNING {}", table.sql, by_key(table, 1), texts(table));
        let row = statement(AssertSqlSafe(sql)).bind(key).fetch_optional(connection).await;
        row.map_err(|e| error::write(&e))?
            .ok_or(WriteError::Constraint("a trigger of the database refuses the row without saying so"))
    }

    fn done(&self, entity: &EntityType, table: &Table, row: &PgRow) -> Result<MutationResult, WriteError> {
        // As it is stored: triggers may have given the row another scope than was asked for.
        self.may_have(entity, table, row)?;
        let key: Option<String> = row.try_get(table.layout.key).map_err(|e| error::write(&e))?;
        Ok(MutationResult {
            key: key.unwrap_or_default(),
            row: Some(json(table, row)?),
            ..MutationResult::default()
        })
    }

    /// Finds out whether the key exists already, or another unique value does.
    async fn not_unique(&self, entity: &EntityType, key: String) -> WriteError {
        match self.exists(entity, &key).await {
            Ok(true) => WriteError::AlreadyExists(key),
            Ok(false) => WriteError::NotUnique,
            Err(failure) => failure,
        }
    }

    async fn exists(&self, entity: &EntityType, key: &str) -> Result<bool, WriteError> {
        let table = self.storage.table(entity)?;
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {} t WHERE {})", table.sql, by_key(&table, 1));
        let mut reading = self.storage.inner.db.single().await.map_err(|e| error::write(&e))?;
        let select = scalar(AssertSqlSafe(sql)).bind(key);
        select.fetch_one(reading.connection()).await.map_err(|e| error::write(&e))
    }

    /// The result of the mutation that was done under this id: by the ledger, or, where that has forgotten it, by the
    /// log.
    async fn done_before(
        &self,
        connection: &mut PgConnection,
        mutation: &Mutation,
    ) -> Result<Written, WriteError> {
        let failed = |e: sqlx::Error| error::write(&e);
        if let Some(found) = ledger::find(connection, self.transaction).await.map_err(failed)? {
            return match found.fingerprint == mutation.fingerprint() {
                true => self.repeated(connection, found.entity_type, found.entity_id, found.outcome).await,
                false => Err(WriteError::Reused),
            };
        }
        let logged = ledger::logged(connection, self.transaction).await.map_err(failed)?;
        if logged.is_empty() {
            // It expired between two looks, or another attempt was rolled back.
            return Err(WriteError::Storage(StorageError::Busy));
        }
        let same = logged.into_iter().find(|change| change.may_be_of(&mutation.operation));
        match same {
            Some(change) => {
                let rollback = matches!(mutation.operation, Operation::Rollback { .. });
                let (name, key) = match rollback {
                    true => (String::new(), String::new()),
                    false => (change.entity_type, change.entity_id),
                };
                self.repeated(connection, name, key, None).await
            }
            None => Err(WriteError::Reused),
        }
    }

    /// The answer to a mutation that was done before: the row as it is, or, where it is gone, as the mutation
    /// left it.
    async fn repeated(
        &self,
        connection: &mut PgConnection,
        entity_type: String,
        key: String,
        outcome: Option<String>,
    ) -> Result<Written, WriteError> {
        let mut row = None;
        let entity = self.storage.inner.catalog.by_name(&entity_type);
        let mut scope = None;
        if let Some(table) = entity.and_then(|entity| self.storage.table(entity).ok()) {
            let sql = format!("SELECT {} FROM {} t WHERE {}", texts(&table), table.sql, by_key(&table, 1));
            let select = statement(AssertSqlSafe(sql)).bind(&key).fetch_optional(&mut *connection);
            if let Some(found) = select.await.map_err(|e| error::write(&e))? {
                scope = scope_of(&table, &found).map_err(|e| error::write(&e))?;
                row = Some(json(&table, &found)?);
            }
        }
        if row.is_none() {
            let walk = Walk::of_row("a", "$3", "$2");
            let sql = format!(
                "SELECT coalesce(a.value, a.previous_values), a.organization_id FROM bourn.activities a WHERE {} AND a.transaction_id = $1 {} LIMIT 1",
                walk.between(START, END),
                walk.newest_first()
            );
            let logged = statement(AssertSqlSafe(sql))
                .bind(self.transaction.as_str())
                .bind(&key)
                .bind(&entity_type)
                .fetch_optional(&mut *connection)
                .await
                .map_err(|e| error::write(&e))?;
            if let Some(logged) = logged {
                let value: Option<String> = logged.try_get(0).map_err(|e| error::write(&e))?;
                scope = logged.try_get(1).map_err(|e| error::write(&e))?;
                row = value.map(Bytes::from);
            }
        }
        // Its rights may have changed since it wrote the row.
        if row.is_some() && !self.permit.may_see(&entity_type, scope.as_deref()) {
            return Err(WriteError::NotFound(key));
        }
        let undone = outcome.as_deref().map(undo::read_outcome).unwrap_or_default();
        Ok(Written { repeated: true, row, key: Some(key), undone })
    }
}

/// The present time as the column's type has it.
fn now_as(table: &Table, name: &str) -> String {
    let type_name = table.column(name).map_or("timestamptz", |column| &column.type_name);
    format!("now()::{type_name}")
}
