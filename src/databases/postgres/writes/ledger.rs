//! The ledger of mutations done: what makes a retry safe. It is written in the mutation's own transaction, and
//! first, so that concurrent retries wait for one another, on whichever server they arrive.

use std::time::Duration;

use bourn_protocol::{Action, ClientId, TransactionId};
use sqlx::{PgConnection, Row};

use super::MutationResult;
use crate::databases::postgres::connections::statement;
use crate::feed::mutation::LoggedChange;
use crate::feed::{Mutation, undo};

/// Rows of the ledger removed at a time.
const EXPIRE_MAX: i64 = 20_000;
/// Changes of one transaction that are looked at to recognise its mutation.
const LOGGED_MAX: i64 = 1_000;
/// The prefix of logical messages that name the writer.
pub(in super::super) const MESSAGE_PREFIX: &str = "bourn";

/// A mutation that is about to be done.
pub(in super::super) struct NewLedgerEntry<'a> {
    pub(in super::super) mutation: &'a Mutation,
    pub(in super::super) entity_type: &'a str,
    pub(in super::super) entity_id: &'a str,
}

/// A mutation that was done.
pub(in super::super) struct LedgerEntry {
    pub(in super::super) entity_type: String,
    pub(in super::super) entity_id: String,
    pub(in super::super) fingerprint: Vec<u8>,
    pub(in super::super) outcome: Option<String>,
}

/// Notes a mutation as done and sends its ids to capture; returns false if it had been noted before, or the log has its
/// id: then nothing is noted.
pub(in super::super) async fn record(
    connection: &mut PgConnection,
    entry: &NewLedgerEntry<'_>,
    keep: Duration,
) -> Result<bool, sqlx::Error> {
    let mutation = entry.mutation;
    let message = serde_json::json!({
        "transactionId": mutation.transaction_id.as_str(),
        "clientId": mutation.client_id.as_ref().map(ClientId::as_str),
        "subject": mutation.permit.subject(),
    });
    let noted = statement(
        "INSERT INTO bourn.ledger (transaction_id, operation, entity_type, entity_id, fingerprint, position, expires_at, subject) \
         SELECT $1, $2, $3, $4, $5, pg_logical_emit_message(true, $6, $7), now() + make_interval(secs => $8), $9 \
         WHERE NOT EXISTS (SELECT 1 FROM bourn.activities WHERE transaction_id = $1) \
         AND NOT EXISTS (SELECT 1 FROM bourn.audit WHERE transaction_id = $1) \
         ON CONFLICT DO NOTHING",
    )
    .bind(mutation.transaction_id.as_str())
    .bind(mutation.operation.name())
    .bind(entry.entity_type)
    .bind(entry.entity_id)
    .bind(mutation.fingerprint().as_slice())
    .bind(MESSAGE_PREFIX)
    .bind(message.to_string())
    .bind(keep.as_secs_f64())
    .bind(mutation.permit.subject())
    .execute(connection)
    .await?;
    Ok(noted.rows_affected() > 0)
}

/// Adds what was not known before the mutation ran.
pub(in super::super) async fn complete(
    connection: &mut PgConnection,
    id: &TransactionId,
    done: &MutationResult,
) -> Result<(), sqlx::Error> {
    let outcome = if done.undone.is_empty() { None } else { undo::write_outcome(&done.undone) };
    statement("UPDATE bourn.ledger SET entity_id = $2, outcome = $3 WHERE transaction_id = $1")
        .bind(id.as_str())
        .bind(&done.key)
        .bind(outcome)
        .execute(connection)
        .await
        .map(|_| ())
}

/// The mutation that was done under this id.
pub(in super::super) async fn find(
    connection: &mut PgConnection,
    id: &TransactionId,
) -> Result<Option<LedgerEntry>, sqlx::Error> {
    let row = statement(
        "SELECT entity_type, entity_id, fingerprint, outcome FROM bourn.ledger WHERE transaction_id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(connection)
    .await?;
    let read = |row: sqlx::postgres::PgRow| {
        Ok(LedgerEntry {
            entity_type: row.try_get(0)?,
            entity_id: row.try_get(1)?,
            fingerprint: row.try_get(2)?,
            outcome: row.try_get(3)?,
        })
    };
    row.map(read).transpose()
}

/// The changes that the log, or the audit trail, has under a transaction's id.
pub(in super::super) async fn logged(
    connection: &mut PgConnection,
    id: &TransactionId,
) -> Result<Vec<LoggedChange>, sqlx::Error> {
    let rows = statement(
        "SELECT action, entity_type, entity_id, seq FROM bourn.activities WHERE transaction_id = $1 \
         UNION ALL SELECT action, entity_type, entity_id, seq FROM bourn.audit WHERE transaction_id = $1 ORDER BY seq LIMIT $2",
    )
    .bind(id.as_str())
    .bind(LOGGED_MAX)
    .fetch_all(connection)
    .await?;
    let read = |row: sqlx::postgres::PgRow| {
        let action = Action::from_log(row.try_get(0)?)
            .ok_or_else(|| sqlx::Error::Decode("the log holds an impossible action".into()))?;
        Ok(LoggedChange { action, entity_type: row.try_get(1)?, entity_id: row.try_get(2)? })
    };
    rows.into_iter().map(read).collect()
}

/// Removes some of what has expired.
pub(in super::super) async fn expire(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    statement(
        "DELETE FROM bourn.ledger WHERE transaction_id IN \
         (SELECT transaction_id FROM bourn.ledger WHERE expires_at < now() ORDER BY expires_at LIMIT $1)",
    )
    .bind(EXPIRE_MAX)
    .execute(connection)
    .await
    .map(|_| ())
}
