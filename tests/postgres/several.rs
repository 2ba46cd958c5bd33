//! Several servers over one database are as one: the same bytes, the same answers, one order.

use std::time::{Duration, Instant};

use bourn_testkit::Cluster;
use serde_json::json;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, leader, state};
use crate::support::{Bourn, eventually, page};

#[tokio::test(flavor = "multi_thread")]
async fn chunks_have_the_same_bytes_and_tags_on_every_server() {
    let mut site = Site::new(PAGES, PAGE).await;
    site.set("chunk_messages", "10");
    let one = site.server().await;
    for i in 0..60 {
        site.sql(&format!(
            "INSERT INTO pages (id, organization_id, name) VALUES ('p{i}', 'org' || {i} % 3, 'first'); \
             UPDATE pages SET name = 'n{i}' WHERE id IN ('p{}', 'p{}')",
            i / 2,
            i / 3
        ));
    }
    site.captured().await;
    // One that was there all along, and one that knows nothing but the database.
    let two = site.server().await;
    for stream in
        [PAGES_PATH.to_owned(), format!("{PAGES_PATH}?organizationId=org1"), "/v1/activities".to_owned()]
    {
        let separator = if stream.contains('?') { '&' } else { '?' };
        let (mut offset, mut chunks) = ("-1".to_owned(), 0);
        loop {
            let path = format!("{stream}{separator}offset={offset}");
            let (a, b) = (one.client().get(&path).await, two.client().get(&path).await);
            assert_eq!((a.status, b.status), (200, 200), "{}{}", a.text(), b.text());
            assert_eq!(a.body, b.body, "{path}");
            for header in ["etag", "cache-control", "stream-next-offset", "stream-up-to-date"] {
                assert_eq!(a.header(header), b.header(header), "{header} of {path}");
            }
            let not_modified = two.client().get_with(&path, &[("if-none-match", a.header("etag"))]).await;
            assert_eq!(not_modified.status, 304, "{path}");
            chunks += 1;
            if a.up_to_date() {
                break;
            }
            offset = a.next_offset();
        }
        assert!(chunks > 2, "{stream} was read in {chunks} chunks");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_one_server_is_followed_on_every_other_without_waiting_for_a_poll() {
    let mut site = Site::new(PAGES, PAGE).await;
    // Seldom enough that only a notification can be the reason.
    site.set("follow_interval", "30s");
    let servers = [site.server().await, site.server().await];
    leader(&servers).await;
    for (i, writer) in servers.iter().enumerate() {
        for (j, follower) in servers.iter().enumerate() {
            let mut events =
                follower.client().events(&format!("{PAGES_PATH}?offset=now&live=sse"), &[]).await;
            events.control().await;
            let (id, transaction) = (format!("p{i}{j}"), format!("t{i}{j}"));
            let began = Instant::now();
            writer.client().make_page(&id, &transaction).await;
            let (messages, _) = events.messages().await;
            assert_eq!(messages[0]["headers"]["txid"], transaction);
            assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
            let told = follower.client().get(&format!("/v1/transactions/{transaction}?wait=5")).await.json();
            assert_eq!(told["state"], "confirmed");
            // A reader that is ahead of the other server's memory is no reader from the future.
            let offset = told["offset"].as_str().unwrap().to_owned();
            for server in &servers {
                let answer = server.client().get(&format!("{PAGES_PATH}?offset={offset}")).await;
                assert_eq!((answer.status, answer.text()), (200, "[]"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_hears_no_notification_polls() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let servers = [site.server().await, site.server().await];
    let follows = 1 - leader(&servers).await;
    let mut events =
        servers[follows].client().events(&format!("{PAGES_PATH}?offset=now&live=sse"), &[]).await;
    events.control().await;
    for i in 0..3 {
        site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'");
        site.sql(&format!("INSERT INTO pages (id) VALUES ('p{i}')"));
        assert_eq!(events.messages().await.0[0]["key"], format!("p{i}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_lost_its_notifications_looks_at_once() {
    let mut site = Site::new(PAGES, PAGE).await.eager();
    // Polling alone would take longer than the test waits.
    site.set("follow_interval", "60s");
    let servers = [site.server().await, site.server().await];
    let stream = "/v1/stream/told";
    let [one, two] = servers.each_ref().map(Bourn::client);
    let made = one.send(hyper::Method::PUT, stream, &[("content-type", "application/json")], "").await;
    assert_eq!(made.status, 201, "{}", made.text());
    let mut events = two.events(&format!("{stream}?offset=-1&live=sse"), &[]).await;
    events.control().await;
    for i in 0..5 {
        site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'");
        let sent = Instant::now();
        one.post(stream, &[], &json!([i])).await;
        assert_eq!(events.messages().await.0, [json!(i)]);
        assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_through_another_server_is_answered_as_repeated() {
    let site = Site::new(PAGES, PAGE).await;
    let servers = [site.server().await, site.server().await];
    let [one, two] = servers.each_ref().map(Bourn::client);
    let ids = [("x-transaction-id", "t1")];
    let first = one.post(PAGES_PATH, &ids, &page("p1", "x")).await;
    assert_eq!((first.status, first.header("x-idempotent-hit")), (201, ""));
    let again = two.post(PAGES_PATH, &ids, &page("p1", "x")).await;
    assert_eq!((again.status, again.header("x-idempotent-hit")), (201, "true"));
    assert_eq!(first.json(), again.json());
    two.post(PAGES_PATH, &ids, &page("p2", "x")).await.assert_error(422, "TRANSACTION_REUSED");

    // At the same time, many times over.
    for i in 0..20 {
        let (id, transaction) = (format!("c{i}"), format!("tc{i}"));
        let (ids, body) = ([("x-transaction-id", &*transaction)], page(&id, "x"));
        let answers = tokio::join!(
            one.post(PAGES_PATH, &ids, &body),
            two.post(PAGES_PATH, &ids, &body),
            one.post(PAGES_PATH, &ids, &body),
            two.post(PAGES_PATH, &ids, &body),
        );
        let answers = [answers.0, answers.1, answers.2, answers.3];
        assert!(answers.iter().all(|answer| answer.status == 201), "{answers:?}");
        let repeated = answers.iter().filter(|answer| answer.header("x-idempotent-hit") == "true").count();
        assert_eq!(repeated, 3, "one did it");
    }
    // An update and a delete just so.
    let expect = [("x-transaction-id", "t2"), ("x-expected-transaction-id", "t1")];
    assert_eq!(one.patch("/v1/entities/pages/p1", &expect, &json!({ "name": "y" })).await.status, 200);
    let again = two.patch("/v1/entities/pages/p1", &expect, &json!({ "name": "y" })).await;
    assert_eq!((again.status, again.header("x-idempotent-hit")), (200, "true"));
    let stale = [("x-transaction-id", "t3"), ("x-expected-transaction-id", "t1")];
    let refused = two.patch("/v1/entities/pages/p1", &stale, &json!({ "name": "z" })).await;
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("TRANSACTION_CONFLICT")));
    site.captured().await;
    site.assert_log_is_sound();
    assert_eq!(state(&one, PAGES_PATH).await, site.table("pages", "id"));
    assert_eq!(site.sql("SELECT count(*) FROM bourn.activities"), "22");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_servers_may_start_at_once_on_an_empty_database() {
    let site = Site::bare(Cluster::shared(), "", "");
    let servers = tokio::join!(site.server(), site.server(), site.server(), site.server());
    let servers = [servers.0, servers.1, servers.2, servers.3];
    for (i, server) in servers.iter().enumerate() {
        server.client().make_page(&format!("p{i}"), &format!("t{i}")).await;
    }
    for server in &servers {
        eventually("every page is in every server's stream", async || {
            server.client().read_all(PAGES_PATH, "-1").await.0.len() == 4
        })
        .await;
    }
    assert_eq!(site.sql("SELECT count(DISTINCT epoch) FROM bourn.log"), "1");
    leader(&servers).await;
    site.assert_log_is_sound();
}
