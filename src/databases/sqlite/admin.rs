//! The commands by which an operator checks and prepares a database before serving it: what is missing, and which SQL
//! adds it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::file::history::{self, History};
use super::tables::introspect;
use super::triggers::{self, installed};
use super::{connect, open_error};
use crate::config::{Config, Limits};
use crate::databases::{Finding, OpenError};
use crate::feed::entity::Catalog;

/// Looks at the database without changing it.
///
/// # Errors
/// When the file cannot be opened or read.
pub fn check(path: &Path, config: &Config) -> Result<Vec<Finding>, OpenError> {
    if !path.exists() {
        let finding = match missing_file(path, config.demo) {
            Some(error) => Finding { fine: false, text: error.to_string() },
            None => Finding {
                fine: true,
                text: format!("{}: is missing; `bourn serve` will make it", path.display()),
            },
        };
        return Ok(vec![finding]);
    }
    let connection = open_existing(path)?;
    let failed = |e: rusqlite::Error| open_error(path, &e);
    let mut findings = Vec::new();
    let mut add = |fine: bool, text: String| findings.push(Finding { fine, text });
    let unfit = connect::unfit(&connection).map_err(failed)?;
    match (unfit, connect::has_log(&connection).map_err(failed)?) {
        (Some(reason), _) => add(false, format!("{}: {reason}", path.display())),
        (None, true) => add(true, "the log's tables are there".into()),
        (None, false) => add(
            true,
            "the log's tables are missing; `bourn serve` or `bourn prepare --apply` will make them".into(),
        ),
    }
    for entity in Catalog::new(&config.entities).iter() {
        let name = &entity.name;
        match introspect::table(&connection, entity).map_err(failed)? {
            Err(reason) => add(false, format!("{name}: {reason}")),
            Ok(schema) => {
                add(true, format!("{name}: table `{}` with {} columns", entity.table, schema.columns.len()));
                for text in &schema.left_alone {
                    add(true, format!("{name}: {text}"));
                }
                let kept = &schema.kept;
                let lacks = [
                    (
                        kept.transactions.is_none(),
                        "transactions",
                        "writers in SQL cannot give transaction ids",
                    ),
                    (
                        kept.last_client_id.is_none(),
                        "last_client_id",
                        "writers in SQL cannot say which client they write for",
                    ),
                    (kept.deleted_at.is_none(), "deleted_at", "rows are deleted for good"),
                ];
                for (_, column, lack) in lacks.into_iter().filter(|(lacking, ..)| *lacking) {
                    add(true, format!("{name}: no column serves as `{column}`: {lack}"));
                }
                if let Some(reason) = introspect::left_out(&connection, entity, &schema).map_err(failed)? {
                    add(false, format!("{name}: {reason}; {}", introspect::LEFT_OUT_REMEDY));
                }
            }
        }
    }
    Ok(findings)
}

/// The SQL that prepares the database: the log's tables and the triggers.
///
/// # Errors
/// When the file cannot be opened or read.
pub fn prepare_sql(path: &Path, config: &Config) -> Result<String, OpenError> {
    let failed = |e: rusqlite::Error| open_error(path, &e);
    let mut connection = match path.exists() {
        true => open_existing(path)?,
        false => Connection::open_in_memory().map_err(failed)?,
    };
    let mut sql = String::from("BEGIN IMMEDIATE;\n");
    if !connect::has_log(&connection).map_err(failed)? {
        let demo = config.demo && connect::is_new(&connection).map_err(failed)?;
        sql.push_str(&connect::preparation(demo));
        if demo {
            // An empty schema to make the triggers for, so that the file is not touched.
            connection = Connection::open_in_memory().map_err(failed)?;
            connection.execute_batch(connect::DEMO).map_err(failed)?;
        }
    }
    for entity in Catalog::new(&config.entities).iter() {
        match introspect::table(&connection, entity).map_err(failed)? {
            Err(reason) => sql.push_str(&format!("\n-- {}: {reason}\n", entity.name)),
            Ok(schema) => {
                for trigger in triggers::all(entity, &schema) {
                    sql.push_str(&format!(
                        "\nDROP TRIGGER IF EXISTS \"{}\";\n{};\n",
                        trigger.name, trigger.sql
                    ));
                }
            }
        }
    }
    sql.push_str("\nCOMMIT;");
    Ok(sql)
}

/// Does what [`prepare_sql`] prints.
///
/// # Errors
/// When the file cannot be opened or written.
pub fn prepare(path: &Path, config: &Config) -> Result<(), OpenError> {
    if let Some(error) = missing_file(path, config.demo) {
        return Err(error);
    }
    let failed = |e: rusqlite::Error| open_error(path, &e);
    let (mut connection, new) = open(path, config.limits.busy_timeout.get(), config.demo)?;
    History::begin(path, &connection, new).map_err(failed)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    for entity in Catalog::new(&config.entities).iter() {
        if let Ok(schema) = introspect::table(&transaction, entity).map_err(failed)? {
            installed::install(&transaction, entity, &triggers::all(entity, &schema)).map_err(failed)?;
        }
    }
    transaction.commit().map_err(failed)
}

/// Gives the log a new epoch: clients start again from the beginning. For an operator who knows that the database is
/// not what it was.
///
/// # Errors
/// When the file cannot be opened or written.
pub fn renew_log(path: &Path, limits: &Limits) -> Result<(), OpenError> {
    let failed = |e: rusqlite::Error| open_error(path, &e);
    drop(open_existing(path)?);
    let (connection, new) = open(path, limits.busy_timeout.get(), false)?;
    let history = History::begin(path, &connection, new).map_err(failed)?;
    let served = history.served();
    // If another server has given it one in between, that is as good.
    history::renew(&connection, &history.beside, &served, served.streams).map_err(failed)?;
    Ok(())
}

/// Opens the file for writing, makes it if it is missing, and brings the log's tables up to date; returns whether all
/// of them were missing.
pub(super) fn open(path: &Path, busy: Duration, demo: bool) -> Result<(Connection, bool), OpenError> {
    let failed = |e: rusqlite::Error| open_error(path, &e);
    if let Some(error) = missing_file(path, demo) {
        return Err(error);
    }
    let mut connection = connect::new_writer(path, busy).map_err(failed)?;
    if let Some(reason) = connect::unfit(&connection).map_err(failed)? {
        return Err(OpenError::new(&path.display(), &reason));
    }
    if demo {
        connect::make_demo(&mut connection).map_err(failed)?;
    }
    let new = connect::migrate(&mut connection).map_err(failed)?;
    Ok((connection, new))
}

/// Brings the log's tables up to date in a file that replaced another one while the server runs.
pub(super) fn take_over(mut connection: Connection) -> Result<(Connection, bool), String> {
    let words = |failure: rusqlite::Error| super::error::storage(&failure).to_string();
    if let Some(reason) = connect::unfit(&connection).map_err(words)? {
        return Err(reason);
    }
    let new = connect::migrate(&mut connection).map_err(words)?;
    Ok((connection, new))
}

/// Why a file that is missing cannot be made: only the demo's can, for another one lacks the application's tables.
pub(super) fn missing_file(path: &Path, demo: bool) -> Option<OpenError> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let reason = match directory {
        _ if path.exists() => return None,
        Some(directory) if !directory.is_dir() => "there is no such file, and no such directory",
        _ if demo => return None,
        _ => "there is no such file; it must have the application's tables before they can be streamed",
    };
    Some(OpenError::new(&path.display(), &reason))
}

fn open_existing(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags).map_err(|e| open_error(path, &e))
}
