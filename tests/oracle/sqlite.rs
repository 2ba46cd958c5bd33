//! The SQLite world: one file, servers over it, and writers in this process and in others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::journal::Journal;
use crate::names::quoted;
use crate::schema::{Palette, Table};
use crate::sqlite_values::PALETTE;
use crate::support::{Bourn, sqlite_url};
use crate::world::{Orders, Row, World};

/// How long writers wait for one another.
const BUSY: Duration = Duration::from_secs(10);
/// The longest time that the file is locked.
const LOCKED_MS: u64 = 1_500;
/// The longest key that is streamed, in bytes.
const LONGEST_KEY: usize = 4_096;
/// How many of the writer processes are killed in the middle of their work.
const KILLED: f64 = 0.1;

pub struct Sqlite {
    directory: TempDir,
}

impl Sqlite {
    fn file(&self) -> PathBuf {
        self.directory.path().join("world.db")
    }

    fn open(&self) -> Connection {
        let connection = Connection::open(self.file()).unwrap();
        connection.busy_timeout(BUSY).unwrap();
        connection
    }
}

impl World for Sqlite {
    const NAME: &'static str = "sqlite";
    const PALETTE: Palette = PALETTE;
    const STRICT_BEGINNING: bool = true;

    async fn make(tables: &[Table], _seed: u64) -> Sqlite {
        let world = Sqlite { directory: tempfile::tempdir().unwrap() };
        let configuration: String = tables.iter().map(Table::configuration).collect();
        std::fs::write(world.directory.path().join("bourn.toml"), configuration).unwrap();
        let created: String = tables.iter().map(Table::create).collect();
        world.open().execute_batch(&created).unwrap();
        world
    }

    async fn server(&self) -> Result<Bourn, String> {
        let file = self.directory.path().join("bourn.toml");
        let settings = [
            ("config", file.to_str().unwrap()),
            ("long_poll_timeout", "500ms"),
            ("sse_lifetime", "8s"),
            ("sse_lifetime_jitter", "4s"),
        ];
        Bourn::try_begin_on(&sqlite_url(&self.file()), &settings).await
    }

    fn write(self: &Arc<Self>, orders: Orders) -> JoinHandle<()> {
        let world = self.clone();
        // Every other writer is another program, with the system's SQLite.
        let apart = orders.seed % 2 == 1;
        tokio::task::spawn_blocking(move || {
            let mut random = StdRng::seed_from_u64(orders.seed);
            let connection = world.open();
            connection.pragma_update(None, "recursive_triggers", random.random_bool(0.5)).unwrap();
            while !orders.stopped() {
                if let Some(script) = (orders.script)(&mut random) {
                    let done = if apart {
                        world.command(&script, &mut random)
                    } else {
                        transact(&connection, &script, &mut random)
                    };
                    match done {
                        Ok(()) if script.last().is_some_and(|end| end == "ROLLBACK") => {}
                        Ok(()) => orders.journal.transaction(&orders.name, &script, "committed"),
                        Err(reason) => {
                            if reason.starts_with("killed") {
                                orders.journal.transaction(&orders.name, &script, "may have committed");
                            }
                            // A schema change that was not done before makes the next one wrong.
                            if reason.starts_with("wrong") && !orders.forgives {
                                orders.journal.fault(format!("the test is wrong: {reason}"));
                            }
                            let kind = reason.split(':').next().unwrap_or_default();
                            orders.journal.count(&format!("writers' errors {kind}"));
                        }
                    }
                }
                std::thread::sleep(Duration::from_millis(random.random_range(0..=orders.pause)));
            }
        })
    }

    async fn trouble(&self, _tables: &[Table], random: &mut StdRng, journal: &Journal) {
        let time = random.random_range(50..LOCKED_MS);
        let begin = *["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "BEGIN; SELECT count(*) FROM activities"]
            .choose(random)
            .unwrap();
        journal.trouble(format!("file locked by {begin}: {time} ms"));
        let connection = self.open();
        tokio::task::block_in_place(|| {
            if connection.execute_batch(begin).is_ok() {
                std::thread::sleep(Duration::from_millis(time));
                let _ = connection.execute_batch("ROLLBACK");
            }
            if random.random_bool(0.3) {
                journal.trouble("the write-ahead log is written back");
                let checkpoint = ["PASSIVE", "RESTART", "TRUNCATE"].choose(random).unwrap();
                let pragma = format!("PRAGMA wal_checkpoint({checkpoint})");
                let _ = connection.query_row(&pragma, [], |_| Ok(()));
            }
        });
    }

    async fn outage(&self, _random: &mut StdRng, _journal: &Journal) {}

    fn heal(&self) {}

    fn rows(&self, table: &Table) -> BTreeMap<String, Row> {
        let connection = self.open();
        let alive = if table.soft { "WHERE deleted_at IS NULL" } else { "" };
        let scope = table.scope.as_deref().map_or("NULL".into(), quoted);
        let sql = format!(
            "SELECT {}, CAST({scope} AS TEXT), * FROM {} {alive}",
            quoted(&table.key),
            quoted(&table.name)
        );
        let mut statement = connection.prepare(&sql).unwrap();
        let mut described =
            connection.prepare("SELECT name, lower(type) FROM pragma_table_info(?1)").unwrap();
        let columns: Vec<(String, String)> = described
            .query_map([&table.name], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let mut found = statement.query([]).unwrap();
        let mut rows = BTreeMap::new();
        while let Some(row) = found.next().unwrap() {
            let Some(key) = key_of(&connection, row.get_ref(0).unwrap()) else { continue };
            let value = columns
                .iter()
                .enumerate()
                .map(|(i, (name, kind))| (name.clone(), json_of(kind, row.get_ref(i + 2).unwrap())));
            let value = Value::Object(value.collect());
            rows.insert(key, Row { scope: text_of(row.get_ref(1).unwrap()), value });
        }
        rows
    }

    fn same(held: &Value, told: &Value) -> bool {
        match (held, told) {
            // Programs print a double in more than one way.
            (Value::Number(a), Value::Number(b)) => a == b || (is_real(a) && a.as_f64() == b.as_f64()),
            _ => held == told,
        }
    }

    fn logged(&self, table: &Table, key: &str) -> String {
        let connection = self.open();
        let mut statement = connection
            .prepare(
                "SELECT seq || ' ' || action || ' ' || coalesce(commit_id, '') || ' ' || coalesce(substr(value, 1, 300), '') \
                 FROM activities WHERE entity_type = ?1 AND entity_id = ?2 ORDER BY seq DESC LIMIT 5",
            )
            .unwrap();
        let lines = statement.query_map([&table.entity, key], |row| row.get::<_, String>(0)).unwrap();
        lines.map(Result::unwrap).collect::<Vec<_>>().join("\n")
    }

    fn doing(&self) -> String {
        "SQLite has no processes".into()
    }

    fn unsound(&self) -> Option<String> {
        let (count, last): (i64, i64) = self
            .open()
            .query_row("SELECT count(*), coalesce(max(seq), 0) FROM activities", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        (count != last).then(|| format!("the log has {count} activities and its last seq is {last}"))
    }
}

impl Sqlite {
    /// Runs a transaction in another process, which may be killed in the middle.
    fn command(&self, script: &[String], random: &mut StdRng) -> Result<(), String> {
        let sql = format!("{};", script.join(";\n"));
        let mut child = Command::new("sqlite3")
            .args(["-batch", "-bail", "-cmd", ".timeout 10000"])
            .arg(self.file())
            .arg(sql)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if random.random_bool(KILLED) {
            std::thread::sleep(Duration::from_millis(random.random_range(0..20)));
            let _ = child.kill();
            let _ = child.wait();
            return Err("killed".into());
        }
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match () {
            () if said.contains("locked") => Err("busy".into()),
            () if said.contains("constraint") => Err("constraint".into()),
            () => Err(format!("wrong: {said}")),
        }
    }
}

fn transact(connection: &Connection, script: &[String], random: &mut StdRng) -> Result<(), String> {
    for statement in script {
        if let Err(error) = connection.execute_batch(statement) {
            let _ = connection.execute_batch("ROLLBACK");
            return Err(match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy) => "busy".into(),
                Some(ErrorCode::ConstraintViolation) => "constraint".into(),
                _ => format!("wrong: {statement}: {error}"),
            });
        }
        if random.random_bool(0.2) {
            std::thread::sleep(Duration::from_micros(random.random_range(0..3_000)));
        }
    }
    Ok(())
}

fn text_of(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}

/// A key as the contract has it; none where the row is left out, because its key cannot be written as text.
fn key_of(connection: &Connection, key: ValueRef<'_>) -> Option<String> {
    match key {
        ValueRef::Integer(n) => Some(n.to_string()),
        ValueRef::Real(n) if n.is_finite() => Some(shortest(connection, n)),
        ValueRef::Text(bytes) if (1..=LONGEST_KEY).contains(&bytes.len()) && !bytes.contains(&0) => {
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        }
        _ => None,
    }
}

/// A finite number in as few digits as give it back, as SQLite writes them.
fn shortest(connection: &Connection, number: f64) -> String {
    let digits = |n: i64| -> String {
        connection.query_row("SELECT printf('%!.*g', ?1, ?2)", (n, number), |row| row.get(0)).unwrap()
    };
    (15..17).map(digits).find(|text| text.parse() == Ok(number)).unwrap_or_else(|| digits(17))
}

/// A value as the contract has it.
fn json_of(kind: &str, value: ValueRef<'_>) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n @ (0 | 1)) if kind == "boolean" => Value::Bool(n == 1),
        ValueRef::Integer(n) => n.into(),
        ValueRef::Real(n) if n.is_infinite() => if n > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        ValueRef::Real(n) => serde_json::from_str(&format!("{n:?}")).unwrap(),
        ValueRef::Text(bytes) if kind == "json" => {
            serde_json::from_slice(bytes).unwrap_or_else(|_| text(bytes).into())
        }
        ValueRef::Text(bytes) if kind.starts_with("date") => {
            let text = text(bytes);
            let at_once =
                text.len() > 10 && text.as_bytes()[10] == b' ' && text.as_bytes()[0].is_ascii_digit();
            if at_once { text.replacen(' ', "T", 1).into() } else { text.into() }
        }
        ValueRef::Text(bytes) => text(bytes).into(),
        ValueRef::Blob(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("\\x{hex}").into()
        }
    }
}

fn is_real(number: &serde_json::Number) -> bool {
    number.to_string().contains(['.', 'e', 'E'])
}
