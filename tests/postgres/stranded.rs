//! Connections that are half open: the other end is gone, and nothing says so. Everything goes on by way of new ones.

use std::time::{Duration, Instant};

use bourn_testkit::{Cluster, Proxy};

use crate::holder::Holder;
use crate::site::{PAGE, PAGES, PAGES_PATH, Site, state};
use crate::support::{Bourn, PATIENCE, eventually, page, within};

/// Waits until the stream of pages has this one. Reads are answered with 503 as long as they find lost connections.
async fn comes_by(server: &Bourn, id: &str) {
    let client = server.client();
    let there = async || {
        let read = client.get(&format!("{PAGES_PATH}?offset=-1")).await;
        read.status == 200 && read.text().contains(&format!("\"{id}\""))
    };
    assert!(within(PATIENCE, there).await, "{} {}", client.get("/ready").await.text(), server.recent_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_writes_and_stored_streams_go_on_after_every_connection_was_left_half_open() {
    let cluster = Cluster::start();
    let mut site = Site::on(&cluster, PAGES, PAGE).await.eager();
    let proxy = Proxy::to_port(cluster.port());
    let through = proxy.url(site.url());
    site.reach_by(&through);
    site.set("leader_timeout", "1s");
    // A request whose connection is lost while it is under way ends after the sum of these and a little more.
    for timeout in ["statement_timeout", "acquire_timeout", "connect_timeout"] {
        site.set(timeout, "2s");
    }
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    let text = [("content-type", "text/plain")];
    client.send(http::Method::PUT, "/v1/stream/notes", &text, "").await;
    site.captured().await;
    for round in 0..2 {
        proxy.strand();
        let since = Instant::now();
        // What foreign writers commit meanwhile is captured by way of a new connection.
        let id = format!("foreign{round}");
        site.sql(&format!("INSERT INTO pages (id) VALUES ('{id}')"));
        comes_by(&server, &id).await;
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
        // So are writes and appends, none of which waits for a connection that is gone.
        let id = format!("rest{round}");
        eventually("a write is done", async || {
            let sent = Instant::now();
            let status = client.post(PAGES_PATH, &[("x-transaction-id", &id)], &page(&id, "x")).await.status;
            assert!(sent.elapsed() < Duration::from_secs(20), "{:?}", sent.elapsed());
            status == 201
        })
        .await;
        eventually("an append is done", async || {
            client.send(http::Method::POST, "/v1/stream/notes", &text, "note").await.status == 204
        })
        .await;
        site.captured().await;
        comes_by(&server, &id).await;
        site.assert_log_is_sound();
    }
    assert!(state(&client, PAGES_PATH).await.len() == 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_to_the_log_whose_connection_is_gone_is_given_up_though_statements_may_take_long() {
    let cluster = Cluster::start();
    let mut site = Site::on(&cluster, PAGES, PAGE).await.eager();
    let proxy = Proxy::to_port(cluster.port());
    let through = proxy.url(site.url());
    site.reach_by(&through);
    site.set("leader_timeout", "1s");
    let server = site.server().await;
    // The leader is held in the middle of a statement when its connections are lost.
    let lock = Holder::new(&site, "LOCK TABLE bourn.activities IN ACCESS EXCLUSIVE MODE").await;
    site.sql("INSERT INTO pages (id) VALUES ('p1')");
    let waits =
        "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'bourn.activities'::regclass";
    eventually("the leader waits for the lock", async || site.sql(waits) == "t").await;
    proxy.strand();
    lock.commit();
    comes_by(&server, "p1").await;
    site.assert_log_is_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_told_in_bytes_and_seconds_while_the_log_cannot_be_appended_to() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    site.captured().await;
    let log = async || client.get("/ready").await.json()["log"].clone();
    let seconds = async || log().await["lagSeconds"].as_f64();
    assert!(within(PATIENCE, async || seconds().await == Some(0.0)).await, "{}", log().await);
    let lock = Holder::new(&site, "LOCK TABLE bourn.log IN EXCLUSIVE MODE").await;
    site.sql(
        "INSERT INTO pages (id, content) SELECT 'p' || g, repeat('x', 1000) FROM generate_series(100, 199) g",
    );
    let behind = async || {
        let log = log().await;
        log["lagSeconds"].as_f64() > Some(1.5) && log["lagBytes"].as_u64() > Some(100_000)
    };
    assert!(within(PATIENCE, behind).await, "{}", log().await);
    let metrics = client.get("/metrics").await.text().to_owned();
    let figure = |name: &str| {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("{name}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(figure("bourn_log_lag_seconds") > 1.5 && figure("bourn_log_lag_bytes") > 1e5);
    assert!(figure("bourn_slot_retained_bytes") > 1e5);
    assert!((figure("bourn_leader") - 1.0).abs() < 0.1 && figure("bourn_slot_lost") < 0.1);
    assert!(figure("bourn_replication_connects_total") >= 1.0);
    lock.commit();
    assert!(within(PATIENCE, async || seconds().await == Some(0.0)).await, "{}", log().await);
    site.assert_agrees(&server, "pages").await;
}
