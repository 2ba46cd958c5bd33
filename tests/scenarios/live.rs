//! Following a stream: long-poll and server-sent events.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Bourn, Event, eventually};

const PAGES: &str = "/v1/entities/pages";

#[tokio::test]
async fn a_long_poll_answers_when_something_comes() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let at_once = client.get(&format!("{PAGES}?offset=-1&live=long-poll")).await;
    assert_eq!(at_once.messages().len(), 1);
    let offset = at_once.next_offset();
    let waiting = tokio::spawn({
        let (client, offset) = (client.clone(), offset.clone());
        async move { client.get(&format!("{PAGES}?offset={offset}&live=long-poll")).await }
    });
    eventually("the reader waits", async || {
        client.get("/metrics").await.text().contains("bourn_live_readers{mode=\"long-poll\"} 1")
    })
    .await;
    client.make_page("p2", "t2").await;
    let answer = waiting.await.unwrap();
    assert_eq!(answer.messages()[0]["key"], "p2");
    assert_eq!(answer.header("cache-control"), "public, max-age=5");
    assert!(answer.up_to_date() && !answer.header("stream-cursor").is_empty());
    let plain = client.get(&format!("{PAGES}?offset={offset}")).await;
    assert_eq!(plain.body, answer.body, "the same messages in every mode");
}

#[tokio::test]
async fn a_long_poll_ends_empty_and_its_cursor_goes_on() {
    let bourn = Bourn::start(&[("long_poll_timeout", "50ms")]).await;
    let client = bourn.client();
    let mut cursor = 0;
    for offset in ["now", "-1"] {
        let path = format!("{PAGES}?offset={offset}&live=long-poll&cursor={cursor}");
        let answer = client.get(&path).await;
        assert_eq!((answer.status, answer.body.len(), answer.up_to_date()), (204, 0, true));
        assert_eq!(answer.header("cache-control"), "no-store");
        assert!(answer.next_offset().ends_with("_0000000000000000"));
        let next: u64 = answer.header("stream-cursor").parse().unwrap();
        assert!(next > cursor, "{next} follows {cursor}");
        cursor = next;
    }
}

#[tokio::test]
async fn an_event_stream_has_exactly_the_frames_of_the_contract() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let mut events = client.events(&format!("{PAGES}?offset=-1&live=sse"), &[]).await;
    for header in [
        "200 ok",
        "content-type: text/event-stream",
        "cache-control: no-cache, no-store",
        "x-accel-buffering: no",
    ] {
        assert!(events.head.contains(header), "{header}: {}", events.head);
    }
    let (messages, id) = events.messages().await;
    let chunk = client.get(&format!("{PAGES}?offset=-1")).await;
    assert_eq!((json!(messages), id.clone()), (chunk.json(), chunk.next_offset()));
    let raw = String::from_utf8(events.raw.clone()).unwrap();
    let (retry, rest) = raw.split_once("\n\n").unwrap();
    assert!(retry.starts_with("retry: "), "{raw}");
    let cursor = rest.split_once("\"streamCursor\":\"").unwrap().1.split_once('"').unwrap().0;
    let expected = format!(
        "event: data\ndata:{}\n\nid: {id}\nevent: control\ndata:{{\"streamNextOffset\":\"{id}\",\"streamCursor\":\"{cursor}\",\"upToDate\":true}}\n\n",
        chunk.text()
    );
    assert_eq!(rest, expected);

    client.make_page("p2", "t2").await;
    let (messages, id) = events.messages().await;
    assert_eq!(messages[0]["key"], "p2");
    assert!(id.ends_with("_0000000000000002"));
}

#[tokio::test]
async fn an_empty_stream_says_at_once_that_it_is_up_to_date() {
    let bourn = Bourn::start(&[]).await;
    for offset in ["-1", "now"] {
        let mut events = bourn.client().events(&format!("{PAGES}?offset={offset}&live=sse"), &[]).await;
        let (id, control) = events.control().await;
        assert!(id.ends_with("_0000000000000000"));
        assert_eq!((&control["upToDate"], &control["streamNextOffset"]), (&json!(true), &json!(id)));
    }
}

#[tokio::test]
async fn the_last_event_id_wins_over_the_url() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    for i in 1..=5 {
        client.make_page(&format!("p{i}"), &format!("t{i}")).await;
    }
    let offset = client.get(&format!("{PAGES}?offset=now")).await.next_offset().replace("05", "03");
    let mut events =
        client.events(&format!("{PAGES}?offset=-1&live=sse"), &[("last-event-id", &offset)]).await;
    let (messages, _) = events.messages().await;
    assert_eq!(messages.iter().map(|m| m["key"].clone()).collect::<Vec<_>>(), ["p4", "p5"]);
    client
        .get_with(&format!("{PAGES}?offset=-1&live=sse"), &[("last-event-id", "nonsense")])
        .await
        .assert_error(400, "INVALID_OFFSET");
}

#[tokio::test]
async fn an_idle_stream_beats_and_ends_in_time() {
    let settings = [("sse_heartbeat", "100ms"), ("sse_lifetime", "600ms"), ("sse_lifetime_jitter", "100ms")];
    let bourn = Bourn::start(&settings).await;
    let started = Instant::now();
    let mut events = bourn.client().events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    let mut beats = 0;
    loop {
        match events.next().await {
            Event::Heartbeat => beats += 1,
            Event::End => break,
            _ => {}
        }
    }
    assert!(beats >= 3, "{beats} heartbeats");
    let lived = started.elapsed();
    assert!(lived > Duration::from_millis(450) && lived < Duration::from_secs(3), "lived {lived:?}");
}

#[tokio::test]
async fn a_foreign_transaction_arrives_whole_and_what_was_rolled_back_never() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let mut pages = client.events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    let mut scoped = client.events(&format!("{PAGES}?offset=now&live=sse&organizationId=beta"), &[]).await;
    let mut all = client.events("/v1/activities?offset=now&live=sse", &[]).await;
    for events in [&mut pages, &mut scoped, &mut all] {
        events.control().await;
    }
    bourn.sql("BEGIN; INSERT INTO pages (id) VALUES ('never'); ROLLBACK");
    bourn.sql(
        "BEGIN; INSERT INTO pages (id, organization_id) VALUES ('a', 'acme'), ('b', 'beta');
         SAVEPOINT s; INSERT INTO pages (id) VALUES ('no'); ROLLBACK TO s;
         INSERT INTO attachments (id, organization_id) VALUES ('f', 'acme'); UPDATE pages SET name = 'x' WHERE id = 'a'; COMMIT",
    );
    let keys = |messages: &[serde_json::Value], name: &str| {
        json!(messages.iter().map(|m| m[name].clone()).collect::<Vec<_>>())
    };
    assert_eq!(keys(&pages.messages().await.0, "key"), json!(["a", "b", "a"]));
    assert_eq!(keys(&scoped.messages().await.0, "key"), json!(["b"]));
    assert_eq!(keys(&all.messages().await.0, "entityId"), json!(["a", "b", "f", "a"]));
}

#[tokio::test]
async fn readers_in_every_mode_and_of_every_memory_see_every_change_once_in_order() {
    // A tail that holds next to nothing: readers fall back to the log all the time.
    let bourn = Bourn::start(&[
        ("tail_memory", "2KiB"),
        ("chunk_messages", "8"),
        ("sse_lifetime", "300ms"),
        ("sse_lifetime_jitter", "200ms"),
    ])
    .await;
    const CHANGES: usize = 400;
    let writer = tokio::spawn({
        let client = bourn.client();
        async move {
            for i in 0..CHANGES {
                client.make_page(&format!("p{i}"), &format!("t{i}")).await;
            }
        }
    });
    let mut readers = Vec::new();
    for reader in 0..6 {
        let client = bourn.client();
        readers.push(tokio::spawn(async move {
            let (mut seen, mut offset) = (Vec::new(), "-1".to_owned());
            while seen.len() < CHANGES {
                if reader % 2 == 0 {
                    let answer = client.get(&format!("{PAGES}?offset={offset}&live=long-poll")).await;
                    if answer.status == 200 {
                        seen.extend(answer.messages());
                    }
                    offset = answer.next_offset();
                } else {
                    let mut events = client
                        .events(&format!("{PAGES}?offset=-1&live=sse"), &[("last-event-id", &offset)])
                        .await;
                    let mut batch = Vec::new();
                    loop {
                        match events.next().await {
                            Event::Data(messages) => batch = messages,
                            Event::Control { id, .. } => {
                                seen.append(&mut batch);
                                offset = id;
                            }
                            Event::End => break,
                            _ => {}
                        }
                        if seen.len() >= CHANGES {
                            break;
                        }
                    }
                }
            }
            seen.iter().map(|message| message["headers"]["seq"].as_u64().unwrap()).collect::<Vec<_>>()
        }));
    }
    writer.await.unwrap();
    let expected: Vec<u64> = (1..=CHANGES as u64).collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_long_poll_reader_misses_nothing_between_its_polls() {
    // Each poll is the only reader of its stream, so that the stream is followed from scratch every time.
    let bourn = Bourn::start(&[("tail_sweep", "0ms")]).await;
    const CHANGES: usize = 1_500;
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let client = bourn.client();
            tokio::spawn(async move {
                for i in 0..CHANGES / 3 {
                    client.make_page(&format!("p{writer}-{i}"), &format!("t{writer}-{i}")).await;
                }
            })
        })
        .collect();
    let client = bourn.client();
    let (mut seen, mut offset) = (Vec::new(), "-1".to_owned());
    while seen.len() < CHANGES {
        let answer = client.get(&format!("/v1/activities?offset={offset}&live=long-poll")).await;
        seen.extend(answer.messages().iter().map(|activity| activity["seq"].as_u64().unwrap()));
        offset = answer.next_offset();
    }
    assert_eq!(seen, (1..=CHANGES as u64).collect::<Vec<_>>());
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_cursor_is_each_readers_own() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let mut ahead = client.events(&format!("{PAGES}?offset=now&live=sse&cursor=99999999"), &[]).await;
    let mut plain = client.events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    ahead.control().await;
    plain.control().await;
    client.make_page("p1", "t1").await;
    let cursor =
        |control: serde_json::Value| control["streamCursor"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(cursor(ahead.control().await.1) > 99_999_999);
    assert!(cursor(plain.control().await.1) < 99_999_999);
}

#[tokio::test]
async fn only_a_reader_that_has_everything_is_said_to_be_up_to_date() {
    const WRITES: usize = 40;
    let bourn = Bourn::start(&[("chunk_messages", "1")]).await;
    let client = bourn.client();
    let start = client.get(&format!("{PAGES}?offset=now")).await.next_offset();
    let mut events = client.events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    events.control().await;
    // Writes that come together share a commit, and reach the tail at once.
    let writes: Vec<_> = (0..WRITES)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move { client.make_page(&format!("p{i}"), &format!("t{i}")).await })
        })
        .collect();
    for write in writes {
        write.await.unwrap();
    }
    let (mut seen, mut complete) = (0, 0);
    let mut last = json!(null);
    while seen < WRITES || last["upToDate"] != true {
        match events.next().await {
            Event::Data(messages) => seen += messages.len(),
            Event::Control { body, .. } => {
                complete += usize::from(body["upToDate"] == true);
                last = body;
            }
            _ => {}
        }
    }
    assert!(complete < WRITES / 2, "{complete} of {WRITES} batches were said to be the last");
    // The same of a long-poll that is far behind, from the tail's memory.
    let (mut offset, mut read) = (start, 0);
    loop {
        let answer = client.get(&format!("{PAGES}?offset={offset}&live=long-poll")).await;
        read += answer.messages().len();
        assert_eq!(answer.up_to_date(), read == WRITES, "after {read}");
        if read == WRITES {
            break;
        }
        offset = answer.next_offset();
    }
}

#[tokio::test]
async fn an_event_stream_that_resumes_is_asked_to_come_back_where_others_are_refused() {
    let bourn = Bourn::start(&[("busy_timeout", "200ms")]).await;
    let client = bourn.client();
    let (path, json) = ("/v1/stream/s", [("content-type", "application/json")]);
    assert_eq!(client.send(http::Method::PUT, path, &json, "[1]").await.status, 201);
    let mut events = client.events(&format!("{path}?offset=-1&live=sse"), &[]).await;
    let (_, id) = events.messages().await;
    bourn.sql(
        "ALTER TABLE bourn_streams RENAME TO away; UPDATE bourn_stream_totals SET version = version + 1",
    );
    let live = format!("{path}?offset=-1&live=sse");
    eventually("it cannot be served", async || client.get(&live).await.status == 503).await;
    let mut resumed = client.events(&live, &[("last-event-id", &id)]).await;
    assert!(resumed.head.starts_with("http/1.1 200 ok") && resumed.head.contains("text/event-stream"));
    assert!(matches!(resumed.next().await, Event::Retry(_)));
    assert_eq!(resumed.next().await, Event::End);
    bourn.sql(
        "ALTER TABLE away RENAME TO bourn_streams; UPDATE bourn_stream_totals SET version = version + 1",
    );
    eventually("it is served again", async || client.get(path).await.status == 200).await;
    // What is gone for good is said as such.
    let gone = client.get_with(&live, &[("last-event-id", "0000000000000005_0000000000000099")]).await;
    gone.assert_error(410, "OFFSET_GONE");
}
