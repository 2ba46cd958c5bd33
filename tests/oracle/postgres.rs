//! The PostgreSQL world: a cluster of the run's own, servers that reach it through a proxy, writers that reach it directly.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bourn_testkit::{Cluster, Database, Proxy, Way};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::features::on;
use crate::journal::Journal;
use crate::names::{literal, quoted};
use crate::postgres_values::PALETTE;
use crate::readers::text;
use crate::schema::{Palette, Table};
use crate::support::Bourn;
use crate::world::{Orders, Row, World};

/// The longest time that a row or a table is locked.
const LOCKED_MS: u64 = 1_500;
/// The longest time that the network is silent.
const SILENT_MS: u64 = 6_000;
/// What makes JSON of rows independent of settings.
const FORMS: &str = "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET bytea_output = 'hex'; SET intervalstyle = 'postgres'; \
                     SET extra_float_digits = 1;";
/// The servers' own connections: all but the writers' and `psql`'s.
const SERVERS: &str = "datname = current_database() AND backend_type IN ('client backend', 'walsender') \
                       AND application_name NOT IN ('writer', 'psql')";

pub struct Postgres {
    // Dropped in this order.
    database: Database,
    _cluster: Cluster,
    network: Proxy,
    directory: TempDir,
}

impl Postgres {
    fn settings(&self) -> Vec<(String, String)> {
        let file = self.directory.path().join("bourn.toml");
        vec![
            ("config".into(), file.to_str().unwrap().into()),
            ("slot".into(), format!("slot_{}", self.database.name())),
            ("long_poll_timeout".into(), "500ms".into()),
            ("follow_interval".into(), "300ms".into()),
            ("sse_lifetime".into(), "8s".into()),
            ("sse_lifetime_jitter".into(), "4s".into()),
        ]
    }

    fn url(&self) -> String {
        self.network.url(&self.database.url())
    }

    fn writers_url(&self) -> String {
        format!("{}?application_name=writer", self.database.url())
    }

    /// Runs SQL that waits at its end, as a holder of locks does; whatever becomes of it.
    async fn hold(&self, sql: &str, time: u64) {
        let Ok(mut holder) = PgConnection::connect(&self.writers_url()).await else { return };
        let wait = format!("SELECT pg_sleep({})", Duration::from_millis(time).as_secs_f64());
        for statement in ["BEGIN", "SET lock_timeout = '2s'", sql, &wait, "ROLLBACK"] {
            if sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut holder).await.is_err() {
                break;
            }
        }
    }

    async fn network_trouble(&self, random: &mut StdRng, journal: &Journal) {
        let ways = [Way::Up, Way::Down, Way::Both];
        let (way, time) = (*ways.choose(random).unwrap(), random.random_range(100..SILENT_MS));
        match random.random_range(0..6) {
            0 => {
                journal.trouble("database connections cut");
                self.network.cut();
                return;
            }
            1 => {
                journal.trouble(format!("database network slow: {way:?} {time} ms"));
                self.network.delay(way, Duration::from_millis(random.random_range(10..300)));
            }
            2 if on("half-open") => {
                journal.trouble(format!("database network half-open: {way:?} {time} ms"));
                self.network.swallow(way);
            }
            3 if on("stalled-network") => {
                journal.trouble(format!("database network stalled: {way:?} {time} ms"));
                self.network.stall(way);
            }
            4 => {
                journal.trouble(format!("database refuses connections: {time} ms"));
                tokio::task::block_in_place(|| self.network.refuse());
                self.network.cut();
            }
            _ => {
                journal.trouble(format!("database network narrow: {way:?} {time} ms"));
                self.network.limit(way, random.random_range(20_000..2_000_000));
            }
        }
        tokio::time::sleep(Duration::from_millis(time)).await;
        tokio::task::block_in_place(|| self.network.heal());
    }
}

impl World for Postgres {
    const NAME: &'static str = "postgres";
    const PALETTE: Palette = PALETTE;
    const STRICT_BEGINNING: bool = false;

    async fn make(tables: &[Table], _seed: u64) -> Postgres {
        let cluster = Cluster::start();
        let database = cluster.database();
        let network = Proxy::to_port(cluster.port());
        let directory = tempfile::tempdir().unwrap();
        let configuration: String = tables.iter().map(Table::configuration).collect();
        std::fs::write(directory.path().join("bourn.toml"), configuration).unwrap();
        let created: String = tables.iter().map(Table::create).collect();
        database.psql(&format!("{}{created}", PALETTE.preamble));
        let world = Postgres { database, _cluster: cluster, network, directory };
        let mut variables: Vec<(String, String)> = world
            .settings()
            .into_iter()
            .map(|(name, value)| (format!("BOURN_{}", name.to_uppercase()), value))
            .collect();
        variables.push(("BOURN_DATABASE".into(), world.url()));
        let variables: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let output = Bourn::output(&["prepare", "--apply"], &variables).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        world.database.psql(&tables.iter().map(Table::identify).collect::<String>());
        world
    }

    async fn server(&self) -> Result<Bourn, String> {
        let settings = self.settings();
        let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        Bourn::try_begin_on(&self.url(), &settings).await
    }

    fn write(self: &Arc<Self>, orders: Orders) -> JoinHandle<()> {
        let url = self.writers_url();
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(orders.seed);
            let mut connection = None;
            while !orders.stopped() {
                let Some(open) = &mut connection else {
                    connection = PgConnection::connect(&url).await.ok();
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                if let Some(script) = (orders.script)(&mut random) {
                    match transact(open, &script, &mut random).await {
                        Ok(()) if script.last().is_some_and(|end| end == "ROLLBACK") => {}
                        Ok(()) => orders.journal.transaction(&orders.name, &script, "committed"),
                        Err((statement, sqlx::Error::Database(error))) => {
                            let code = error.code().unwrap_or_default().into_owned();
                            orders.journal.count(&format!("writers' errors {code}"));
                            // A schema change that was not done before makes the next one wrong.
                            let wrong = code.starts_with("42") || code.starts_with("0A");
                            if wrong && !orders.forgives {
                                orders.journal.fault(format!("the test is wrong: {statement}: {error}"));
                            }
                            if code.starts_with("57P")
                                || sqlx::raw_sql("ROLLBACK").execute(open).await.is_err()
                            {
                                connection = None;
                            }
                        }
                        // The database went; the transaction was committed or not.
                        Err((statement, _)) => {
                            if statement == "COMMIT" {
                                orders.journal.transaction(&orders.name, &script, "may have committed");
                            }
                            connection = None;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(random.random_range(0..=orders.pause))).await;
            }
        })
    }

    async fn trouble(&self, tables: &[Table], random: &mut StdRng, journal: &Journal) {
        let table = tables.choose(random).unwrap();
        let (name, id) = (quoted(&table.name), quoted(&table.key));
        let time = random.random_range(100..LOCKED_MS);
        match random.random_range(0..7) {
            0 if on("cancel") => {
                journal.trouble("statements of the servers cancelled");
                let sql = format!("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {SERVERS}");
                let _ = self.database.try_psql(&sql);
            }
            1 => {
                journal.trouble("a connection of the servers terminated");
                let _ = self.database.try_psql(&format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {SERVERS} ORDER BY random() LIMIT 1"
                ));
            }
            2 if on("row-locks") => {
                journal.trouble(format!("rows locked: {name} {time} ms"));
                self.hold(&format!("SELECT {id} FROM {name} FOR UPDATE"), time).await;
            }
            3 if on("table-locks") => {
                journal.trouble(format!("table locked: {name} {time} ms"));
                self.hold(&format!("LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"), time).await;
            }
            4 => {
                journal.trouble(format!("a transaction is left open: {time} ms"));
                self.hold(
                    &format!("UPDATE {name} SET large = 'open' WHERE false; SELECT txid_current()"),
                    time,
                )
                .await;
            }
            _ => self.network_trouble(random, journal).await,
        }
    }

    async fn outage(&self, random: &mut StdRng, journal: &Journal) {
        let cluster = self.database.cluster();
        tokio::task::block_in_place(|| match random.random_range(0..3) {
            0 => {
                journal.trouble("database killed");
                cluster.kill9();
                cluster.start_again();
            }
            1 => {
                journal.trouble("database stopped as if the power went");
                cluster.stop_immediate();
                cluster.start_again();
            }
            _ => {
                journal.trouble("database restarted");
                cluster.restart();
            }
        });
    }

    fn heal(&self) {
        self.network.heal();
    }

    fn rows(&self, table: &Table) -> BTreeMap<String, Row> {
        let scope = table.scope.as_ref().map_or("NULL".into(), |scope| format!("{}::text", quoted(scope)));
        let alive = if table.soft { "WHERE deleted_at IS NULL" } else { "" };
        let rows = self.database.psql(&format!(
            "{FORMS} SELECT jsonb_build_array({scope}, to_jsonb(t)) FROM {} t {alive}",
            quoted(&table.name)
        ));
        rows.lines()
            .map(|line| {
                let (scope, value): (Option<String>, Value) = serde_json::from_str(line).unwrap();
                (text(&value[&table.key]), Row { scope, value })
            })
            .collect()
    }

    fn same(held: &Value, told: &Value) -> bool {
        held == told
    }

    fn logged(&self, table: &Table, key: &str) -> String {
        let log = self.database.try_psql(&format!(
            "SELECT seq, action, commit_id, created_at, left(value, 300) FROM bourn.activities \
             WHERE entity_type = {} AND entity_id = {} ORDER BY seq DESC LIMIT 5",
            literal(&table.entity),
            literal(key)
        ));
        log.unwrap_or_else(|refused| refused.to_string())
    }

    fn doing(&self) -> String {
        self.database.psql(
            "SELECT 'slot', slot_name, active_pid, restart_lsn, confirmed_flush_lsn, pg_current_wal_lsn() FROM pg_replication_slots; \
             SELECT 'log', head, position, fence FROM bourn.log; SELECT 'type', entity_type, reconciled, wait_for, compared FROM bourn.entities; \
             SELECT 'backend', pid, backend_type, application_name, state, wait_event_type, wait_event, pg_blocking_pids(pid), \
             clock_timestamp() - xact_start, clock_timestamp() - state_change, left(query, 120) FROM pg_stat_activity \
             WHERE datname = current_database()",
        )
    }

    fn unsound(&self) -> Option<String> {
        // Where the database may have lost changes the log leaps, and remembers that it did.
        let gaps = self.database.psql(
            "SELECT seq, before FROM (SELECT seq, coalesce(lag(seq) OVER (ORDER BY seq), 0) AS before FROM bourn.activities) a \
             WHERE before <> seq - 1 AND NOT EXISTS \
             (SELECT 1 FROM bourn.gaps g WHERE g.before = a.before AND a.seq > g.after) LIMIT 5",
        );
        (!gaps.is_empty()).then(|| format!("the log has gaps that it does not remember: {gaps}"))
    }
}

/// Runs a transaction; the error comes with its statement.
async fn transact(
    connection: &mut PgConnection,
    script: &[String],
    random: &mut StdRng,
) -> Result<(), (String, sqlx::Error)> {
    for statement in script {
        let done = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *connection).await;
        done.map_err(|error| (statement.clone(), error))?;
        if random.random_bool(0.3) {
            // Others get a word in.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..3_000))).await;
        }
    }
    Ok(())
}
