//! A SQLite file that goes back in time, or away: no offset and no entity tag that was given out ever stands for other bytes,
//! and nothing is acknowledged that is not kept.

use std::path::{Path, PathBuf};

use http::Method;
use serde_json::{Value, json};

use crate::support::{Bourn, Client, Event, PATIENCE, eventually, page, sqlite3};

const PAGES: &str = "/v1/entities/pages";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A server whose log has a backup of five changes and fifteen changes by now; what a client got of them.
struct Restorable {
    bourn: Bourn,
    client: Client,
    backup: PathBuf,
    /// The place behind the fifteenth, and the address and entity tag of what was read behind the fifth.
    last: String,
    fifth: String,
    etag: String,
}

async fn make_pages(client: &Client, numbers: std::ops::Range<u32>, name: &str) {
    for i in numbers {
        let id = format!("p{i}");
        let made = client.post(PAGES, &[], &page(&id, name)).await;
        assert_eq!(made.status, 201, "{}", made.text());
    }
}

impl Restorable {
    async fn new() -> Restorable {
        let bourn = Bourn::start(&[]).await;
        let client = bourn.client();
        make_pages(&client, 0..5, "before").await;
        let (_, fifth) = client.read_all(PAGES, "-1").await;
        let backup = bourn.database().with_extension("backup");
        sqlite3(bourn.database(), &format!(".backup '{}'", backup.display()));
        make_pages(&client, 5..15, "lost").await;
        let read = client.get(&format!("{PAGES}?offset={fifth}")).await;
        let (last, etag) = (read.next_offset(), read.header("etag").to_owned());
        Restorable { bourn, client, backup, last, fifth, etag }
    }

    /// Nothing that was given out before stands for anything else now.
    async fn assert_started_anew(&self) {
        make_pages(&self.client, 100..120, "after").await;
        for old in [&self.last, &self.fifth] {
            self.client.get(&format!("{PAGES}?offset={old}")).await.assert_error(410, "OFFSET_GONE");
        }
        let headers = [("if-none-match", self.etag.as_str())];
        let again = self.client.get_with(&format!("{PAGES}?offset={}", self.fifth), &headers).await;
        assert_eq!(again.status, 410);
        let (messages, _) = self.client.read_all(PAGES, "-1").await;
        let keys: Vec<&str> = messages.iter().map(|message| message["key"].as_str().unwrap()).collect();
        assert_eq!(keys.len(), 25, "{keys:?}");
        assert!(!keys.contains(&"p7"), "what was lost is not there: {keys:?}");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[tokio::test]
async fn a_backup_put_back_while_the_server_is_stopped_is_another_log() {
    let mut restorable = Restorable::new().await;
    restorable.bourn.terminate();
    restorable.bourn.ended().await;
    // As `cp` does it: the file stays the same, what is in it does not.
    copy(&restorable.backup, restorable.bourn.database());
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(with(restorable.bourn.database(), suffix));
    }
    // Other processes have written as much again, and more.
    for i in 20..40 {
        sqlite3(restorable.bourn.database(), &format!("INSERT INTO pages (id) VALUES ('q{i}')"));
    }
    sqlite3(restorable.bourn.database(), "DELETE FROM pages WHERE id LIKE 'q%' AND 0");
    restorable.bourn.restart().await;
    let client = &restorable.client;
    for old in [&restorable.last, &restorable.fifth] {
        client.get(&format!("{PAGES}?offset={old}")).await.assert_error(410, "OFFSET_GONE");
    }
    assert_eq!(client.read_all(PAGES, "-1").await.0.len(), 25);
}

#[tokio::test]
async fn a_backup_restored_under_a_running_server_is_another_log() {
    let restorable = Restorable::new().await;
    let live = format!("{PAGES}?offset={}&live=sse", restorable.last);
    let mut events = restorable.client.events(&live, &[]).await;
    events.control().await;
    let restore = format!(".restore '{}'", restorable.backup.display());
    sqlite3(restorable.bourn.database(), &restore);
    eventually("the old offset is gone", async || {
        restorable.client.get(&format!("{PAGES}?offset={}", restorable.last)).await.status == 410
    })
    .await;
    while let Some(Event::Data(_) | Event::Control { .. }) = events.try_next(PATIENCE).await {}
    restorable.assert_started_anew().await;
}

#[tokio::test]
async fn a_restored_log_that_has_grown_past_what_was_served_is_another_log() {
    let restorable = Restorable::new().await;
    let mut sql = format!(".restore '{}'\n", restorable.backup.display());
    for i in 100..120 {
        sql += &format!("INSERT INTO pages (id) VALUES ('p{i}');\n");
    }
    let script = restorable.backup.with_extension("sql");
    std::fs::write(&script, sql).unwrap();
    sqlite3(restorable.bourn.database(), &format!(".read '{}'", script.display()));
    eventually("the old offset is gone", async || {
        restorable.client.get(&format!("{PAGES}?offset={}", restorable.last)).await.status == 410
    })
    .await;
    eventually("all that is there now is told", async || {
        restorable.client.read_all(PAGES, "-1").await.0.len() == 25
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_removed_is_noticed_and_nothing_is_acknowledged_into_it() {
    let restorable = Restorable::new().await;
    let database = restorable.bourn.database().to_owned();
    std::fs::remove_file(&database).unwrap();
    restorable
        .client
        .post(PAGES, &[], &page("into-nothing", "x"))
        .await
        .assert_error(503, "DATABASE_UNAVAILABLE");
    let mut ready = Value::Null;
    eventually("the server says that it is not ready", async || {
        let answer = restorable.client.get("/ready").await;
        ready = answer.json();
        answer.status == 503
    })
    .await;
    assert!(ready["problems"].to_string().contains("removed from its path"), "{ready}");
    assert!(!database.exists(), "no new one is made in its place");
    copy(&restorable.backup, &database);
    restorable.bourn.ready().await;
    restorable.assert_started_anew().await;
}

#[tokio::test]
async fn a_file_that_is_replaced_is_another_log() {
    let restorable = Restorable::new().await;
    std::fs::rename(&restorable.backup, restorable.bourn.database()).unwrap();
    eventually("the old offset is gone", async || {
        restorable.client.get(&format!("{PAGES}?offset={}", restorable.last)).await.status == 410
    })
    .await;
    restorable.assert_started_anew().await;
    assert_eq!(restorable.bourn.sql("PRAGMA integrity_check"), "ok");
}

#[tokio::test]
async fn a_file_that_is_moved_away_and_back_is_the_same_log() {
    let restorable = Restorable::new().await;
    let (database, away) = (restorable.bourn.database().to_owned(), restorable.backup.with_extension("away"));
    std::fs::rename(&database, &away).unwrap();
    eventually("it is noticed", async || restorable.client.get("/ready").await.status == 503).await;
    std::fs::rename(&away, &database).unwrap();
    restorable.bourn.ready().await;
    assert_eq!(restorable.client.get(&format!("{PAGES}?offset={}", restorable.last)).await.status, 200);
    make_pages(&restorable.client, 50..51, "after").await;
}

#[tokio::test]
async fn a_file_that_is_cut_to_nothing_is_noticed() {
    let restorable = Restorable::new().await;
    let file = std::fs::OpenOptions::new().write(true).open(restorable.bourn.database()).unwrap();
    file.set_len(0).unwrap();
    restorable
        .client
        .post(PAGES, &[], &page("into-nothing", "x"))
        .await
        .assert_error(503, "DATABASE_UNAVAILABLE");
    eventually("it is noticed", async || restorable.client.get("/ready").await.status == 503).await;
    std::fs::rename(&restorable.backup, restorable.bourn.database()).unwrap();
    restorable.bourn.ready().await;
    restorable.assert_started_anew().await;
}

#[tokio::test]
async fn a_stored_stream_that_went_back_gives_its_offsets_to_no_other_bytes() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let append = async |text: &str| {
        let body = json!([text]).to_string();
        let answer = client.send(Method::POST, "/v1/stream/s", &[JSON], body).await;
        assert!([204, 503].contains(&answer.status), "{}", answer.text());
        answer.status == 204
    };
    client.send(Method::PUT, "/v1/stream/s", &[JSON], "").await;
    assert!(append("kept").await);
    let kept = client.get("/v1/stream/s?offset=-1").await.next_offset();
    let backup = bourn.database().with_extension("backup");
    sqlite3(bourn.database(), &format!(".backup '{}'", backup.display()));
    assert!(append("lost").await);
    let lost = client.get(&format!("/v1/stream/s?offset={kept}")).await;
    sqlite3(bourn.database(), &format!(".restore '{}'", backup.display()));
    eventually("it is noticed", async || {
        client.get("/v1/stream/s?offset=-1").await.messages() == [json!("kept")]
    })
    .await;
    // The writer may have to find out by itself.
    eventually("it is appended", async || append("else").await).await;
    let gone = client.get(&format!("/v1/stream/s?offset={}", lost.next_offset())).await;
    assert_eq!(gone.status, 410, "{}", gone.text());
    let read = client.get(&format!("/v1/stream/s?offset={kept}")).await;
    assert_eq!(read.messages(), [json!("else")], "who had seen nothing of what was lost goes on");
    assert_ne!(read.header("etag"), lost.header("etag"));
    // It can still be forked, deleted and made again.
    let forked =
        client.send(Method::PUT, "/v1/stream/f", &[("stream-forked-from", "/v1/stream/s")], "").await;
    assert_eq!(forked.status, 201, "{}", forked.text());
    assert_eq!(client.delete("/v1/stream/f", &[]).await.status, 204);
    assert_eq!(client.delete("/v1/stream/s", &[]).await.status, 204);
    assert_eq!(client.send(Method::PUT, "/v1/stream/s", &[JSON], "").await.status, 201);
    eventually("nothing is left of it", async || bourn.sql("SELECT count(*) FROM bourn_stream_data") == "0")
        .await;
}

#[tokio::test]
async fn two_servers_of_a_restored_file_agree_on_its_new_log() {
    let restorable = Restorable::new().await;
    let two = Bourn::start_on(restorable.bourn.url(), &[]).await;
    sqlite3(restorable.bourn.database(), &format!(".restore '{}'", restorable.backup.display()));
    for client in [&restorable.client, &two.client()] {
        eventually("the old offset is gone", async || {
            client.get(&format!("{PAGES}?offset={}", restorable.last)).await.status == 410
        })
        .await;
    }
    // A server that meets the new log before it has published it answers 503 for a moment.
    for client in [&restorable.client, &two.client()] {
        eventually("the new log is served", async || {
            client.get(&format!("{PAGES}?offset=-1")).await.status == 200
        })
        .await;
    }
    eventually("both give the same offsets", async || {
        let one = restorable.client.read_all(PAGES, "-1").await;
        one == two.client().read_all(PAGES, "-1").await && one.0.len() == 5
    })
    .await;
    restorable.assert_started_anew().await;
}

#[tokio::test]
async fn a_plain_restart_and_a_crash_are_no_new_log() {
    let mut bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    make_pages(&client, 0..3, "x").await;
    bourn.sql("INSERT INTO pages (id) VALUES ('foreign')");
    eventually("it is served", async || client.read_all(PAGES, "-1").await.0.len() == 4).await;
    let (_, offset) = client.read_all(PAGES, "-1").await;
    for gracefully in [true, false, true] {
        if gracefully {
            bourn.terminate();
            bourn.ended().await;
        } else {
            bourn.kill().await;
        }
        bourn.restart().await;
        assert_eq!(client.get(&format!("{PAGES}?offset={offset}")).await.status, 200);
    }
}

#[tokio::test]
async fn a_database_without_the_file_beside_it_is_another_log() {
    let mut bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    make_pages(&client, 0..3, "x").await;
    let (_, offset) = client.read_all(PAGES, "-1").await;
    bourn.kill().await;
    std::fs::remove_file(with(bourn.database(), "-bourn")).unwrap();
    bourn.restart().await;
    client.get(&format!("{PAGES}?offset={offset}")).await.assert_error(410, "OFFSET_GONE");
    assert_eq!(client.read_all(PAGES, "-1").await.0.len(), 3);
}
