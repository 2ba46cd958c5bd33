//! Stored streams as their users meet them: what the official suite does not ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::ground::Ground;
use crate::support::{Answer, Client, Event};

const TEXT: (&str, &str) = ("content-type", "text/plain");
const JSON: (&str, &str) = ("content-type", "application/json");

async fn put(client: &Client, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    client.send(Method::PUT, &format!("/v1/stream/{path}"), headers, body.to_owned()).await
}

async fn post(
    client: &Client,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<bytes::Bytes>,
) -> Answer {
    client.send(Method::POST, &format!("/v1/stream/{path}"), headers, body).await
}

pub async fn history_is_cached_for_long_and_the_tail_is_not<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[("chunk_bytes", "1KiB")]).await;
    let client = bourn.client();
    put(&client, "s", &[TEXT], "").await;
    for _ in 0..30 {
        assert_eq!(post(&client, "s", &[TEXT], "x".repeat(100)).await.status, 204);
    }
    let first = client.get("/v1/stream/s").await;
    assert_eq!(first.header("cache-control"), "public, max-age=60, stale-while-revalidate=300");
    assert!(!first.up_to_date() && first.body.len() <= 1_024);
    let url = format!("/v1/stream/s?offset={}", first.next_offset());
    let second = client.get(&url).await;
    assert_eq!(second.header("cache-control"), "public, max-age=31536000, immutable");
    let again = client.get_with(&url, &[("if-none-match", second.header("etag"))]).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    let (mut offset, mut length) = (second.next_offset(), first.body.len() + second.body.len());
    let last = loop {
        let answer = client.get(&format!("/v1/stream/s?offset={offset}")).await;
        length += answer.body.len();
        if answer.up_to_date() {
            break answer;
        }
        offset = answer.next_offset();
    };
    assert_eq!((length, last.header("cache-control")), (3_000, "public, max-age=5"));
    let tail = client.get(&format!("/v1/stream/s?offset={}", last.next_offset())).await;
    assert_eq!((tail.status, tail.body.len(), tail.header("cache-control")), (200, 0, "no-store"));
    // What expires is not kept for longer than it lives.
    put(&client, "brief", &[TEXT, ("stream-ttl", "100")], "x").await;
    for _ in 0..20 {
        post(&client, "brief", &[TEXT], "x".repeat(200)).await;
    }
    let first = client.get("/v1/stream/brief").await;
    let second = client.get(&format!("/v1/stream/brief?offset={}", first.next_offset())).await;
    let age: u64 = second.header("cache-control").split(['=', ',']).nth(2).unwrap().parse().unwrap();
    assert!(age <= 100 && !second.up_to_date(), "{}", second.header("cache-control"));
}

pub async fn a_stream_made_anew_does_not_take_the_old_ones_offsets<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    let old = put(&client, "s", &[TEXT], "old").await.next_offset();
    client.delete("/v1/stream/s", &[]).await;
    client.get("/v1/stream/s").await.assert_error(404, "STREAM_NOT_FOUND");
    put(&client, "s", &[TEXT], "new").await;
    client.get(&format!("/v1/stream/s?offset={old}")).await.assert_error(410, "OFFSET_GONE");
    let made_up = "0000000000000001_0000000000000001";
    client.get(&format!("/v1/stream/s?offset={made_up}")).await.assert_error(410, "OFFSET_GONE");
    assert_eq!(client.get("/v1/stream/s?colour=red").await.text(), "new", "unknown parameters are nothing");
}

pub async fn paths_and_sizes_have_limits_and_the_answer_says_which<G: Ground>() {
    let ground = G::new();
    let settings =
        [("append_limit", "1KiB"), ("append_memory", "1KiB"), ("stream_limit", "2KiB"), ("streams", "3")];
    let bourn = ground.server(&settings).await;
    let client = bourn.client();
    for bad in ["a//b", "a/../b", "a%2F..%2Fb", "%ff", "a%00", "a%5Cb", "./a"] {
        put(&client, bad, &[TEXT], "").await.assert_error(400, "INVALID_PATH");
    }
    assert_eq!(put(&client, "a", &[TEXT], "").await.status, 201);
    post(&client, "a", &[TEXT], "x".repeat(1_025)).await.assert_error(413, "BODY_TOO_LARGE");
    for _ in 0..2 {
        assert_eq!(post(&client, "a", &[TEXT], "x".repeat(1_024)).await.status, 204);
    }
    post(&client, "a", &[TEXT], "x").await.assert_error(413, "STREAM_TOO_LARGE");
    assert_eq!(put(&client, "b", &[TEXT], "").await.status, 201);
    assert_eq!(put(&client, "c", &[TEXT], "").await.status, 201);
    let refused = put(&client, "d", &[TEXT], "").await;
    refused.assert_error(429, "TOO_MANY");
    assert_eq!(refused.header("retry-after"), "1");
    client.delete("/v1/stream/b", &[]).await;
    assert_eq!(put(&client, "d", &[TEXT], "").await.status, 201);
    put(&client, "e", &[("content-type", "nonsense")], "").await.assert_error(400, "INVALID_HEADER");
    client.patch("/v1/stream/a", &[], &json!({})).await.assert_error(405, "METHOD_NOT_ALLOWED");
}

pub async fn forks_of_forks_keep_what_they_need_while_everything_around_them_is_deleted<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    put(&client, "root", &[TEXT], "one ").await;
    put(&client, "middle", &[("stream-forked-from", "/v1/stream/root")], "").await;
    post(&client, "middle", &[TEXT], "two ").await;
    put(&client, "leaf", &[("stream-forked-from", "/v1/stream/middle")], "").await;
    post(&client, "leaf", &[TEXT], "three").await;
    post(&client, "root", &[TEXT], "unseen").await;
    for path in ["middle", "root"] {
        assert_eq!(client.delete(&format!("/v1/stream/{path}"), &[]).await.status, 204);
        client.get(&format!("/v1/stream/{path}")).await.assert_error(410, "STREAM_GONE");
        put(&client, path, &[TEXT], "").await.assert_error(409, "PATH_BLOCKED");
    }
    assert_eq!(client.get("/v1/stream/leaf").await.text(), "one two three");
    assert_eq!(client.delete("/v1/stream/leaf", &[]).await.status, 204);
    for path in ["root", "middle", "leaf"] {
        client.get(&format!("/v1/stream/{path}")).await.assert_error(404, "STREAM_NOT_FOUND");
        assert_eq!(put(&client, path, &[TEXT], "").await.status, 201);
    }
}

pub async fn an_event_stream_follows_appends_and_ends_with_the_stream<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    put(&client, "s", &[JSON], "[1]").await;
    let mut events = client.events("/v1/stream/s?offset=-1&live=sse", &[]).await;
    let (messages, place) = events.messages().await;
    assert_eq!(messages, [json!(1)]);
    post(&client, "s", &[JSON], "[2, 3]").await;
    assert_eq!(events.messages().await.0, [json!(2), json!(3)]);
    post(&client, "s", &[JSON, ("stream-closed", "true")], "4").await;
    assert_eq!(events.messages().await.0, [json!(4)]);
    assert_eq!(events.next().await, Event::End);
    // A browser comes back with the id of the last event it saw.
    let mut resumed = client.events("/v1/stream/s?offset=-1&live=sse", &[("last-event-id", &place)]).await;
    assert_eq!(resumed.messages().await.0, [json!(2), json!(3), json!(4)]);
}

pub async fn live_readers_of_a_deleted_stream_are_told<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    let tail = put(&client, "s", &[TEXT], "x").await.next_offset();
    let mut events = client.events("/v1/stream/s?offset=-1&live=sse", &[]).await;
    events.control().await;
    let url = format!("/v1/stream/s?offset={tail}&live=long-poll");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.get(&url).await }
    });
    client.until_readers(&["long-poll", "sse"]).await;
    client.delete("/v1/stream/s", &[]).await;
    waiting.await.unwrap().assert_error(404, "STREAM_NOT_FOUND");
    assert_eq!(events.next().await, Event::End);
}

pub async fn a_stop_lets_live_readers_end_in_good_order<G: Ground>() {
    let ground = G::new();
    let mut bourn = ground.server(&[]).await;
    let client = bourn.client();
    let tail = put(&client, "s", &[JSON], "1").await.next_offset();
    let mut events = client.events("/v1/stream/s?offset=now&live=sse", &[]).await;
    events.control().await;
    let url = format!("/v1/stream/s?offset={tail}&live=long-poll");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.get(&url).await }
    });
    client.until_readers(&["long-poll", "sse"]).await;
    bourn.terminate();
    assert_eq!(waiting.await.unwrap().status, 204);
    assert_eq!(events.control().await.0, tail);
    assert_eq!(events.next().await, Event::End);
    assert!(bourn.ended().await.0);
}

pub async fn a_stream_that_is_read_under_load_does_not_expire<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    put(&client, "busy", &[TEXT, ("stream-ttl", "1")], "x").await;
    put(&client, "idle", &[TEXT, ("stream-ttl", "1")], "x").await;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(client.get("/v1/stream/busy").await.status, 200);
                }
            })
        })
        .collect();
    crate::support::eventually("the idle one is gone", async || {
        client.send(Method::HEAD, "/v1/stream/idle", &[], "").await.status == 404
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(client.get("/v1/stream/busy").await.text(), "x");
}

pub async fn two_servers_of_one_database_see_each_others_appends<G: Ground>() {
    let ground = G::new();
    let one = ground.server(&[]).await;
    let two = ground.server(&[]).await;
    let (here, there) = (one.client(), two.client());
    put(&here, "s", &[JSON], "").await;
    crate::support::eventually("the other server knows it", async || {
        there.get("/v1/stream/s").await.status == 200
    })
    .await;
    let mut events = here.events("/v1/stream/s?offset=-1&live=sse", &[]).await;
    let mut expected = Vec::new();
    for i in 0..40 {
        let client = if i % 2 == 0 { &here } else { &there };
        assert_eq!(post(client, "s", &[JSON], i.to_string()).await.status, 204);
        expected.push(json!(i));
    }
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        seen.extend(events.messages().await.0);
    }
    assert_eq!(seen, expected);
}

pub async fn an_acknowledged_append_survives_kill_9_and_is_there_once<G: Ground>() {
    let ground = G::new();
    let mut bourn = ground.server(&[]).await;
    put(&bourn.client(), "s", &[JSON], "").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (client, stop) = (bourn.client(), stop.clone());
            tokio::spawn(async move {
                let id = format!("w{writer}");
                let mut seq = 0;
                while !stop.load(Ordering::Relaxed) {
                    let at = seq.to_string();
                    let headers =
                        [JSON, ("producer-id", &id), ("producer-epoch", "0"), ("producer-seq", &at)];
                    let body = json!([id, seq]).to_string();
                    // One level of an array is wrapping.
                    let sent =
                        client.try_send(Method::POST, "/v1/stream/s", &headers, format!("[{body}]").into());
                    match sent.await {
                        Ok(answer) if matches!(answer.status, 200 | 204) => seq += 1,
                        Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                }
                seq
            })
        })
        .collect();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        bourn.kill().await;
        bourn.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    let (messages, _) = bourn.client().read_all("/v1/stream/s", "-1").await;
    for (writer, acknowledged) in writers.into_iter().enumerate() {
        let acknowledged = acknowledged.await.unwrap();
        let (after, _) = bourn.client().read_all("/v1/stream/s", "-1").await;
        let of: Vec<u64> = after
            .iter()
            .filter(|message| message[0] == format!("w{writer}"))
            .map(|message| message[1].as_u64().unwrap())
            .collect();
        assert_eq!(of, (0..acknowledged).collect::<Vec<u64>>(), "each once, in order");
        assert!(acknowledged > 0 && after.len() >= messages.len());
    }
}
