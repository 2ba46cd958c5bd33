//! A database that restarts, idles, or gives up the slot: capture makes good what it missed, and offsets stay valid.

use std::time::Duration;

use bourn_testkit::Cluster;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, is_ready};
use crate::support::{eventually, materialize, page, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_is_told_and_capture_comes_back_by_itself() {
    let cluster = Cluster::start();
    let site = Site::on(&cluster, PAGES, PAGE).await.eager();
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    for stop in [Cluster::stop_fast, Cluster::stop_immediate, Cluster::kill9] {
        site.captured().await;
        let (before, offset) = client.read_all(PAGES_PATH, "-1").await;
        stop(&cluster);
        eventually("it is noticed", async || client.get("/ready").await.status == 503).await;
        let answer = client.post(PAGES_PATH, &[], &page("lost", "x")).await;
        answer.assert_error(503, "DATABASE_UNAVAILABLE");
        assert_eq!(client.get("/health").await.status, 200);
        cluster.start_again();
        is_ready(&client).await;
        site.sql(&format!("INSERT INTO pages (id) VALUES ('back{}')", before.len()));
        site.assert_agrees(&server, "pages").await;
        assert_eq!(client.read_all(PAGES_PATH, &offset).await.0.len(), 1, "nothing comes twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_does_not_keep_the_write_ahead_log() {
    let site = Site::new(&format!("{PAGES} CREATE TABLE elsewhere (x text)"), PAGE).await.eager();
    let server = site.server().await;
    server.client().make_page("p1", "t1").await;
    site.captured().await;
    site.sql("INSERT INTO elsewhere SELECT md5(i::text) FROM generate_series(1, 50000) i");
    let mark = site.sql("SELECT pg_current_wal_insert_lsn()");
    let confirmed = format!(
        "SELECT confirmed_flush_lsn >= '{mark}' FROM pg_replication_slots WHERE slot_name = '{}'",
        site.slot()
    );
    assert!(
        within(Duration::from_secs(20), async || site.sql(&confirmed) == "t").await,
        "the slot stays behind: {}",
        site.sql("SELECT confirmed_flush_lsn, pg_current_wal_insert_lsn() FROM pg_replication_slots")
    );
    // The log's own position came first.
    assert_eq!(
        site.sql(&format!(
            "SELECT l.position >= s.confirmed_flush_lsn FROM bourn.log l, pg_replication_slots s WHERE slot_name = '{}'",
            site.slot()
        )),
        "t"
    );
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_database_gave_up_is_made_anew_and_what_it_missed_is_made_good() {
    let cluster =
        Cluster::options().setting("max_slot_wal_keep_size", "16MB").setting("min_wal_size", "32MB").start();
    let site = Site::on(&cluster, PAGES, PAGE).await.eager();
    let mut server = site.server().await;
    site.sql("INSERT INTO pages (id, organization_id, name) SELECT 'p' || i, 'o' || i % 3, 'first' FROM generate_series(1, 100) i");
    site.assert_agrees(&server, "pages").await;
    let (mut messages, offset) = server.client().read_all(PAGES_PATH, "-1").await;
    server.kill().await;
    site.sql(
        "DELETE FROM pages WHERE id IN ('p1', 'p2'); UPDATE pages SET name = 'missed' WHERE id IN ('p3', 'p4'); \
         UPDATE pages SET organization_id = 'elsewhere' WHERE id = 'p5'; INSERT INTO pages (id) VALUES ('missed')",
    );
    let status = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{}'", site.slot());
    eventually("the slot is lost", async || {
        site.sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 4000000)); SELECT pg_switch_wal(); CHECKPOINT");
        site.sql(&status) == "lost"
    })
    .await;
    let checked = crate::site::said(&site.run(&["check"]).await);
    assert!(checked.contains("was given up by the database"), "{checked}");
    server.restart().await;
    site.assert_agrees(&server, "pages").await;
    assert_ne!(site.sql(&status), "lost");
    let (missed, _) = server.client().read_all(PAGES_PATH, &offset).await;
    assert_eq!(missed.len(), 7, "what differs and no more: {missed:?}");
    messages.extend(missed);
    assert_eq!(materialize(&messages), site.table("pages", "id"), "who kept an offset needs not start over");
    site.sql("UPDATE pages SET name = 'live' WHERE id = 'p6'");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_dropped_or_moved_on_by_hand_is_noticed_and_made_good() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let mut server = site.server().await;
    site.sql("INSERT INTO pages (id, name) SELECT 'p' || i, 'first' FROM generate_series(1, 20) i");
    site.assert_agrees(&server, "pages").await;
    for (i, meddle) in
        ["pg_drop_replication_slot('{}')", "pg_replication_slot_advance('{}', pg_current_wal_insert_lsn())"]
            .iter()
            .enumerate()
    {
        server.kill().await;
        site.sql(&format!(
            "UPDATE pages SET name = 'missed{i}' WHERE id <> 'p1'; DELETE FROM pages WHERE id = 'p{}'",
            2 + i
        ));
        eventually("the slot is free", async || {
            site.try_sql(&format!("SELECT {}", meddle.replace("{}", &site.slot()))).is_ok()
        })
        .await;
        server.restart().await;
        site.assert_agrees(&server, "pages").await;
    }
}
