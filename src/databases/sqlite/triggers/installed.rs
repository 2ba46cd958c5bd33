//! The triggers that are in the database: whether they are the right ones, which server made them, and installing the
//! right ones.

use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};

use super::{EVENTS, Trigger, clashes, name, unlogged};
use crate::databases::sqlite::sql::{ident, literal};
use crate::feed::entity::EntityType;

/// The triggers that are there.
pub(in super::super) struct InstalledTriggers {
    /// By name, with their statements.
    installed: Vec<(String, String)>,
    /// They are the ones that this server makes.
    pub(in super::super) fit: bool,
    /// The table is to be compared with the log, because changes may have been missed.
    pub(in super::super) compare: bool,
    /// Another server made them, for another configuration than this one's.
    pub(in super::super) others: bool,
}

/// Reads which triggers exist.
pub(in super::super) fn look(
    connection: &Connection,
    entity: &EntityType,
    wanted: &[Trigger],
) -> rusqlite::Result<InstalledTriggers> {
    let names: Vec<String> = EVENTS
        .iter()
        .chain(&unlogged::EVENTS)
        .chain(&clashes::EVENTS)
        .map(|event| literal(&name(entity, event)))
        .collect();
    let installed: Vec<(String, String, i64)> = connection
        .prepare(&format!(
            "SELECT name, sql, rowid FROM sqlite_master WHERE type = 'trigger' AND name IN ({})",
            names.join(", ")
        ))?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    // SQLite fires the newest trigger first. Ours must be the newest: if one of the application's changes the row once
    // more, that change would be logged before the change it follows.
    let newer: bool = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE \
             AND rowid > ?2 AND name NOT LIKE 'bourn\\_%' ESCAPE '\\')",
        )?
        .query_row(
            rusqlite::params![entity.table, installed.iter().map(|(.., rowid)| *rowid).min().unwrap_or(i64::MAX)],
            |row| row.get(0),
        )?;
    let known: Option<(bool, Option<String>)> = connection
        .prepare_cached("SELECT reconciled, triggers FROM bourn_entities WHERE entity_type = ?1")?
        .query_row([&*entity.name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (reconciled, made) = known.unwrap_or_default();
    let needed = |trigger: &&Trigger| !reconciled || !unlogged::is_one(entity, &trigger.name);
    let needed: Vec<_> = wanted.iter().filter(needed).collect();
    // A trigger on a renamed table keeps its name and is rewritten by SQLite, so it differs and goes.
    let fit = !newer
        && installed.len() == needed.len()
        && needed.iter().all(|trigger| {
            installed.iter().any(|(name, sql, _)| *name == trigger.name && *sql == trigger.sql)
        });
    let installed: Vec<_> = installed.into_iter().map(|(name, sql, _)| (name, sql)).collect();
    // A server made them, but for another configuration than this server's.
    let there = digest(entity, installed.iter().map(|(name, sql)| (name.as_str(), sql.as_str())));
    let others = !fit && made.is_some_and(|made| made == there && made != digest_of(entity, wanted));
    Ok(InstalledTriggers { installed, fit, compare: !reconciled, others })
}

/// Drops and makes triggers so that exactly the right ones exist; returns whether the table is to be compared with the
/// log. Inside the caller's transaction.
pub(in super::super) fn install(
    connection: &Connection,
    entity: &EntityType,
    wanted: &[Trigger],
) -> rusqlite::Result<bool> {
    let found = look(connection, entity, wanted)?;
    if found.fit {
        return Ok(found.compare);
    }
    for (name, _) in found.installed {
        connection.execute_batch(&format!("DROP TRIGGER {}", ident(&name)))?;
    }
    for trigger in wanted {
        connection.execute_batch(&trigger.sql)?;
    }
    set_reconciled(connection, entity, false)?;
    connection
        .prepare_cached("UPDATE bourn_entities SET triggers = ?2 WHERE entity_type = ?1")?
        .execute([&*entity.name, &digest_of(entity, wanted)])?;
    Ok(true)
}

fn digest_of(entity: &EntityType, wanted: &[Trigger]) -> String {
    digest(entity, wanted.iter().map(|trigger| (trigger.name.as_str(), trigger.sql.as_str())))
}

/// A digest of these triggers, without those for the time of comparing.
fn digest<'a>(entity: &EntityType, triggers: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut triggers: Vec<_> = triggers.filter(|(name, _)| !unlogged::is_one(entity, name)).collect();
    triggers.sort_unstable();
    let mut hash = Sha256::new();
    for (name, sql) in triggers {
        hash.update(name);
        hash.update([0]);
        hash.update(sql);
        hash.update([0]);
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Notes that the log has the entity type's table as it is, and drops the triggers that were needed until then. Inside
/// the caller's transaction.
pub(in super::super) fn compared(connection: &Connection, entity: &EntityType) -> rusqlite::Result<()> {
    for event in unlogged::EVENTS {
        connection.execute_batch(&format!("DROP TRIGGER IF EXISTS {}", ident(&name(entity, event))))?;
    }
    set_reconciled(connection, entity, true)
}

/// Notes whether the log has the entity type's table as it is.
fn set_reconciled(connection: &Connection, entity: &EntityType, reconciled: bool) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO bourn_entities (entity_type, reconciled) VALUES (?1, ?2) \
             ON CONFLICT (entity_type) DO UPDATE SET reconciled = ?2",
        )?
        .execute(rusqlite::params![&*entity.name, reconciled])?;
    Ok(())
}
