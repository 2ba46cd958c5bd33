//! Other processes that write the SQLite file: they do not fail because of the server, wait for it only briefly, and are heard
//! of at once.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Bourn, eventually};

const PAGES: &str = "/v1/entities/pages";

/// A connection of another process, which waits for locks as an application would.
fn connect(database: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection.pragma_update(None, "synchronous", "normal").unwrap();
    connection
}

/// Transactions that read, think and then write, one after another; gives how many of them failed.
fn read_then_write(database: &Path, transactions: u32, thinking: Duration) -> u32 {
    let connection = connect(database);
    let mut failed = 0;
    for i in 0..transactions {
        let done = connection
            .execute_batch("BEGIN; SELECT name FROM pages WHERE id = 'p'")
            .map(|()| std::thread::park_timeout(thinking))
            .and_then(|()| connection.execute("UPDATE pages SET name = ?1 WHERE id = 'p'", [i]))
            .and_then(|_| connection.execute_batch("COMMIT"));
        if done.is_err() {
            failed += 1;
            connection.execute_batch("ROLLBACK").unwrap();
        }
    }
    failed
}

#[tokio::test]
async fn transactions_that_read_before_they_write_do_not_fail_because_of_the_server() {
    const TRANSACTIONS: u32 = 1_000;
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p", "t").await;
    // Deleted and expired streams, and readers, give the server all the background work it has.
    client.send(http::Method::PUT, "/v1/stream/s", &[("stream-ttl", "1")], "x").await;
    let mut events = client.events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    events.control().await;
    let database = bourn.database().to_owned();
    let writing = tokio::task::spawn_blocking(move || {
        read_then_write(&database, TRANSACTIONS, Duration::from_millis(5))
    });
    let failed = writing.await.unwrap();
    assert!(failed <= 1, "{failed} of {TRANSACTIONS} failed");
    let written = usize::try_from(TRANSACTIONS - failed).unwrap();
    let mut messages = Vec::new();
    eventually("all of it is in the stream", async || {
        messages = client.read_all(PAGES, "-1").await.0;
        messages.len() == written + 1
    })
    .await;
    for (i, message) in messages.iter().enumerate() {
        assert_eq!(message["headers"]["seq"], json!(i + 1));
        assert!(message["headers"]["txid"].is_string());
    }
    let mut live = Vec::new();
    while live.len() < written {
        live.extend(events.messages().await.0);
    }
    assert_eq!(live, messages[1..], "readers that followed and readers that came later see the same");
}

#[tokio::test]
async fn numbers_of_other_processes_transactions_stay_whatever_happens() {
    let mut bourn = Bourn::start(&[]).await;
    let database = bourn.database().to_owned();
    let mut connection = connect(&database);
    let mut seen = Vec::new();
    for round in 0..5 {
        for i in 0..40 {
            let transaction = connection.transaction().unwrap();
            for part in 0..=i % 3 {
                let id = format!("{round}-{i}-{part}");
                transaction.execute("INSERT INTO pages (id) VALUES (?1)", [&id]).unwrap();
            }
            transaction.commit().unwrap();
        }
        let expected = (round + 1) * 79;
        eventually("all of it is in the stream", async || {
            seen = bourn.client().read_all(PAGES, "-1").await.0;
            seen.len() == expected
        })
        .await;
        if round % 2 == 0 {
            bourn.kill().await;
            bourn.restart().await;
        } else {
            // Commits of the server's own fold the marks into the database.
            bourn.client().post("/v1/entities/attachments", &[], &json!({ "id": round.to_string() })).await;
        }
        assert_eq!(bourn.client().read_all(PAGES, "-1").await.0, seen);
    }
    // Whole transactions: one that wrote three rows has one number.
    let transaction =
        |message: &serde_json::Value| message["key"].as_str().unwrap().rsplit_once('-').unwrap().0.to_owned();
    for group in seen.chunk_by(|a, b| transaction(a) == transaction(b)) {
        assert!(group.iter().all(|message| message["headers"]["txid"] == group[0]["headers"]["txid"]));
    }
    let two = Bourn::start_on(bourn.url(), &[]).await;
    assert_eq!(two.client().read_all(PAGES, "-1").await.0, seen, "another server gives the same bytes");
}

#[tokio::test]
async fn a_commit_of_another_process_is_an_event_without_any_polling() {
    let bourn = Bourn::start(&[("poll_interval", "60s")]).await;
    let client = bourn.client();
    let mut events = client.events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    events.control().await;
    let connection = connect(bourn.database());
    let mut waits = Vec::new();
    for i in 0..50 {
        let committed = Instant::now();
        connection.execute("INSERT INTO pages (id) VALUES (?1)", [i]).unwrap();
        events.messages().await;
        waits.push(committed.elapsed());
    }
    waits.sort();
    println!("from the commit to the event: p50 {:?}, max {:?}", waits[25], waits[49]);
    // Far below the poll, also on a disk and processors that others use.
    assert!(waits[25] < Duration::from_millis(500), "{waits:?}");
}

#[tokio::test]
async fn a_table_is_compared_in_slices_that_let_writers_through() {
    const ROWS: usize = 60_000;
    let tables = format!(
        "PRAGMA journal_mode = wal; CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT); \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) \
         INSERT INTO notes SELECT i, hex(randomblob(20)) FROM n; CREATE TABLE others (id INTEGER PRIMARY KEY);"
    );
    let config = "[[entity]]\ntype = \"note\"\ntable = \"notes\"\n";
    let mut writing = None;
    let bourn = Bourn::start_with(config, &[], |database| {
        connect(database).execute_batch(&tables).unwrap();
        let database = database.to_owned();
        writing = Some(tokio::task::spawn_blocking(move || {
            let connection = connect(&database);
            let compared = || {
                connection.query_row("SELECT reconciled FROM bourn_entities", [], |row| row.get::<_, bool>(0))
            };
            let mut waits = Vec::new();
            while !compared().unwrap_or(false) {
                let started = Instant::now();
                connection.execute("INSERT INTO others DEFAULT VALUES", []).unwrap();
                waits.push(started.elapsed());
                std::thread::park_timeout(Duration::from_millis(3));
            }
            waits
        }));
    })
    .await;
    let client = bourn.client();
    let mut waits = writing.unwrap().await.unwrap();
    waits.sort();
    let longest = *waits.last().unwrap();
    println!(
        "{} inserts while the table was compared: p50 {:?}, max {longest:?}",
        waits.len(),
        waits[waits.len() / 2]
    );
    assert!(waits.len() > 20 && longest < Duration::from_secs(1), "{waits:?}");
    assert_eq!(client.read_all("/v1/entities/notes", "-1").await.0.len(), ROWS);
}

#[tokio::test]
async fn servers_of_different_configuration_do_not_rewrite_each_others_triggers() {
    let tables = "CREATE TABLE notes (id TEXT PRIMARY KEY, body TEXT)";
    let config = "[[entity]]\ntype = \"note\"\ntable = \"notes\"\n";
    let one = Bourn::start_with(config, &[], |database| {
        connect(database).execute_batch(tables).unwrap();
    })
    .await;
    let more = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(more.path(), format!("{config}previous_values = true\n")).unwrap();
    let two = Bourn::start_on(one.url(), &[("config", more.path().to_str().unwrap())]).await;
    let mut state = serde_json::Value::Null;
    eventually("the first one says that the other's configuration stands", async || {
        state = one.client().get("/ready").await.json();
        !state["entities"][0]["conditions"].is_null()
    })
    .await;
    assert!(state["entities"][0]["conditions"].to_string().contains("another configuration"), "{state}");
    let before = one.sql("PRAGMA schema_version");
    for i in 0..20 {
        one.sql(&format!("INSERT INTO notes VALUES ('n{i}', 'x')"));
    }
    for server in [&one, &two] {
        eventually("both give the changes", async || {
            server.client().read_all("/v1/entities/notes", "-1").await.0.len() == 20
        })
        .await;
    }
    assert_eq!(one.sql("PRAGMA schema_version"), before);
    // A change of the table is taken in, and then it is quiet again.
    one.sql("ALTER TABLE notes ADD COLUMN colour TEXT");
    eventually("the column is streamed", async || {
        one.sql("UPDATE notes SET colour = hex(randomblob(4)) WHERE id = 'n1'");
        let (messages, _) = two.client().read_all("/v1/entities/notes", "-1").await;
        !messages.last().unwrap()["value"]["colour"].is_null()
    })
    .await;
    let after: i64 = one.sql("PRAGMA schema_version").parse().unwrap();
    assert!(after - before.parse::<i64>().unwrap() < 60, "{before} {after}");
}

#[tokio::test]
async fn an_idle_server_does_nothing() {
    let bourn = Bourn::start(&[]).await;
    bourn.client().make_page("p", "t").await;
    let idle = bourn.cpu();
    // What is measured is how little happens in a while.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = bourn.cpu().saturating_sub(idle);
    println!("an idle server used {used:?} in 3 s");
    assert!(used <= Duration::from_millis(30), "{used:?}");
}

/// The watcher of the second server is held up, as on a machine that is busy.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn an_offset_that_one_server_gave_is_known_to_another_that_has_not_looked_yet() {
    let one = Bourn::start(&[]).await;
    let two =
        Bourn::start_failing(one.url(), &[("long_poll_timeout", "1s")], "bourn-watcher=sleep(60000)").await;
    let (here, there) = (one.client(), two.client());
    let connection = connect(one.database());
    for i in 0..5 {
        let id = format!("p{i}");
        connection.execute("INSERT INTO pages (id) VALUES (?1)", [&id]).unwrap();
        let mut offset = String::new();
        eventually("the first server has it", async || {
            let (messages, next) = here.read_all(PAGES, "-1").await;
            offset = next;
            messages.len() == i + 1
        })
        .await;
        let (messages, next) = there.read_all(PAGES, &offset).await;
        assert_eq!((messages.len(), &next), (0, &offset));
        let waited = there.get(&format!("{PAGES}?offset={offset}&live=long-poll")).await;
        assert_eq!((waited.status, waited.next_offset()), (204, offset.clone()), "{}", waited.text());
        let mut events = there.events(&format!("{PAGES}?offset={offset}&live=sse"), &[]).await;
        assert_eq!(events.control().await.0, offset);
    }
}

/// How often a process, and its thread that watches the file, have begun to wait so far.
#[cfg(target_os = "linux")]
fn waits(process: u32) -> (u64, u64) {
    let (mut all, mut watcher) = (0, 0);
    for thread in std::fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let path = thread.unwrap().path();
        // A thread may end at any moment.
        let Ok(status) = std::fs::read_to_string(path.join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        let count: u64 = field("voluntary_ctxt_switches:").parse().unwrap();
        all += count;
        watcher += if field("Name:") == "bourn-watcher" { count } else { 0 };
    }
    (all, watcher)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_idle_server_does_nothing_more_often_than_it_is_told() {
    const SECONDS: u64 = 5;
    let bourn = Bourn::start(&[("poll_interval", "500ms")]).await;
    let client = bourn.client();
    client.make_page("p", "t").await;
    let mut events = client.events(&format!("{PAGES}?offset=-1&live=sse"), &[]).await;
    assert_eq!(events.messages().await.0.len(), 1);
    // The looks that follow a commit come to an end.
    let mut before = waits(bourn.process());
    eventually("it is quiet", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = waits(bourn.process());
        let quiet = now.1 - before.1 <= 3;
        before = now;
        quiet
    })
    .await;
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let after = waits(bourn.process());
    assert!(after.1 - before.1 <= 4 * SECONDS, "the watcher woke {} times", after.1 - before.1);
    assert!(after.0 - before.0 <= 40 * SECONDS, "the server's threads woke {} times", after.0 - before.0);
}
