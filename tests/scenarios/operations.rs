//! What operators rely on: limits, slow readers, stopping, figures.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Bourn, Event, eventually};

const PAGES: &str = "/v1/entities/pages";

#[tokio::test]
async fn a_stop_lets_readers_and_writers_end_in_good_order() {
    let mut bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let mut events = client.events(&format!("{PAGES}?offset=-1&live=sse"), &[]).await;
    let (_, id) = events.messages().await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.get(&format!("{PAGES}?offset=now&live=long-poll")).await }
    });
    let mut idle = TcpStream::connect(bourn.address()).await.unwrap();
    eventually("both readers wait", async || {
        let figures = client.get("/metrics").await;
        figures.text().contains("mode=\"sse\"} 1") && figures.text().contains("mode=\"long-poll\"} 1")
    })
    .await;
    bourn.terminate();
    let mut last = Vec::new();
    loop {
        match events.next().await {
            Event::End => break,
            event => last.push(event),
        }
    }
    assert!(matches!(&last[..], [Event::Retry(_), Event::Control { id: at, .. }] if *at == id), "{last:?}");
    assert_eq!(waiting.await.unwrap().status, 204);
    let (success, took) = bourn.ended().await;
    assert!(success && took < Duration::from_secs(5), "took {took:?}");
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest).await;
    bourn.restart().await;
    assert_eq!(client.read_all(PAGES, "-1").await.0.len(), 1);
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_off_and_costs_no_memory() {
    let bourn =
        Bourn::start(&[("write_timeout", "500ms"), ("tail_memory", "1MiB"), ("chunk_cache", "1MiB")]).await;
    let client = bourn.client();
    let mut sleepers = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
        stream
            .write_all(format!("GET {PAGES}?offset=-1&live=sse HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        sleepers.push(stream);
    }
    let reading = "bourn_live_readers{mode=\"sse\"} ";
    eventually("they are there", async || {
        client.get("/metrics").await.text().contains(&format!("{reading}20"))
    })
    .await;
    let before = bourn.resident();
    let content = "x".repeat(200_000);
    for i in 0..100 {
        let made = client.post(PAGES, &[], &json!({ "id": format!("p{i}"), "content": content })).await;
        assert_eq!(made.status, 201);
    }
    eventually("they are cut off", async || {
        client.get("/metrics").await.text().contains(&format!("{reading}0"))
    })
    .await;
    let grown = bourn.resident().saturating_sub(before);
    // Twenty readers times twenty megabytes were not buffered.
    assert!(grown < 150 << 20, "resident memory grew by {} MiB", grown >> 20);
    drop(sleepers);

    // The same for a history that nobody reads on: its chunks are the cache's own, not a copy for each reader.
    let before = bourn.resident();
    let mut sleepers = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
        stream
            .write_all(format!("GET {PAGES}?offset=-1&live=sse HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        sleepers.push(stream);
    }
    let mut most = 0;
    eventually("they are cut off, too", async || {
        most = most.max(bourn.resident().saturating_sub(before));
        let figures = client.get("/metrics").await;
        figures.text().contains(&format!("{reading}0")) && figures.text().contains("bourn_connections 1\n")
    })
    .await;
    assert!(most < 100 << 20, "resident memory grew by {} MiB", most >> 20);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let bourn = Bourn::start(&[("connections", "3")]).await;
    let client = bourn.client();
    let mut held = Vec::new();
    // One of the readiness check may still be closing, and take a place: who is refused does not hold any.
    eventually("three are held", async || {
        let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        if &answer == b"HTTP/1.1 200" {
            held.push(stream);
        }
        held.len() == 3
    })
    .await;
    eventually("the fourth is refused", async || {
        let answer = client.get("/health").await;
        if answer.status == 503 {
            answer.assert_error(503, "OVERLOADED");
            assert_eq!(answer.header("retry-after"), "1");
        }
        answer.status == 503
    })
    .await;
    drop(held);
    eventually("there is room again", async || client.get("/health").await.status == 200).await;
}

#[tokio::test]
async fn the_figures_tell_what_the_server_does() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    client.make_page("p1", "t1").await;
    client.read_all(PAGES, "-1").await;
    client.read_all(PAGES, "-1").await;
    client.get("/v1/entities/nothing").await;
    let mut events = client.events(&format!("{PAGES}?offset=-1&live=sse"), &[]).await;
    events.messages().await;
    let figures = client.get("/metrics").await;
    assert_eq!(figures.header("content-type"), "text/plain; version=0.0.4");
    for line in [
        "bourn_log_head 1",
        "bourn_log_lag 0",
        "bourn_live_readers{mode=\"sse\"} 1",
        "bourn_messages_delivered_total{mode=\"sse\"} 1",
        "bourn_messages_delivered_total{mode=\"catch-up\"} 2",
        "bourn_writes_total{operation=\"create\",outcome=\"done\"} 1",
        "bourn_writes_total{operation=\"create\",outcome=\"repeated\"} 1",
        "bourn_chunk_cache_total{outcome=\"hit\"}",
        "bourn_chunk_cache_total{outcome=\"miss\"}",
        "bourn_errors_total{endpoint=\"entities\",status=\"404\"} 1",
        "bourn_request_seconds_bucket{endpoint=\"entities\",le=\"0.001\"}",
        "bourn_bytes_delivered_total{mode=\"sse\"}",
        "bourn_commit_seconds_count 2",
        "bourn_connections ",
    ] {
        assert!(figures.text().contains(line), "{line} is missing:\n{}", figures.text());
    }
    let ready = client.get("/ready").await;
    assert_eq!((ready.status, ready.json()["status"].as_str().unwrap()), (200, "ready"));
    assert_eq!(ready.json()["log"]["lag"], 0);
    assert_eq!(client.get("/health").await.json(), json!({ "status": "ok" }));
}

#[tokio::test]
async fn a_reader_of_the_log_lines_that_goes_away_takes_nothing_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", directory.path().join("bourn.db").display());
    let (bourn, lines) = Bourn::start_with_piped_log(&database, &[("log", "debug")]).await;
    // `bourn 2>&1 | head -5`
    drop(lines);
    let client = bourn.client();
    for i in 0..20 {
        client.make_page(&format!("p{i}"), &format!("t{i}")).await;
    }
    bourn.sql("INSERT INTO pages (id) VALUES ('foreign')");
    eventually("capture goes on", async || client.read_all("/v1/entities/pages", "-1").await.0.len() == 21)
        .await;
    let mut bourn = bourn;
    bourn.terminate();
    assert!(bourn.ended().await.0);
}
