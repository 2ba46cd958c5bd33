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
            .write_all(
                format!("GET {PAGES}?offset=-1&live=sse HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes(),
            )
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

    // The same for a history that no reader continues: its chunks are the cache's own, not a copy for each reader.
    let before = bourn.resident();
    let mut sleepers = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
        stream
            .write_all(
                format!("GET {PAGES}?offset=-1&live=sse HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes(),
            )
            .await
            .unwrap();
        sleepers.push(stream);
    }
    let mut most = 0;
    eventually("they are cut off, too", async || {
        most = most.max(bourn.resident().saturating_sub(before));
        let figures = client.get("/metrics").await;
        figures.text().contains(&format!("{reading}0"))
            && figures.text().contains("bourn_open_connections 1\n")
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
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
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
        "bourn_open_connections ",
        "bourn_requests_total{endpoint=\"entities\",status=\"200\"}",
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

#[tokio::test]
async fn a_client_that_has_closed_its_side_still_gets_its_answer() {
    let bourn = Bourn::start(&[]).await;
    bourn.client().make_page("p1", "t1").await;
    let body = r#"{"name":"x"}"#;
    let write = format!(
        "PATCH {PAGES}/p1 HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for request in [&*format!("GET {PAGES} HTTP/1.1\r\nhost: localhost\r\n\r\n"), &write] {
        for _ in 0..25 {
            let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(['}', ']']), "{answer:?}");
        }
    }
    // A reader that waits for what is to come has gone, and is not waited for.
    let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
    stream
        .write_all(format!("GET {PAGES}?offset=now&live=sse HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let started = std::time::Instant::now();
    eventually("it is gone", async || {
        bourn.client().get("/metrics").await.text().contains("bourn_open_connections 1\n")
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_reader_that_trickles_is_cut_off() {
    let bourn = Bourn::start(&[("write_timeout", "500ms"), ("write_rate", "64KiB")]).await;
    let client = bourn.client();
    let content = "x".repeat(900_000);
    for i in 0..15 {
        client.post(PAGES, &[], &json!({ "id": format!("p{i}"), "content": content })).await;
    }
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(bourn.address().parse().unwrap()).await.unwrap();
    stream.write_all(format!("GET {PAGES} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    let mut piece = [0; 512];
    let mut taken = 0;
    let cut = crate::support::within(Duration::from_secs(30), async || {
        match stream.read(&mut piece).await {
            Ok(read) if read > 0 => taken += read,
            _ => return true,
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
        client.get("/metrics").await.text().contains("bourn_open_connections 1\n")
    });
    assert!(cut.await, "it has taken {taken} bytes and is still served");
}

#[tokio::test]
async fn bodies_that_are_not_sent_take_nothing_from_those_that_are() {
    let bourn =
        Bourn::start(&[("append_memory", "8MiB"), ("body_memory", "1MiB"), ("body_timeout", "2s")]).await;
    let client = bourn.client();
    let json = [("content-type", "application/json")];
    assert_eq!(client.send(http::Method::PUT, "/v1/stream/s", &json, "[]").await.status, 201);
    let mut silent = Vec::new();
    for (path, rest) in [
        ("/v1/stream/s", "transfer-encoding: chunked\r\n"),
        ("/v1/stream/s", "content-length: 8000000\r\n"),
        ("/v1/stream/nothing", "transfer-encoding: chunked\r\n"),
        (PAGES, "content-length: 1000000\r\n"),
    ] {
        for _ in 0..4 {
            let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{rest}\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            silent.push(stream);
        }
    }
    for i in 0..5 {
        assert_eq!(client.send(http::Method::POST, "/v1/stream/s", &json, "1").await.status, 204);
        client.make_page(&format!("p{i}"), &format!("t{i}")).await;
    }
    drop(silent);
    // Bodies that are sent in part are bounded together.
    let half = "x".repeat(600_000);
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
        let head = format!(
            "POST {PAGES} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    let mut answers = Vec::new();
    for mut stream in stalled {
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        answers.push(String::from_utf8(answer).unwrap());
    }
    assert!(answers.iter().any(|answer| answer == "HTTP/1.1 429"), "{answers:?}");
    client.make_page("after", "after").await;
}

#[tokio::test]
async fn an_answer_from_the_cache_is_counted_like_any_other() {
    let bourn = Bourn::start(&[("chunk_messages", "2")]).await;
    let client = bourn.client();
    for i in 0..6 {
        client.make_page(&format!("p{i}"), &format!("t{i}")).await;
    }
    let count = async |what: &str| {
        let figures = client.get("/metrics").await;
        let line = figures.text().lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        line.map_or(0, |number| number.parse::<u64>().unwrap())
    };
    let (answered, timed) = (
        "bourn_requests_total{endpoint=\"entities\",status=\"200\"}",
        "bourn_request_seconds_count{endpoint=\"entities\"}",
    );
    let (before, before_timed) = (count(answered).await, count(timed).await);
    for _ in 0..10 {
        client.get(&format!("{PAGES}?offset=-1")).await;
    }
    assert!(count("bourn_chunk_cache_total{outcome=\"answer\"}").await >= 9);
    assert_eq!((count(answered).await, count(timed).await), (before + 10, before_timed + 10));
}

#[tokio::test]
async fn what_is_parsed_from_bodies_is_bounded_however_dense_they_are() {
    const BODIES: usize = 20;
    let bourn = Bourn::start(&[("body_memory", "32MiB")]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let before = bourn.resident();
    let dense = format!("{{\"content\":[0{}]}}", ",0".repeat(500_000));
    let mut sent = Vec::new();
    for _ in 0..BODIES {
        let (client, dense) = (client.clone(), dense.clone());
        let json = [("content-type", "application/json")];
        sent.push(tokio::spawn(
            async move { client.send(http::Method::POST, PAGES, &json, dense).await.status },
        ));
    }
    for answer in sent {
        let status = answer.await.unwrap();
        assert!(status == 400 || status == 429, "{status}");
    }
    let grown = bourn.peak().saturating_sub(before);
    assert!(grown < 250 << 20, "resident memory grew by {} MiB", grown >> 20);
    // Alone, such a body is looked at.
    let json = [("content-type", "application/json")];
    client.send(http::Method::POST, PAGES, &json, dense).await.assert_error(400, "WRONG_TYPE");
    client.make_page("p2", "t2").await;
}
