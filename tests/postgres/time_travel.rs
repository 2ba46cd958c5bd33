//! Databases that go back in time: restored copies, promoted standbys. Nothing is given out under an old name for other
//! bytes, and only readers of what was lost start again.

use std::collections::HashMap;

use bourn_testkit::Cluster;
use bytes::Bytes;
use http::Method;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, is_ready};
use crate::support::{Client, Event, PATIENCE, eventually, within};

const STREAM: &str = "/v1/stream/notes";

/// Every chunk that a cache may keep: its bytes by its address and tag, and whether it was said to be final.
#[derive(Default)]
struct Cached(HashMap<(String, String), Bytes>);

impl Cached {
    /// Reads a stream to its end, and asserts that no address gives other bytes under a tag that it had.
    async fn read(&mut self, client: &Client, stream: &str, from: &str) -> String {
        let mut offset = from.to_owned();
        loop {
            let path = format!("{stream}?offset={offset}");
            let answer = client.get(&path).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            offset = answer.next_offset();
            let key = (path, answer.header("etag").to_owned());
            let known = self.0.entry(key.clone()).or_insert_with(|| answer.body.clone());
            assert_eq!(*known, answer.body, "two bodies of {key:?}");
            if answer.up_to_date() {
                return offset;
            }
        }
    }
}

fn insert(site: &Site, from: u32, to: u32, name: &str) {
    for i in from..=to {
        site.sql(&format!("INSERT INTO pages (id, organization_id, name) VALUES ('p{i}', 'o', '{name}')"));
    }
}

async fn site(cluster: &Cluster) -> Site {
    let mut site = Site::on(cluster, PAGES, PAGE).await.eager();
    site.set("chunk_messages", "10");
    site
}

/// The token of a place after so many pages.
async fn after(client: &Client, messages: usize) -> String {
    let (messages, offset) = {
        let (all, offset) = client.read_all(PAGES_PATH, "-1").await;
        (all.into_iter().take(messages).collect::<Vec<_>>(), offset)
    };
    let seq = messages.last().unwrap()["headers"]["seq"].as_u64().unwrap();
    format!("{}_{seq:016}", &offset[..4])
}

async fn append(client: &Client, text: &str) -> String {
    let answer = client
        .send(Method::POST, STREAM, &[("content-type", "text/plain")], Bytes::from(text.to_owned()))
        .await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    answer.next_offset()
}

async fn begin_stream(client: &Client) {
    let answer = client.send(Method::PUT, STREAM, &[("content-type", "text/plain")], Bytes::new()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
}

/// A reader of what was lost starts again.
async fn assert_gone(client: &Client, stream: &str, offset: &str) {
    client.get(&format!("{stream}?offset={offset}")).await.assert_error(410, "OFFSET_GONE");
}

/// What is copied with `copy` comes back with `put_back` after more was served; `running`: under a running server.
async fn a_copy_comes_back(backup: bool, running: bool) {
    let cluster = Cluster::start();
    if backup && !cluster.has_base_backups() {
        println!("skipped: this PostgreSQL comes without pg_basebackup");
        return;
    }
    let site = site(&cluster).await;
    let mut server = site.server().await;
    let client = server.client();
    let mut cached = Cached::default();
    insert(&site, 1, 25, "first");
    begin_stream(&client).await;
    let kept = append(&client, "kept").await;
    site.captured().await;
    let copy = match backup {
        true => cluster.base_backup(),
        false => {
            cluster.stop_fast();
            let copy = cluster.copy_files();
            cluster.start_again();
            is_ready(&client).await;
            copy
        }
    };
    insert(&site, 26, 45, "lost");
    let lost_append = append(&client, "lost").await;
    site.captured().await;
    let end = cached.read(&client, PAGES_PATH, "-1").await;
    cached.read(&client, STREAM, "-1").await;
    let (below, at, above) = (after(&client, 18).await, after(&client, 25).await, after(&client, 33).await);
    for place in [&below, &at, &above] {
        cached.read(&client, PAGES_PATH, place).await;
    }
    let mut events = client.events(&format!("{PAGES_PATH}?offset={end}&live=sse"), &[]).await;
    events.control().await;

    if !running {
        server.kill().await;
    }
    cluster.stop_fast();
    cluster.put_back(&copy);
    cluster.start_again();
    if !running {
        server.restart().await;
    }
    let client = server.client();
    is_ready(&client).await;
    // As many as were lost, and more: places without a gap would be used again.
    insert(&site, 26, 70, "second");
    site.assert_agrees(&server, "pages").await;

    for gone in [&above, &end] {
        assert_gone(&client, PAGES_PATH, gone).await;
    }
    for place in ["-1", &below, &at] {
        cached.read(&client, PAGES_PATH, place).await;
    }
    assert_eq!(client.read_all(PAGES_PATH, &at).await.0.len(), 45, "who had no more than is there goes on");
    if running {
        // The event stream ends, or says nothing of what it cannot give.
        loop {
            match events.try_next(PATIENCE / 4).await {
                Some(Event::Data(messages)) => panic!("it was given {messages:?} behind what was lost"),
                Some(Event::End | Event::Cut) | None => break,
                Some(_) => {}
            }
        }
    }
    let second = append(&client, "second").await;
    assert_gone(&client, STREAM, &lost_append).await;
    let rest = client.get(&format!("{STREAM}?offset={kept}")).await;
    assert_eq!((rest.status, rest.text(), rest.next_offset()), (200, "second", second));
    assert_eq!(client.get(&format!("{STREAM}?offset=-1")).await.text(), "keptsecond");
    cached.read(&client, STREAM, "-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_put_back_under_a_running_server_gives_no_place_twice() {
    a_copy_comes_back(true, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_put_back_while_the_server_is_stopped_gives_no_place_twice() {
    a_copy_comes_back(true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_files_with_their_slots_gives_no_place_twice() {
    a_copy_comes_back(false, false).await;
}

/// Waits until a standby has all that is committed.
async fn until_replicated(site: &Site) {
    let mark = site.sql("SELECT pg_current_wal_flush_lsn()");
    let replayed =
        format!("SELECT replay_lsn >= '{mark}' FROM pg_stat_replication WHERE application_name = 'standby'");
    eventually("the standby has it", async || site.sql(&replayed) == "t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_that_lacks_commits_starts_only_those_again_that_saw_them() {
    let cluster = Cluster::start();
    if !cluster.has_base_backups() {
        println!("skipped: this PostgreSQL comes without pg_basebackup");
        return;
    }
    let site = site(&cluster).await;
    let server = site.server().await;
    let client = server.client();
    let mut cached = Cached::default();
    insert(&site, 1, 25, "first");
    site.captured().await;
    let mut standby = cluster.standby();
    until_replicated(&site).await;
    let at = cached.read(&client, PAGES_PATH, "-1").await;
    standby.stop();
    insert(&site, 26, 40, "lost");
    site.captured().await;
    let above = cached.read(&client, PAGES_PATH, "-1").await;
    cluster.kill9();
    cluster.fail_over(standby);
    is_ready(&client).await;
    insert(&site, 26, 60, "second");
    site.assert_agrees(&server, "pages").await;
    assert_gone(&client, PAGES_PATH, &above).await;
    cached.read(&client, PAGES_PATH, &at).await;
    cached.read(&client, PAGES_PATH, "-1").await;
    assert_eq!(client.read_all(PAGES_PATH, &at).await.0.len(), 35);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_starts_again_when_a_standby_that_has_everything_is_promoted() {
    let cluster = Cluster::start();
    if !cluster.has_base_backups() {
        println!("skipped: this PostgreSQL comes without pg_basebackup");
        return;
    }
    let site = site(&cluster).await;
    let server = site.server().await;
    let client = server.client();
    insert(&site, 1, 25, "first");
    let standby = cluster.standby();
    insert(&site, 26, 30, "first");
    site.captured().await;
    begin_stream(&client).await;
    let kept = append(&client, "kept").await;
    let (_, end) = client.read_all(PAGES_PATH, "-1").await;
    until_replicated(&site).await;
    cluster.stop_immediate();
    cluster.fail_over(standby);
    is_ready(&client).await;
    insert(&site, 31, 40, "second");
    site.assert_agrees(&server, "pages").await;
    assert_eq!(client.read_all(PAGES_PATH, &end).await.0.len(), 10, "each once, nothing else");
    append(&client, "second").await;
    assert_eq!(client.get(&format!("{STREAM}?offset={kept}")).await.text(), "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_set_back_by_hand_under_a_running_server_is_noticed() {
    let site = site(Cluster::shared()).await;
    let server = site.server().await;
    let client = server.client();
    insert(&site, 1, 20, "first");
    site.captured().await;
    let (_, end) = client.read_all(PAGES_PATH, "-1").await;
    site.sql("DELETE FROM bourn.activities WHERE seq > 10; UPDATE bourn.log SET head = 10");
    eventually("the gap is made", async || site.sql("SELECT count(*) FROM bourn.gaps") == "1").await;
    let gone =
        within(PATIENCE, async || client.get(&format!("{PAGES_PATH}?offset={end}")).await.status == 410);
    assert!(gone.await, "the offset of what was taken away is not gone");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_standbys_keep_in_step_lets_capture_go_on_without_comparing() {
    let cluster = Cluster::start();
    if !cluster.has_base_backups() {
        println!("skipped: this PostgreSQL comes without pg_basebackup");
        return;
    }
    if cluster.major() < 17 {
        println!("skipped: slots are kept in step by PostgreSQL 17 and later");
        return;
    }
    let site = site(&cluster).await;
    let server = site.server().await;
    let client = server.client();
    let standby = cluster.standby();
    insert(&site, 1, 25, "first");
    site.captured().await;
    let (_, end) = client.read_all(PAGES_PATH, "-1").await;
    let there = format!(
        "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot()
    );
    eventually("the standby has the slot", async || {
        // The slot is kept in step once the primary's moves on.
        site.sql("SELECT pg_logical_emit_message(true, 'test.mark', ''), pg_log_standby_snapshot()");
        let mut psql = std::process::Command::new("psql");
        let output = psql.args(["-XAtc", &there]).arg(standby.url("postgres")).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim() == "t"
    })
    .await;
    until_replicated(&site).await;
    cluster.stop_immediate();
    cluster.fail_over(standby);
    is_ready(&client).await;
    insert(&site, 31, 40, "second");
    site.assert_agrees(&server, "pages").await;
    assert_eq!(client.read_all(PAGES_PATH, &end).await.0.len(), 10);
    assert!(!server.log().contains("every table is compared"), "{}", server.log());
}
