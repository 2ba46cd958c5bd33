//! kill -9 at any moment: what was acknowledged is there, once; what was not may be, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;

use crate::support::{Bourn, Client, materialize, page};

const PAGES: &str = "/v1/entities/pages";
const WRITERS: usize = 8;
const KILLS: usize = 5;

/// Writes until told to stop; a write without an answer is tried again under the same id until it has one.
async fn write_through_crashes(client: Client, writer: usize, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for i in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("w{writer}-{i}");
        let transaction = format!("t-{id}");
        let headers = [("content-type", "application/json"), ("x-transaction-id", transaction.as_str())];
        let body = page(&id, "x").to_string();
        loop {
            match client.try_send(Method::POST, PAGES, &headers, body.clone().into()).await {
                Ok(answer) if answer.status == 201 => break,
                Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        acknowledged.push(id);
    }
    acknowledged
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_is_done_twice() {
    let mut bourn = Bourn::start(&[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write_through_crashes(bourn.client(), writer, stop.clone())))
        .collect();
    // A foreign process writes, too, and does not notice that the server is killed.
    let database = bourn.database().to_owned();
    let stopped = stop.clone();
    let foreign = tokio::task::spawn_blocking(move || {
        let mut count = 0;
        while !stopped.load(Ordering::Relaxed) {
            let sql = format!(
                "BEGIN IMMEDIATE; INSERT INTO pages (id, name) VALUES ('f{count}a', 'x'), ('f{count}b', 'x'); \
                 UPDATE pages SET name = 'y' WHERE id = 'f{count}a'; COMMIT"
            );
            crate::support::sqlite3(&database, &sql);
            count += 1;
        }
        count
    });
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(400)).await;
        bourn.kill().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        bourn.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    let foreign = foreign.await.unwrap();
    assert!(acknowledged.len() > 100 && foreign > 3, "{} writes, {foreign} foreign ones", acknowledged.len());

    let client = bourn.client();
    let rows = acknowledged.len() + 2 * foreign;
    crate::support::eventually("all is in the log", async || {
        client.read_all(PAGES, "-1").await.0.len() == rows + foreign
    })
    .await;
    let (messages, _) = client.read_all(PAGES, "-1").await;
    let seqs: Vec<u64> = messages.iter().map(|message| message["headers"]["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "without gaps");
    let state = materialize(&messages);
    for id in &acknowledged {
        assert_eq!(state[id]["transactions"]["insert"], format!("t-{id}"));
    }
    assert_eq!(state.len(), rows);
    let mut listed = BTreeMap::new();
    let mut path = format!("{PAGES}?limit=1000");
    loop {
        let page = client.get(&path).await;
        listed.extend(page.messages().into_iter().map(|row| (row["id"].as_str().unwrap().to_owned(), row)));
        match page.header("link") {
            "" => break,
            link => path = link.trim_start_matches('<').split_once('>').unwrap().0.to_owned(),
        }
    }
    assert_eq!(state, listed, "the stream adds up to the table");
    // Retries long after the crash are still recognised.
    let id = &acknowledged[0];
    let transaction = format!("t-{id}");
    let again = client.post(PAGES, &[("x-transaction-id", &transaction)], &page(id, "x")).await;
    assert_eq!((again.status, again.header("x-idempotent-hit")), (201, "true"));
}

#[tokio::test]
async fn a_reader_that_reconnects_across_a_kill_misses_nothing() {
    let mut bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let mut offset = "-1".to_owned();
    let mut seen = Vec::new();
    for round in 0..3 {
        for i in 0..5 {
            client.make_page(&format!("p{round}-{i}"), &format!("t{round}-{i}")).await;
        }
        let mut events = client.events(&format!("{PAGES}?offset={offset}&live=sse"), &[]).await;
        while seen.len() < (round + 1) * 7 - 2 {
            let (messages, id) = events.messages().await;
            seen.extend(messages.iter().map(|message| message["key"].as_str().unwrap().to_owned()));
            offset = id;
        }
        bourn.kill().await;
        // Triggers capture while no server runs.
        bourn.sql(&format!("INSERT INTO pages (id, name) VALUES ('down{round}-a', 'x'); INSERT INTO pages (id, name) VALUES ('down{round}-b', 'x')"));
        bourn.restart().await;
    }
    let (rest, _) = client.read_all(PAGES, &offset).await;
    seen.extend(rest.iter().map(|message| message["key"].as_str().unwrap().to_owned()));
    assert_eq!(seen.len(), 21);
    assert_eq!(seen.iter().collect::<std::collections::HashSet<_>>().len(), 21);
}
