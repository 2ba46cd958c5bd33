//! The ledger of mutations done: what makes a retry safe. It is written in the mutation's own transaction, so the
//! ledger has a mutation exactly if it was done, whatever happened to the answer.

use bourn_protocol::{Action, Seq, TransactionId};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::sql::lossy;
use crate::feed::mutation::LoggedChange;
use crate::feed::{Fingerprint, Mutation, Operation, Undone};

/// The result of a mutation that was done just now.
#[derive(Debug, Default)]
pub(super) struct MutationResult {
    pub(super) entity_type: String,
    pub(super) key: String,
    pub(super) row: Option<Bytes>,
    /// What a rollback undid, as JSON, for the ledger.
    pub(super) outcome: Option<String>,
    pub(super) undone: Vec<Undone>,
    /// The head of the log afterwards.
    pub(super) head: Seq,
}

/// Rows of the ledger removed at a time.
const EXPIRE_MAX: i64 = 20_000;
/// Changes of one transaction that are looked at to recognise its mutation.
const LOGGED_MAX: usize = 100;

/// A mutation that was done.
pub(super) struct LedgerEntry {
    pub(super) entity_type: String,
    pub(super) entity_id: String,
    pub(super) fingerprint: Vec<u8>,
    pub(super) outcome: Option<String>,
}

impl LedgerEntry {
    /// The entry of a mutation that the ledger has forgotten, from what the log knows of it.
    pub(super) fn of(change: LoggedChange, operation: &Operation) -> LedgerEntry {
        let (entity_type, entity_id) = match operation {
            Operation::Rollback { .. } => (String::new(), String::new()),
            _ => (change.entity_type, change.entity_id),
        };
        LedgerEntry { entity_type, entity_id, fingerprint: Vec::new(), outcome: None }
    }
}

/// The changes that the log, or the audit trail, has under a transaction's id.
pub(super) fn logged(connection: &Connection, id: &TransactionId) -> rusqlite::Result<Vec<LoggedChange>> {
    let mut changes = Vec::new();
    for table in ["activities", "bourn_audit"] {
        let sql = format!(
            "SELECT action, entity_type, entity_id FROM {table} WHERE transaction_id = ?1 ORDER BY seq LIMIT {LOGGED_MAX}"
        );
        let mut select = connection.prepare_cached(&sql)?;
        let mut rows = select.query([id.as_str()])?;
        while let Some(row) = rows.next()? {
            let text = |i| Ok::<_, rusqlite::Error>(lossy(row, i)?.unwrap_or_default());
            let Some(action) = Action::from_log(&text(0)?) else { continue };
            changes.push(LoggedChange { action, entity_type: text(1)?, entity_id: text(2)? });
        }
    }
    Ok(changes)
}

/// The mutation that was done under this id.
pub(super) fn find(connection: &Connection, id: &TransactionId) -> rusqlite::Result<Option<LedgerEntry>> {
    connection
        .prepare_cached(
            "SELECT entity_type, entity_id, fingerprint, outcome FROM bourn_ledger WHERE transaction_id = ?1",
        )?
        .query_row([id.as_str()], |row| {
            Ok(LedgerEntry {
                entity_type: row.get(0)?,
                entity_id: row.get(1)?,
                fingerprint: row.get(2)?,
                outcome: row.get(3)?,
            })
        })
        .optional()
}

/// The head of the log when the mutation was done: none of its activities lies further.
pub(super) fn place(connection: &Connection, id: &TransactionId) -> rusqlite::Result<Option<Seq>> {
    let seq: Option<i64> = connection
        .prepare_cached("SELECT seq FROM bourn_ledger WHERE transaction_id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    Ok(seq.and_then(Seq::from_i64))
}

/// The caller whose mutation was done under this id.
pub(super) fn subject(connection: &Connection, id: &TransactionId) -> rusqlite::Result<Option<String>> {
    let found = connection
        .prepare_cached("SELECT subject FROM bourn_ledger WHERE transaction_id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    Ok(found.flatten())
}

/// Notes a mutation as done.
pub(super) fn record(
    connection: &Connection,
    mutation: &Mutation,
    fingerprint: Fingerprint,
    done: &MutationResult,
    expires_at: i64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO bourn_ledger (transaction_id, operation, entity_type, entity_id, fingerprint, seq, outcome, expires_at, \
             subject) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(rusqlite::params![
            mutation.transaction_id.as_str(),
            mutation.operation.name(),
            done.entity_type,
            done.key,
            fingerprint,
            done.head.as_i64(),
            done.outcome,
            expires_at,
            mutation.permit.subject()
        ])?;
    Ok(())
}

/// Removes some expired mutations.
pub(super) fn expire(connection: &Connection, unix_secs: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM bourn_ledger WHERE id IN (SELECT id FROM bourn_ledger ORDER BY id LIMIT ?2) AND expires_at < ?1",
        )?
        .execute([unix_secs, EXPIRE_MAX])?;
    Ok(())
}
