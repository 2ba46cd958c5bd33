//! Stored streams through two servers of one database, whichever it is: what one has acknowledged, the other knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::ground::Ground;
use crate::support::{Answer, Bourn, Client, eventually};

const JSON: (&str, &str) = ("content-type", "application/json");
const STREAM: &str = "/v1/stream/s";
const WRITERS: usize = 8;

async fn put(client: &Client, path: &str) -> Answer {
    client.send(Method::PUT, path, &[JSON], "").await
}

async fn post(client: &Client, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    client.send(Method::POST, path, &[&[JSON], headers].concat(), body.to_string()).await
}

/// Two servers that both know an empty stream.
async fn two<G: Ground>(ground: &G, settings: &[(&str, &str)]) -> (Bourn, Bourn) {
    let (one, two) = (ground.server(settings).await, ground.server(settings).await);
    put(&one.client(), STREAM).await;
    eventually("both know the stream", async || two.client().get(STREAM).await.status == 200).await;
    (one, two)
}

/// What writer `writer` has written, in the order of the stream.
fn of(messages: &[Value], writer: usize) -> Vec<u64> {
    let mine = messages.iter().filter(|message| message[0] == json!(writer));
    mine.map(|message| message[1].as_u64().unwrap()).collect()
}

pub async fn concurrent_appends_through_both_are_in_one_order_and_none_is_lost<G: Ground>() {
    const EACH: u64 = 50;
    let ground = G::new();
    let (one, two) = two(&ground, &[]).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let clients = [one.client(), two.client()];
            tokio::spawn(async move {
                for i in 0..EACH {
                    // Each message by the other server than the one before.
                    let client = &clients[usize::try_from(i).unwrap() % 2];
                    let answer = post(client, STREAM, &[], &json!([[writer, i]])).await;
                    assert_eq!(answer.status, 204, "{}", answer.text());
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let (here, _) = one.client().read_all(STREAM, "-1").await;
    eventually("both have all of it", async || {
        two.client().read_all(STREAM, "-1").await.0.len() == here.len()
    })
    .await;
    let (there, _) = two.client().read_all(STREAM, "-1").await;
    assert_eq!(here, there, "both tell the same order");
    for writer in 0..WRITERS {
        assert_eq!(of(&here, writer), (0..EACH).collect::<Vec<_>>());
    }
}

pub async fn a_producer_is_the_same_whichever_server_it_comes_by<G: Ground>() {
    let ground = G::new();
    let (one, two) = two(&ground, &[]).await;
    let (here, there) = (one.client(), two.client());
    let send = async |client: &Client, epoch: &str, seq: &str| {
        let producer = [("producer-id", "p"), ("producer-epoch", epoch), ("producer-seq", seq)];
        post(client, STREAM, &producer, &json!([format!("{epoch}.{seq}")])).await
    };
    assert_eq!(send(&here, "0", "0").await.status, 200);
    assert_eq!(send(&there, "0", "0").await.status, 204, "done already");
    assert_eq!(send(&there, "0", "1").await.status, 200);
    let gap = send(&here, "0", "3").await;
    assert_eq!((gap.status, gap.header("producer-expected-seq")), (409, "2"));
    assert_eq!(send(&here, "1", "0").await.status, 200);
    let fenced = send(&there, "0", "2").await;
    assert_eq!((fenced.status, fenced.header("producer-epoch")), (403, "1"));
    let (messages, _) = here.read_all(STREAM, "-1").await;
    assert_eq!(messages, [json!("0.0"), json!("0.1"), json!("1.0")]);
}

pub async fn a_live_reader_of_the_other_server_sees_each_append_at_once<G: Ground>() {
    let ground = G::new();
    // What is not told would not be found for long.
    let (one, two) = two(&ground, &[("follow_interval", "60s")]).await;
    let mut events = two.client().events(&format!("{STREAM}?offset=-1&live=sse"), &[]).await;
    events.control().await;
    for i in 0..20 {
        let sent = Instant::now();
        post(&one.client(), STREAM, &[], &json!([i])).await;
        assert_eq!(events.messages().await.0, [json!(i)]);
        assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
    }
    let closed = one.client().send(Method::POST, STREAM, &[("stream-closed", "true")], "").await;
    assert_eq!((closed.status, &events.control().await.1["streamClosed"]), (204, &json!(true)));
}

pub async fn a_server_that_dies_takes_no_acknowledged_append_with_it<G: Ground>() {
    let ground = G::new();
    let (mut one, two) = two(&ground, &[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let client = if writer % 2 == 0 { one.client() } else { two.client() };
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let id = format!("w{writer}");
                let mut seq = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let at = seq.to_string();
                    let headers =
                        [JSON, ("producer-id", &id), ("producer-epoch", "0"), ("producer-seq", &at)];
                    let body = json!([[writer, seq]]).to_string();
                    match client.try_send(Method::POST, STREAM, &headers, body.into()).await {
                        Ok(answer) if matches!(answer.status, 200 | 204) => {
                            seq += 1;
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                }
                seq
            })
        })
        .collect();
    let mut events = two.client().events(&format!("{STREAM}?offset=-1&live=sse"), &[]).await;
    let mut followed = Vec::new();
    for _ in 0..4 {
        let before = acknowledged.load(Ordering::Relaxed);
        eventually("writing goes on", async || acknowledged.load(Ordering::Relaxed) > before + 50).await;
        one.kill().await;
        one.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = 0;
    let mut counts = Vec::new();
    for writer in writers {
        counts.push(writer.await.unwrap());
        all += counts.last().unwrap();
    }
    while followed.len() < usize::try_from(all).unwrap() {
        followed.extend(events.messages().await.0);
    }
    let (messages, _) = two.client().read_all(STREAM, "-1").await;
    assert_eq!(messages[..followed.len()], followed, "the reader missed nothing and saw nothing twice");
    for (writer, acknowledged) in counts.into_iter().enumerate() {
        assert_eq!(of(&messages, writer), (0..acknowledged).collect::<Vec<u64>>(), "each once, in order");
        assert!(acknowledged > 0);
    }
}

/// Not on SQLite, where a server learns of another process's commits a few milliseconds later.
pub async fn what_one_has_acknowledged_the_other_knows_at_once<G: Ground>() {
    let ground = G::new();
    let (one, two) = two(&ground, &[]).await;
    let (here, there) = (one.client(), two.client());
    for i in 0..50 {
        let path = format!("/v1/stream/n{i}");
        assert_eq!(put(&here, &path).await.status, 201);
        assert_eq!(put(&there, &path).await.status, 200);
        assert_eq!(post(&there, &path, &[], &json!([1])).await.status, 204);
        assert_eq!(here.get(&path).await.messages(), [json!(1)]);
        assert_eq!(post(&here, &path, &[("stream-closed", "true")], &json!([2])).await.status, 204);
        let read = there.get(&path).await;
        assert_eq!((read.messages(), read.header("stream-closed")), (vec![json!(1), json!(2)], "true"));
        assert_eq!(post(&there, &path, &[], &json!([3])).await.status, 409);
        assert_eq!(here.delete(&path, &[]).await.status, 204);
        there.get(&path).await.assert_error(404, "STREAM_NOT_FOUND");
        assert_eq!(put(&there, &path).await.status, 201);
        assert!(here.get(&path).await.messages().is_empty());
    }
}

/// Not on SQLite, which has no other connection to lose.
pub async fn forks_that_are_made_and_deleted_through_both_leave_nothing_behind<G: Ground>() {
    let ground = G::new();
    let (one, two) = two(&ground, &[]).await;
    post(&one.client(), STREAM, &[], &json!([1])).await;
    let tasks: Vec<_> = (0..WRITERS)
        .map(|task| {
            let clients = [one.client(), two.client()];
            tokio::spawn(async move {
                for i in 0..10 {
                    let (two, three) = (json!([2]), json!([3]));
                    let [a, b] = [&clients[(task + i) % 2], &clients[(task + i + 1) % 2]];
                    let (fork, leaf) = (format!("/v1/stream/f{task}-{i}"), format!("/v1/stream/l{task}-{i}"));
                    let made = a.send(Method::PUT, &fork, &[("stream-forked-from", STREAM)], "").await;
                    assert_eq!(made.status, 201, "{}", made.text());
                    let made = b.send(Method::PUT, &leaf, &[("stream-forked-from", &fork)], "").await;
                    assert_eq!(made.status, 201, "{}", made.text());
                    let (appended, deleted) = tokio::join!(post(b, &leaf, &[], &two), a.delete(&fork, &[]));
                    assert_eq!((appended.status, deleted.status), (204, 204));
                    let read = b.get(&leaf).await.messages();
                    assert_eq!((&read[0], read.last()), (&json!(1), Some(&json!(2))), "{read:?}");
                    let (appended, deleted) =
                        tokio::join!(post(b, STREAM, &[], &three), a.delete(&leaf, &[]));
                    assert_eq!((appended.status, deleted.status), (204, 204));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for path in
        (0..WRITERS).flat_map(|task| [format!("/v1/stream/f{task}-0"), format!("/v1/stream/l{task}-9")])
    {
        two.client().get(&path).await.assert_error(404, "STREAM_NOT_FOUND");
    }
}
