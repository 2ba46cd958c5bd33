//! Mutations: done once, as transactions of their own, and undone. This module has what both share.

mod cascade;
mod expect;
pub(super) mod ledger;
pub(super) mod mutate;
mod record;
mod rollback;

use bourn_protocol::{ClientId, TransactionId};
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::connections::statement;
use super::tables::catalog::Table;
use super::tables::layout::Stamps;
use super::tables::rows;
use super::tables::rows::scope_of;
use super::tables::sql::{by_key, texts};
use super::{PostgresStorage, error};
use crate::access::WritePermit;
use crate::feed::entity::{Columns, EntityType};
use crate::feed::{Undone, WriteError};

/// The result of a mutation that was done just now.
#[derive(Debug, Default)]
pub(super) struct MutationResult {
    key: String,
    row: Option<Bytes>,
    undone: Vec<Undone>,
}

/// What a mutation needs to run.
struct WriteContext<'a> {
    storage: &'a PostgresStorage,
    transaction: &'a TransactionId,
    client: Option<&'a ClientId>,
    permit: &'a WritePermit,
}

/// A row's columns: those with given values as JSON, and those that are set to the present time.
#[derive(Default)]
struct Sets {
    values: Columns,
    now: Vec<String>,
}

impl WriteContext<'_> {
    /// Whether the caller may write a row of the scope that it has, as it is stored.
    fn may_have(&self, entity: &EntityType, table: &Table, row: &PgRow) -> Result<(), WriteError> {
        let scope = scope_of(table, row).map_err(|e| error::write(&e))?;
        Ok(self.permit.check_row(&entity.name, scope.as_deref())?)
    }
}

/// A row that was selected by [`texts`], as JSON.
fn json(table: &Table, row: &PgRow) -> Result<Bytes, WriteError> {
    rows::checked_json(table, row).map(Bytes::from).map_err(|e| error::write(&e))
}

/// A row of this key, locked until the transaction ends.
async fn locked(
    connection: &mut PgConnection,
    table: &Table,
    key: &str,
    condition: &str,
) -> Result<Option<PgRow>, WriteError> {
    let sql = format!(
        "SELECT {} FROM {} t WHERE {} AND {condition} FOR UPDATE",
        texts(table),
        table.sql,
        by_key(table, 1)
    );
    match statement(AssertSqlSafe(sql)).bind(key).fetch_optional(connection).await {
        Ok(row) => Ok(row),
        Err(failure) if error::names_nothing(&failure) => Ok(None),
        Err(failure) => Err(error::write(&failure)),
    }
}

/// The ids in a row that was selected by [`texts`].
fn stamps_of(table: &Table, row: &PgRow) -> Stamps {
    let json = table.layout.transactions.and_then(|at| row.try_get::<Option<&str>, _>(at).ok().flatten());
    Stamps::read(json)
}
