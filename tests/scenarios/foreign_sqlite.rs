//! Writers with a SQLite of their own, older than the server's: what they write is captured, whatever they allow their schema
//! to do, and goes out as the server itself would write it.

use serde_json::value::RawValue;

use crate::support::{Bourn, eventually, sqlite3};

const TABLES: &str = "CREATE TABLE pages (id TEXT PRIMARY KEY, organization_id TEXT, name TEXT, data JSON, transactions JSON, \
     last_client_id TEXT, modified_at DATETIME, deleted_at DATETIME); \
     CREATE TABLE numbers (id INTEGER PRIMARY KEY, x REAL, y)";
const CONFIG: &str = "[[entity]]\ntype='page'\ntable='pages'\nscope='organization_id'\nprevious_values=true\n\
     [[entity]]\ntype='number'\ntable='numbers'\n";

async fn server() -> Bourn {
    Bourn::start_with(CONFIG, &[], |database| {
        sqlite3(database, TABLES);
    })
    .await
}

#[tokio::test]
async fn a_writer_that_distrusts_the_schema_is_captured() {
    let bourn = server().await;
    let client = bourn.client();
    bourn.sql(
        "PRAGMA trusted_schema = OFF; \
         INSERT INTO pages (id, organization_id, name, data, transactions) VALUES ('p', 'o', 'a \"b\"', '{ \"k\": [1] }', '{\"insert\": \"t1\", \"update\":null}'); \
         UPDATE pages SET name = 'c', transactions = json_set(transactions, '$.update', 't2'), last_client_id = 'me'; \
         UPDATE pages SET organization_id = 'q'; \
         INSERT OR REPLACE INTO pages (id, name, transactions) VALUES ('p', 'd', '{\"insert\":\"t1\",\"update\":\"t3\"}'); \
         UPDATE pages SET deleted_at = '2026-01-02 03:04:05'; DELETE FROM pages; INSERT INTO numbers VALUES (1, 0.1, 1e300)",
    );
    let mut read = Vec::new();
    eventually("all is captured", async || {
        read = client.read_all("/v1/entities/pages", "-1").await.0;
        assert!(read.len() <= 7, "{read:?}");
        read.len() == 7
    })
    .await;
    let short: Vec<String> = read
        .iter()
        .map(|m| {
            format!(
                "{} {}",
                m["headers"]["operation"].as_str().unwrap(),
                m["headers"]["txid"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(short[..2], ["insert t1", "update t2"]);
    assert_eq!(short.iter().filter(|line| line.ends_with(" t3")).count(), 2, "{short:?}");
    assert_eq!(read[0]["value"]["data"], serde_json::json!({ "k": [1] }));
    assert_eq!(read[0]["value"]["name"], "a \"b\"");
    assert_eq!(read[1]["headers"]["client_id"], "me");
}

#[tokio::test]
async fn doubles_are_the_same_in_list_and_stream_whoever_wrote_them() {
    const ROWS: usize = 4_000;
    let bourn = server().await;
    let client = bourn.client();
    // Numbers of all sizes; half of them have more digits than fifteen.
    bourn.sql(&format!(
        "WITH RECURSIVE n(i, r) AS (SELECT 1, random() UNION ALL SELECT i + 1, random() FROM n WHERE i < {ROWS}) \
         INSERT INTO numbers SELECT i, (r / 9223372036854775808.0) * CASE i % 4 WHEN 0 THEN 1 WHEN 1 THEN 1e-9 WHEN 2 THEN 1e250 ELSE 1e-250 END, r / 7.0 FROM n"
    ));
    let mut streamed = Vec::new();
    eventually("all is captured", async || {
        streamed = Vec::new();
        let mut offset = "-1".to_owned();
        loop {
            let chunk = client.get(&format!("/v1/entities/numbers?offset={offset}")).await;
            let messages: Vec<Message> = serde_json::from_slice(&chunk.body).unwrap();
            streamed.extend(messages.into_iter().map(|message| message.value.get().to_owned()));
            offset = chunk.next_offset();
            if chunk.up_to_date() {
                break;
            }
        }
        streamed.len() == ROWS
    })
    .await;
    let list = client.get("/v1/entities/numbers?limit=10000").await;
    let listed: Vec<Box<RawValue>> = serde_json::from_slice(&list.body).unwrap();
    // Exactly what the file has, in the fewest digits.
    let file = rusqlite::Connection::open(bourn.database()).unwrap();
    let mut select = file.prepare("SELECT id, x, y FROM numbers ORDER BY id").unwrap();
    let held: Vec<(i64, f64, f64)> = select
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for ((row, message), (id, x, y)) in listed.iter().zip(&streamed).zip(&held) {
        assert_eq!(row.get(), message);
        let told: Number<'_> = serde_json::from_str(row.get()).unwrap();
        // Not by the parser of JSON, which is not exact.
        let number = |text: &RawValue| text.get().parse::<f64>().unwrap();
        assert_eq!((told.id, number(told.x), number(told.y)), (*id, *x, *y), "{}", row.get());
        assert!(digits(told.x.get()) <= digits(&format!("{x:e}")), "{}", row.get());
    }
}

#[derive(serde::Deserialize)]
struct Message {
    value: Box<RawValue>,
}

#[derive(serde::Deserialize)]
struct Number<'a> {
    id: i64,
    #[serde(borrow)]
    x: &'a RawValue,
    #[serde(borrow)]
    y: &'a RawValue,
}

/// How many digits a number is written with, without zeros around them.
fn digits(text: &str) -> usize {
    let mantissa = text.trim_start_matches('-').split('e').next().unwrap();
    mantissa.replace('.', "").trim_matches('0').len()
}

#[tokio::test]
async fn the_triggers_of_many_small_tables_are_small() {
    let names: Vec<String> = (0..200).map(|i| format!("small{i}")).collect();
    let config: String =
        names.iter().map(|name| format!("[[entity]]\ntype='{name}'\ntable='{name}'\n")).collect();
    let bourn = Bourn::start_with(&config, &[], |database| {
        let tables: String = names
            .iter()
            .map(|name| {
                format!("CREATE TABLE {name} (id INTEGER PRIMARY KEY, name TEXT, n INTEGER, at DATETIME);")
            })
            .collect();
        sqlite3(database, &tables);
    })
    .await;
    let size = bourn.sql("SELECT sum(length(sql)) FROM sqlite_master WHERE type = 'trigger'");
    let started = std::time::Instant::now();
    let connection = rusqlite::Connection::open(bourn.database()).unwrap();
    connection.query_row("SELECT count(*) FROM small1", [], |row| row.get::<_, i64>(0)).unwrap();
    println!("{size} bytes of triggers, opened in {:?}", started.elapsed());
    assert!(size.parse::<usize>().unwrap() < 900_000, "{size}");
}

#[tokio::test]
async fn a_table_of_the_applications_own_that_has_the_logs_name_is_told_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("bourn.toml");
    std::fs::write(&config, "[[entity]]\ntype='page'\ntable='pages'\n").unwrap();
    for own in ["TABLE activities (x)", "TABLE \"Activities\" (x)", "VIEW activities AS SELECT 1"] {
        let database = directory.path().join(format!("{}.db", own.len()));
        sqlite3(&database, &format!("CREATE TABLE pages (id TEXT PRIMARY KEY); CREATE {own}"));
        let before = sqlite3(&database, "SELECT count(*) FROM sqlite_master");
        for command in ["check", "serve"] {
            let url = crate::support::sqlite_url(&database);
            let arguments = [command, "--config", config.to_str().unwrap(), "--database", &url];
            let output = Bourn::output(&arguments, &[("BOURN_LISTEN", "127.0.0.1:0")]).await;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8(said).unwrap();
            assert!(!output.status.success(), "{own}: {said}");
            assert!(said.contains("`activities` of its own") && said.contains("rename it"), "{own}: {said}");
            assert!(!said.contains("CREATE"), "{own}: {said}");
        }
        assert_eq!(sqlite3(&database, "SELECT count(*) FROM sqlite_master"), before);
    }
}
