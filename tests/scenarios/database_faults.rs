//! A database that is locked, full, read-only or damaged: clear answers, and nothing acknowledged is lost.

use std::process::Stdio;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{Bourn, SmallDisk, eventually, page, sqlite_url};

const PAGES: &str = "/v1/entities/pages";

/// Another process with the file open.
struct Holder(tokio::process::Child);

impl Holder {
    fn begin(bourn: &Bourn) -> Holder {
        let mut command = tokio::process::Command::new("sqlite3");
        command.args(["-cmd", ".timeout 5000"]).arg(bourn.database());
        Holder(command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap())
    }

    async fn say(&mut self, sql: &str) {
        let input = self.0.stdin.as_mut().unwrap();
        input.write_all(format!("{sql}\n").as_bytes()).await.unwrap();
    }

    async fn end(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_another_process_holds_is_busy_and_then_goes_on() {
    let bourn = Bourn::start(&[("busy_timeout", "200ms")]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let mut holder = Holder::begin(&bourn);
    holder.say("BEGIN IMMEDIATE; INSERT INTO pages (id) VALUES ('held');").await;
    let mut attempt = 0;
    eventually("the file is held", async || {
        attempt += 1;
        let headers = [("x-transaction-id", &*format!("try{attempt}"))];
        let answer = client.post(PAGES, &headers, &page(&format!("try{attempt}"), "x")).await;
        if answer.status == 503 {
            answer.assert_error(503, "DATABASE_BUSY");
            assert_eq!(answer.header("retry-after"), "1");
        }
        answer.status == 503
    })
    .await;
    // Reads go on meanwhile.
    assert_eq!(client.get("/v1/entities/pages/p1").await.status, 200);
    assert!(!client.read_all(PAGES, "-1").await.0.is_empty());
    holder.say("COMMIT;").await;
    holder.end().await;
    let refused = format!("try{attempt}");
    let retried = client.post(PAGES, &[("x-transaction-id", &*refused)], &page(&refused, "x")).await;
    assert_eq!((retried.status, retried.header("x-idempotent-hit")), (201, ""));
    eventually("the other process's row is in the stream", async || {
        client.read_all(PAGES, "-1").await.0.iter().any(|message| message["key"] == "held")
    })
    .await;
}

#[tokio::test]
async fn on_a_full_disk_writes_are_refused_and_reads_go_on() {
    let disk = SmallDisk::mount("8m");
    let bourn = Bourn::start_on(&sqlite_url(&disk.path().join("bourn.db")), &[]).await;
    let client = bourn.client();
    let content = "x".repeat(100_000);
    let mut acknowledged = Vec::new();
    let refused = loop {
        let id = format!("p{}", acknowledged.len());
        let answer =
            client.post(PAGES, &[("x-transaction-id", &id)], &json!({ "id": id, "content": content })).await;
        if answer.status != 201 {
            break answer;
        }
        acknowledged.push(id);
        assert!(acknowledged.len() < 200, "the disk never fills");
    };
    refused.assert_error(503, "DATABASE_FULL");
    assert_eq!(refused.header("retry-after"), "1");
    let ready = client.get("/ready").await;
    assert!(ready.status == 503 && ready.text().contains("disk is full"), "{}", ready.text());
    let (messages, _) = client.read_all(PAGES, "-1").await;
    assert_eq!(messages.len(), acknowledged.len());
    assert_eq!(client.get("/v1/entities/pages/p0").await.status, 200);
    // With room again, the refused write is done as if it had never been tried.
    disk.remount("size=64m");
    bourn.ready().await;
    let id = format!("p{}", acknowledged.len());
    let again =
        client.post(PAGES, &[("x-transaction-id", &id)], &json!({ "id": id, "content": content })).await;
    assert_eq!((again.status, again.header("x-idempotent-hit")), (201, ""), "{}", again.text());
    assert_eq!(client.read_all(PAGES, "-1").await.0.len(), acknowledged.len() + 1);
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_told_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage.db");
    std::fs::write(&garbage, "this is no database, but it is long enough to look at".repeat(100)).unwrap();
    for (url, said) in [
        (format!("sqlite:{}", garbage.display()), "not a database"),
        ("sqlite:/nowhere/at/all/bourn.db".to_owned(), "/nowhere/at/all/bourn.db"),
        (format!("sqlite:{}", directory.path().display()), "cannot open the database"),
    ] {
        let output = Bourn::output(&["serve", "--listen", "127.0.0.1:0", "--database", &url], &[]).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(said), "{url}: {text}");
        assert_eq!(text.lines().count(), 1, "one line: {text}");
    }
}

#[tokio::test]
async fn a_file_that_is_damaged_while_it_is_served_is_unavailable_and_the_server_goes_on() {
    let bourn = Bourn::start(&[("read_connections", "1")]).await;
    let client = bourn.client();
    for i in 0..50 {
        let made =
            client.post(PAGES, &[], &json!({ "id": format!("p{i}"), "content": "x".repeat(2_000) })).await;
        assert_eq!(made.status, 201);
    }
    bourn.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let length = std::fs::metadata(bourn.database()).unwrap().len();
    let mut file = std::fs::OpenOptions::new().write(true).open(bourn.database()).unwrap();
    std::io::Write::write_all(&mut file, &vec![0xAA; usize::try_from(length).unwrap()]).unwrap();
    drop(file);
    let mut refused = None;
    eventually("the damage is noticed", async || {
        let answer = client.post(PAGES, &[], &page("new", "x")).await;
        let noticed = answer.status == 503;
        refused = Some(answer);
        noticed
    })
    .await;
    refused.unwrap().assert_error(503, "DATABASE_UNAVAILABLE");
    assert_eq!(client.get("/health").await.status, 200);
    assert_eq!(client.get("/ready").await.status, 503);
    assert!(bourn.log().matches("the database failed").count() < 10, "{}", bourn.log());
}

#[tokio::test]
async fn a_table_that_is_dropped_stops_its_own_type_only() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    bourn.sql("ALTER TABLE attachments RENAME TO gone");
    eventually("it is noticed", async || client.get("/ready").await.status == 503).await;
    let ready = client.get("/ready").await.json();
    assert_eq!(ready["entities"][1]["state"], "unavailable");
    client
        .post("/v1/entities/attachments", &[], &json!({ "id": "a1" }))
        .await
        .assert_error(503, "ENTITY_UNAVAILABLE");
    client.get("/v1/entities/attachments?offset=-1").await.assert_error(503, "ENTITY_UNAVAILABLE");
    client.make_page("p2", "t2").await;
    bourn.sql("ALTER TABLE gone RENAME TO attachments");
    eventually("it is noticed", async || client.get("/ready").await.status == 200).await;
    assert_eq!(client.post("/v1/entities/attachments", &[], &json!({ "id": "a1" })).await.status, 201);
    assert_eq!(client.read_all("/v1/entities/attachments", "-1").await.0.len(), 1);
}

#[tokio::test]
async fn an_added_column_needs_no_restart() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    bourn.sql("ALTER TABLE pages ADD COLUMN colour TEXT");
    eventually("the column is known", async || {
        client.patch("/v1/entities/pages/p1", &[], &json!({ "colour": "red" })).await.status == 200
    })
    .await;
    bourn.sql("UPDATE pages SET colour = 'blue'");
    eventually("a foreign change of it is in the stream", async || {
        let (messages, _) = client.read_all(PAGES, "-1").await;
        messages.last().unwrap()["value"]["colour"] == "blue"
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_held_for_long_keeps_neither_writes_nor_the_stop_waiting() {
    let mut bourn = Bourn::start(&[("busy_timeout", "200ms"), ("shutdown_timeout", "2s")]).await;
    let client = bourn.client();
    let mut holder = Holder::begin(&bourn);
    // A committed change that waits to be sealed, and then a long transaction.
    holder.say("INSERT INTO pages (id) VALUES ('waits');\nBEGIN IMMEDIATE; INSERT INTO pages (id) VALUES ('held');").await;
    eventually("the file is held", async || client.post(PAGES, &[], &page("try", "x")).await.status == 503)
        .await;
    for i in 0..5 {
        let started = std::time::Instant::now();
        client.post(PAGES, &[], &page(&format!("p{i}"), "x")).await.assert_error(503, "DATABASE_BUSY");
        assert!(started.elapsed() < std::time::Duration::from_secs(2), "waited {:?}", started.elapsed());
    }
    bourn.terminate();
    let (_, took) = bourn.ended().await;
    assert!(took < std::time::Duration::from_secs(5), "took {took:?}");
    holder.end().await;
    bourn.restart().await;
    assert!(client.read_all(PAGES, "-1").await.0.iter().any(|message| message["key"] == "waits"));
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_read_or_told_at_start() {
    let disk = SmallDisk::mount("8m");
    let database = disk.path().join("bourn.db");
    let mut bourn = Bourn::start_on(&sqlite_url(&database), &[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    bourn.kill().await;
    disk.remount("ro");
    bourn.restart().await;
    client.post(PAGES, &[], &page("p2", "x")).await.assert_error(503, "DATABASE_READ_ONLY");
    assert_eq!(client.get("/v1/entities/pages/p1").await.status, 200);
    assert_eq!(client.read_all(PAGES, "-1").await.0.len(), 1);
    bourn.kill().await;
    // Without the files that SQLite keeps beside it, there is no reading it either.
    disk.remount("rw");
    bourn.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    disk.remount("ro");
    let url = format!("sqlite:{}", database.display());
    let output = Bourn::output(&["serve", "--listen", "127.0.0.1:0", "--database", &url], &[]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("must be writable"), "{said}");
    disk.remount("rw");
    bourn.restart().await;
    client.make_page("p2", "t2").await;
}
