//! Background tasks that fail: the server says so, lets its readers end, and exits with a message. Nothing goes on as if it
//! worked.

use bourn_testkit::Cluster;
use http::Method;

use crate::support::{Bourn, Event, page, sqlite_url};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// Runs a server on this database whose task fails in this way, and gives what it has logged.
async fn fails(database: &str, task: &str, action: &str) -> String {
    let mut bourn = Bourn::start_failing(database, &[], &format!("{task}={action}")).await;
    let client = bourn.client();
    for i in 0..8 {
        // Something to do, for as long as it is done.
        let page = page(&format!("{task} {action} {i}"), "").to_string();
        let _ = client.try_send(Method::POST, "/v1/entities/pages", &JSON, page.into()).await;
    }
    let (success, took) = bourn.ended().await;
    let log = bourn.log();
    assert!(!success, "{task}: it ends as if nothing were wrong: {log}");
    assert!(took.as_secs() < 30, "{task}: {took:?}");
    assert!(log.contains(&format!("the background task `{task}`")), "{task}: {log}");
    log
}

#[tokio::test]
async fn a_server_on_sqlite_whose_background_fails_ends_with_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let database = sqlite_url(&directory.path().join("bourn.db"));
    for task in ["tail", "bells", "subscriptions", "metrics"] {
        assert!(fails(&database, task, "panic").await.contains("panicked"));
        assert!(fails(&database, task, "return").await.contains("ended unexpectedly"));
    }
    for thread in ["bourn-writer", "bourn-watcher"] {
        // The first jobs are those of the start.
        assert!(fails(&database, thread, "3*off->panic").await.contains("panicked"));
        assert!(fails(&database, thread, "3*off->return").await.contains("ended unexpectedly"));
    }
    // What was committed before is all there.
    let bourn = Bourn::start_on(&database, &[]).await;
    assert_eq!(bourn.client().get("/health").await.status, 200);
}

#[tokio::test]
async fn a_server_on_postgres_whose_background_fails_ends_with_a_message() {
    let database = Cluster::shared().database();
    for task in
        ["follow", "capture", "retention", "stream lane", "stream worker", "stream collector", "stream news"]
    {
        let settings = [("retention_history", "1d")];
        let mut bourn = Bourn::start_failing(&database.url(), &settings, &format!("{task}=panic")).await;
        let (success, _) = bourn.ended().await;
        let log = bourn.log();
        assert!(!success && log.contains(&format!("the background task `{task}` panicked")), "{task}: {log}");
    }
}

#[tokio::test]
async fn readers_of_a_server_that_fails_are_told_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let database = sqlite_url(&directory.path().join("bourn.db"));
    let mut bourn = Bourn::start_failing(&database, &[], "metrics=2*off->panic").await;
    let client = bourn.client();
    let mut events = client.events("/v1/entities/pages?offset=-1&live=sse", &[]).await;
    let mut last = None;
    loop {
        match events.next().await {
            Event::End => break,
            event => last = Some(event),
        }
    }
    assert!(matches!(last, Some(Event::Control { .. })), "it ends with a place to go on from, not {last:?}");
    assert!(!bourn.ended().await.0);
}
