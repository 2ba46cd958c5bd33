//! A schema made up at random, transactions made up at random from several connections, readers that come and go, and
//! servers that are killed: at the end every reader has the tables' state and saw every transaction whole.
//!
//! `BOURN_TEST_SEED` repeats a run, `BOURN_TEST_ROUNDS` makes more of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::load::{Load, Script};
use crate::reader::{Reader, Way};
use crate::site::Site;
use crate::support::{Bourn, Client};

const ROUNDS: u64 = 2;
const WRITERS: usize = 5;
const KEYS: u32 = 60;
const KILLS: usize = 3;
const TRANSACTIONS_BETWEEN: usize = 40;

/// A table made up.
#[derive(Debug, Clone)]
struct Table {
    name: String,
    key: &'static str,
    scoped: bool,
    soft: bool,
    stamped: bool,
    identity: &'static str,
    previous_values: bool,
    columns: Vec<&'static str>,
}

impl Table {
    fn make_up(number: usize, random: &mut StdRng) -> Table {
        let kinds = ["text", "int", "numeric", "boolean", "jsonb", "timestamptz", "text[]", "uuid", "bytea"];
        let count = random.random_range(1..=4);
        Table {
            name: format!("table{number}"),
            key: ["text", "int", "uuid"].choose(random).unwrap(),
            scoped: random.random_bool(0.6),
            soft: random.random_bool(0.4),
            stamped: random.random_bool(0.5),
            identity: ["DEFAULT", "FULL", "INDEX"].choose(random).unwrap(),
            previous_values: random.random_bool(0.5),
            columns: (0..count).map(|_| *kinds.choose(random).unwrap()).collect(),
        }
    }

    fn create(&self) -> String {
        let mut columns = vec![format!("id {} PRIMARY KEY", self.key), "large text".to_owned()];
        columns.extend(self.columns.iter().enumerate().map(|(i, kind)| format!("c{i} {kind}")));
        for (wanted, column) in [
            (self.scoped, "scope text NOT NULL DEFAULT 's0'"),
            (self.soft, "deleted_at timestamptz"),
            (self.stamped, "transactions jsonb"),
        ] {
            columns.extend(wanted.then(|| column.to_owned()));
        }
        let more = if self.scoped { ", scope" } else { "" };
        format!(
            "CREATE TABLE {name} ({}); CREATE UNIQUE INDEX {name}_identity ON {name} (id{more});",
            columns.join(", "),
            name = self.name
        )
    }

    fn identify(&self) -> String {
        match self.identity {
            "INDEX" => format!("ALTER TABLE {0} REPLICA IDENTITY USING INDEX {0}_identity;", self.name),
            identity => format!("ALTER TABLE {} REPLICA IDENTITY {identity};", self.name),
        }
    }

    fn entity(&self) -> String {
        let scope = if self.scoped { "scope = 'scope'\n" } else { "" };
        format!(
            "[[entity]]\ntype = '{0}'\ntable = '{0}'\nprevious_values = {1}\n{scope}",
            self.name, self.previous_values
        )
    }

    fn key(&self, random: &mut StdRng) -> String {
        let number = random.random_range(0..KEYS);
        match self.key {
            "int" => number.to_string(),
            "uuid" => format!("'00000000-0000-0000-0000-{number:012}'"),
            _ => format!("'key {number}'"),
        }
    }

    fn value(kind: &str, random: &mut StdRng) -> String {
        if random.random_bool(0.15) {
            return "NULL".into();
        }
        let number: u32 = random.random_range(0..1_000);
        match kind {
            "int" => number.to_string(),
            "numeric" => format!("{number}.{:020}", random.random_range(0..1_000_000_000_u64)),
            "boolean" => number.is_multiple_of(2).to_string(),
            "jsonb" => format!("'{{\"n\": {number}, \"t\": [null, \"a b\"]}}'"),
            "timestamptz" => format!("'2026-01-01'::timestamptz + {number} * interval '1.5 seconds'"),
            "text[]" => format!("ARRAY['{number}', NULL, 'x \"y\" {{z}}']"),
            "uuid" => format!("'00000000-0000-4000-8000-{number:012}'"),
            "bytea" => format!("'\\x{number:08}'"),
            _ => format!("'some \"text\" {number}'"),
        }
    }

    /// `column = value` for some of the columns.
    fn sets(&self, random: &mut StdRng) -> String {
        let mut sets = vec![];
        for (i, kind) in self.columns.iter().enumerate() {
            if random.random_bool(0.6) {
                sets.push(format!("c{i} = {}", Self::value(kind, random)));
            }
        }
        if random.random_bool(0.15) {
            // Too large to lie in the row.
            let seed = random.random_range(0..1_000);
            sets.push(format!(
                "large = (SELECT string_agg(md5(({seed} + i)::text), '') FROM generate_series(1, 300) i)"
            ));
        }
        if self.scoped && random.random_bool(0.2) {
            sets.push(format!("scope = 's{}'", random.random_range(0..3)));
        }
        if self.soft && random.random_bool(0.2) {
            sets.push(format!("deleted_at = {}", ["NULL", "now()"].choose(random).unwrap()));
        }
        if self.stamped && random.random_bool(0.5) {
            sets.push(format!(
                "transactions = '{{\"insert\": \"i\", \"update\": \"t{}\"}}'",
                random.random::<u32>()
            ));
        }
        if sets.is_empty() {
            sets.push(format!("large = {}.large", self.name));
        }
        sets.join(", ")
    }

    fn statement(&self, random: &mut StdRng) -> String {
        let (name, key, other) = (&self.name, self.key(random), self.key(random));
        match random.random_range(0..100) {
            0..35 => format!(
                "INSERT INTO {name} (id) VALUES ({key}) ON CONFLICT (id) DO UPDATE SET {}",
                self.sets(random)
            ),
            35..70 => format!("UPDATE {name} SET {} WHERE id IN ({key}, {other})", self.sets(random)),
            70..78 => format!(
                "UPDATE {name} SET id = {other}, {} WHERE id = {key} AND NOT EXISTS (SELECT 1 FROM {name} WHERE id = {other})",
                self.sets(random)
            ),
            78..90 => format!("DELETE FROM {name} WHERE id = {key}"),
            // Before the log has the table, that ends the log for its readers.
            90..92 => format!(
                "DO $$ BEGIN IF (SELECT whole FROM bourn.entities WHERE entity_type = '{name}') THEN TRUNCATE {name}; END IF; END $$"
            ),
            92..96 => format!("UPDATE {name} SET {}", self.sets(random)),
            _ => format!(
                "SELECT pg_logical_emit_message(true, 'bourn', '{{\"transactionId\":\"m{}\"}}')",
                random.random::<u32>()
            ),
        }
    }
}

fn script(tables: Vec<Table>) -> Script {
    Arc::new(move |random| {
        let mut script = vec!["BEGIN".to_owned()];
        let mut depth = 0;
        for _ in 0..random.random_range(1..=8) {
            match random.random_range(0..12) {
                0 => {
                    depth += 1;
                    script.push(format!("SAVEPOINT s{depth}"));
                }
                1 if depth > 0 => {
                    let to = random.random_range(1..=depth);
                    script.push(format!("ROLLBACK TO SAVEPOINT s{to}"));
                    depth = to;
                }
                _ => script.push(tables.choose(random).unwrap().statement(random)),
            }
        }
        script.push(if random.random_bool(0.12) { "ROLLBACK" } else { "COMMIT" }.to_owned());
        script
    })
}

/// The rows that are to be seen.
fn visible(table: &Table, site: &Site) -> BTreeMap<String, Value> {
    let alive = if table.soft { " WHERE deleted_at IS NULL" } else { "" };
    site.table(&format!("(SELECT * FROM {}{alive})", table.name), "id")
}

async fn round(seed: u64) {
    println!("seed {seed}: BOURN_TEST_SEED={seed} repeats it");
    let mut random = StdRng::seed_from_u64(seed);
    let tables: Vec<Table> = (1..=2).map(|number| Table::make_up(number, &mut random)).collect();
    println!("{tables:#?}");
    let created: String = tables.iter().map(Table::create).collect();
    let entities: String = tables.iter().map(Table::entity).collect();
    let site = Site::new(&created, &entities).await.eager();
    site.sql(&tables.iter().map(Table::identify).collect::<String>());
    let load = Load::start(&site.database.url(), WRITERS, seed, &script(tables.clone()));
    // Some of it is there before anybody captures.
    load.more(TRANSACTIONS_BETWEEN).await;
    let mut servers: [Bourn; 2] = [site.begin_server().await, site.begin_server().await];
    let clients: Vec<Client> = servers.iter().map(Bourn::client).collect();
    let mut readers = Vec::new();
    for (i, table) in tables.iter().enumerate() {
        for (j, ways) in [vec![Way::CatchUp, Way::LongPoll, Way::Sse], vec![Way::Sse]].iter().enumerate() {
            let seed = seed.wrapping_add((10 * i + j) as u64);
            readers.push((i, Reader::start(&clients, &format!("/v1/entities/{}", table.name), ways, seed)));
        }
    }
    for _ in 0..KILLS {
        load.more(TRANSACTIONS_BETWEEN).await;
        let server = &mut servers[random.random_range(0..2)];
        server.kill().await;
        if random.random_bool(0.5) {
            load.more(TRANSACTIONS_BETWEEN).await;
        }
        server.begin_again().await;
    }
    load.end().await;
    for client in &clients {
        crate::site::is_ready(client).await;
    }
    site.captured().await;
    site.assert_log_is_sound();
    for (i, reader) in readers {
        let table = &tables[i];
        let end = site.sql(&format!(
            "SELECT coalesce(max(seq), 0) FROM bourn.activities WHERE entity_type = '{}'",
            table.name
        ));
        let seen = reader.finish(end.parse().unwrap()).await;
        seen.assert_complete(&site, &table.name);
        let (state, held) = (seen.state(), visible(table, &site));
        for key in state.keys().chain(held.keys()) {
            assert_eq!(
                state.get(key),
                held.get(key),
                "{} {key}: what a reader has, and the table",
                table.name
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_written_every_reader_ends_with_the_tables_state() {
    let number = |name: &str| std::env::var_os(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
    if let Some(seed) = number("BOURN_TEST_SEED") {
        return round(seed).await;
    }
    for _ in 0..number("BOURN_TEST_ROUNDS").unwrap_or(ROUNDS) {
        round(rand::random()).await;
    }
}
