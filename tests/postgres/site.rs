//! A database of the test's own with tables to stream, and servers over it.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use bourn_testkit::{Cluster, Database, Refused};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Bourn, Client, PATIENCE, eventually, materialize_with_unknown_ends, within};

/// Pages, as the demo has them.
pub const PAGES: &str = "CREATE TABLE pages (id text PRIMARY KEY, organization_id text, name text NOT NULL DEFAULT '', \
     content text, transactions jsonb, last_client_id text); ALTER TABLE pages REPLICA IDENTITY FULL;";
/// Their part of the configuration.
pub const PAGE: &str = "[[entity]]\ntype = 'page'\ntable = 'pages'\nscope = 'organization_id'\n";
/// Where they are.
pub const PAGES_PATH: &str = "/v1/entities/pages";

pub struct Site {
    pub database: Database,
    directory: TempDir,
    url: String,
    settings: Vec<(String, String)>,
}

impl Site {
    /// A database of the shared cluster with these tables, prepared for these entities.
    pub async fn new(tables: &str, entities: &str) -> Site {
        Self::on(Cluster::shared(), tables, entities).await
    }

    /// The same, of a cluster of the test's own.
    pub async fn on(cluster: &Cluster, tables: &str, entities: &str) -> Site {
        let site = Self::bare(cluster, tables, entities);
        site.prepare().await;
        site
    }

    /// A database with these tables, not prepared yet.
    pub fn bare(cluster: &Cluster, tables: &str, entities: &str) -> Site {
        let database = cluster.database();
        if !tables.is_empty() {
            database.psql(tables);
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bourn.toml");
        std::fs::write(&file, entities).unwrap();
        let settings = vec![
            ("config".to_owned(), file.to_str().unwrap().to_owned()),
            ("slot".to_owned(), format!("slot_{}", database.name())),
        ];
        Site { url: database.url(), database, directory, settings }
    }

    /// Has the servers and commands to come use this setting.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Has the servers to come look for changes often and hold long-polls briefly.
    pub fn eager(mut self) -> Site {
        self.set("long_poll_timeout", "500ms");
        self.set("follow_interval", "300ms");
        self
    }

    /// Has the servers and commands to come use this URL.
    pub fn reach_by(&mut self, url: &str) {
        self.url = url.to_owned();
    }

    /// Has the servers and commands to come stream these entities.
    pub fn configure(&self, entities: &str) {
        std::fs::write(self.directory.path().join("bourn.toml"), entities).unwrap();
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn slot(&self) -> String {
        format!("slot_{}", self.database.name())
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// A server, ready.
    pub async fn server(&self) -> Bourn {
        Bourn::start_on(&self.url, &self.settings()).await
    }

    /// A server that cannot be ready yet.
    pub async fn begin_server(&self) -> Bourn {
        Bourn::begin_on(&self.url, &self.settings()).await
    }

    /// Runs a command on the database to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut variables: Vec<(String, String)> = vec![("BOURN_DATABASE".into(), self.url.clone())];
        let named =
            |(name, value): &(String, String)| (format!("BOURN_{}", name.to_uppercase()), value.clone());
        variables.extend(self.settings.iter().map(named));
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Bourn::output(arguments, &variables).await
    }

    /// `bourn prepare --apply`.
    pub async fn prepare(&self) {
        let output = self.run(&["prepare", "--apply"]).await;
        assert!(output.status.success(), "{}", said(&output));
    }

    /// Tries to serve, in vain; gives what is said.
    pub async fn refused(&self) -> String {
        let output = self.run(&["serve", "--listen", "127.0.0.1:0"]).await;
        assert!(!output.status.success(), "it starts all the same: {}", said(&output));
        said(&output)
    }

    /// Runs SQL as a foreign writer.
    pub fn sql(&self, sql: &str) -> String {
        self.database.psql(sql)
    }

    pub fn try_sql(&self, sql: &str) -> Result<String, Refused> {
        self.database.try_psql(sql)
    }

    /// Waits until everything that is committed now is in the log.
    pub async fn captured(&self) {
        let mark = self.sql("SELECT pg_logical_emit_message(true, 'test.mark', '')");
        let captured = format!("SELECT position > '{mark}' FROM bourn.log");
        let there = async || self.try_sql(&captured).is_ok_and(|there| there == "t");
        assert!(within(3 * PATIENCE, there).await, "it never came to pass that everything is captured");
    }

    /// The number of the database's process that sends the replication stream.
    pub fn sender(&self) -> Option<u32> {
        let sql = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", self.slot());
        self.sql(&sql).parse().ok()
    }

    /// Writes a page and waits until it is in the log; gives how long that took.
    pub async fn time_to_capture(&self, id: &str) -> Duration {
        self.sql(&format!("INSERT INTO pages (id) VALUES ('{id}')"));
        let began = Instant::now();
        eventually("the page is in the log", async || {
            self.sql(&format!("SELECT 1 FROM bourn.activities WHERE entity_id = '{id}'")) == "1"
        })
        .await;
        began.elapsed()
    }

    /// The table's living rows by their keys, as `to_jsonb` has them.
    pub fn table(&self, table: &str, key: &str) -> BTreeMap<String, Value> {
        let forms = "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET bytea_output = 'hex'; SET intervalstyle = 'postgres'";
        let rows =
            self.sql(&format!("{forms}; SELECT jsonb_build_array({key}::text, to_jsonb(t)) FROM {table} t"));
        rows.lines()
            .map(|line| {
                let Value::Array(mut pair) = serde_json::from_str(line).unwrap() else { panic!("{line}") };
                let row = pair.remove(1);
                (pair[0].as_str().unwrap().to_owned(), row)
            })
            .collect()
    }

    /// Asserts that the log has no gap but those that are remembered, and nothing twice, and marks the end of every transaction and nothing else.
    pub fn assert_log_is_sound(&self) {
        let gaps = self.sql(
            "WITH places AS (SELECT seq, coalesce(lag(seq) OVER (ORDER BY seq), 0) AS before FROM bourn.activities UNION ALL \
               SELECT head + 1, (SELECT coalesce(max(seq), 0) FROM bourn.activities) FROM bourn.log) \
             SELECT seq, before FROM places WHERE before <> seq - 1 \
             AND NOT EXISTS (SELECT 1 FROM bourn.gaps g WHERE g.before = places.before AND places.seq > g.after) LIMIT 5",
        );
        assert_eq!(gaps, "", "gaps that are not remembered, or a wrong head");
        let torn = self.sql(
            "SELECT a.seq, a.commit_id, a.entity_type, a.last FROM (SELECT *, lead(commit_id) OVER (ORDER BY seq) AS next, \
             max(seq) OVER (PARTITION BY commit_id, entity_type) AS type_end, \
             max(seq) OVER (PARTITION BY commit_id, feed_id) AS feed_end FROM bourn.activities) a \
             WHERE a.last <> (a.seq = a.feed_end)::int + 2 * (a.seq = a.type_end)::int LIMIT 5",
        );
        assert_eq!(torn, "", "the last change of a transaction is not marked as it is");
        let split = self.sql(
            "SELECT commit_id FROM bourn.activities GROUP BY commit_id HAVING max(seq) - min(seq) + 1 <> count(*) LIMIT 5",
        );
        assert_eq!(split, "", "a transaction is split by another");
    }
}

impl Site {
    /// Waits until the server is ready and everything is captured, and asserts that the stream adds up to the table.
    pub async fn assert_agrees(&self, server: &Bourn, table: &str) {
        server.ready().await;
        self.captured().await;
        server.ready().await;
        let stream = format!("/v1/entities/{table}");
        let client = server.client();
        let (mut streamed, mut held) = (BTreeMap::new(), BTreeMap::new());
        let agree = within(PATIENCE / 2, async || {
            streamed = without_nulls(state(&client, &stream).await);
            held = without_nulls(self.table(table, "id"));
            streamed == held
        });
        if !agree.await {
            let differs = |key: &&String| streamed.get(*key) != held.get(*key);
            let key = streamed.keys().chain(held.keys()).find(differs).unwrap();
            panic!(
                "{table}: {key} is {:?} in the stream and {:?} in the table",
                streamed.get(key),
                held.get(key)
            );
        }
        self.assert_log_is_sound();
    }
}

/// Rows without what is null: a column that was added or dropped without a value is no change of a row.
fn without_nulls(rows: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let strip = |row: Value| match row {
        Value::Object(columns) => columns.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => other,
    };
    rows.into_iter().map(|(key, row)| (key, strip(row))).collect()
}

/// Whether a server captures, as its own log has it.
pub fn captures(server: &Bourn) -> bool {
    let log = server.recent_log();
    let last = |words: &str| log.rfind(words);
    last("this server captures changes") > last("does not capture any more")
}

/// Which of the servers captures.
pub async fn leader(servers: &[Bourn]) -> usize {
    let mut found = 0;
    eventually("one of them captures", async || {
        let leaders: Vec<usize> = (0..servers.len()).filter(|&i| captures(&servers[i])).collect();
        found = leaders.first().copied().unwrap_or_default();
        leaders.len() == 1
    })
    .await;
    found
}

/// What a command said, on both of its outputs.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What the stream adds up to.
pub async fn state(client: &Client, stream: &str) -> BTreeMap<String, Value> {
    materialize_with_unknown_ends(&client.read_all(stream, "-1").await.0)
}

/// Everything that stands in a server's way, as `/ready` says it.
pub async fn problems(client: &Client) -> String {
    client.get("/ready").await.json()["problems"].to_string()
}

/// Waits until `/ready` says this.
pub async fn says(client: &Client, words: &str) {
    let mut last = String::new();
    let told = within(PATIENCE, async || {
        last = problems(client).await;
        last.contains(words)
    });
    assert!(told.await, "`{words}` is never said, but: {last}");
}

/// Waits until the server is ready, and the log has every table as it is.
pub async fn is_ready(client: &Client) {
    let mut last = String::new();
    let ready = within(PATIENCE, async || {
        let answer = client.get("/ready").await;
        last = answer.text().to_owned();
        answer.is_settled()
    });
    assert!(ready.await, "never ready: {last}");
}
