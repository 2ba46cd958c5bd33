//! A page in a real browser follows a stream with nothing but its own `EventSource`.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::{Bourn, PATIENCE, eventually};

const PAGES: &str = "/v1/entities/pages";

struct Page {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Page {
    async fn open(stream: &str) -> Page {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser");
        let mut child = Command::new("node")
            .args(["follow.js", stream])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is installed");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut page = Page { _child: child, input, output };
        assert_eq!(page.line().await, "following");
        page
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE * 4, self.output.next_line())
            .await
            .expect("the page answers in time");
        line.unwrap().expect("the browser goes on")
    }

    /// What the page has seen, once it has seen so many keys.
    async fn seen(&mut self, count: usize) -> Value {
        self.input.write_all(format!("wait {count}\n").as_bytes()).await.unwrap();
        serde_json::from_str(&self.line().await).unwrap()
    }
}

#[tokio::test]
async fn the_browser_sees_every_change_once_in_order_across_a_kill() {
    let mut bourn =
        Bourn::start(&[("sse_retry", "100ms"), ("sse_lifetime", "2s"), ("sse_lifetime_jitter", "1s")]).await;
    let client = bourn.client();
    let mut expected = Vec::new();
    let mut next = || {
        let id = format!("p{:04}", expected.len());
        expected.push(id.clone());
        id
    };
    for _ in 0..5 {
        let id = next();
        client.make_page(&id, &format!("t-{id}")).await;
    }
    let mut page = Page::open(&format!("http://{}{PAGES}?offset=-1&live=sse", bourn.address())).await;
    page.seen(5).await;
    for _ in 0..50 {
        let id = next();
        client.make_page(&id, &format!("t-{id}")).await;
    }
    // Killed while the page may be in the middle of a batch; writes go on meanwhile.
    bourn.kill().await;
    for _ in 0..20 {
        let id = next();
        bourn.sql(&format!(
            "INSERT INTO pages (id, organization_id, name) VALUES ('{id}', 'acme', 'while it was down')"
        ));
    }
    bourn.restart().await;
    for _ in 0..50 {
        let id = next();
        client.make_page(&id, &format!("t-{id}")).await;
    }
    let seen = page.seen(expected.len()).await;
    let keys: Vec<&str> = seen["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    assert_eq!(keys, expected);
    assert!(seen["opens"].as_u64().unwrap() >= 2, "the browser reconnected by itself: {seen}");
    let offsets: Vec<&str> =
        seen["offsets"].as_array().unwrap().iter().map(|offset| offset.as_str().unwrap()).collect();
    assert!(offsets.is_sorted(), "{offsets:?}");
}

#[tokio::test]
async fn the_browser_comes_back_after_every_phase_in_which_it_cannot_be_served() {
    let settings = [
        ("sse_retry", "50ms"),
        ("sse_lifetime", "500ms"),
        ("sse_lifetime_jitter", "0ms"),
        ("connections", "8"),
        ("busy_timeout", "200ms"),
    ];
    let mut bourn = Bourn::start(&settings).await;
    let client = bourn.client();
    let json = [("content-type", "application/json")];
    let append = async |name: &str| {
        let body = format!("{{\"key\":\"{name}\"}}");
        eventually("it is appended", async || {
            client.send(http::Method::POST, "/v1/stream/s", &json, body.clone()).await.status == 204
        })
        .await;
    };
    client.send(http::Method::PUT, "/v1/stream/s", &json, "[]").await;
    append("first").await;
    let mut page = Page::open(&format!("http://{}/v1/stream/s?offset=-1&live=sse", bourn.address())).await;
    page.seen(1).await;
    let refused = async || {
        let figures = client.get("/metrics").await;
        let line = figures.text().lines().find_map(|line| {
            line.strip_prefix("bourn_requests_total{endpoint=\"stream\",status=\"200\"} ").map(str::to_owned)
        });
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };

    // The database cannot be read: answered in the browser's own way, again and again.
    bourn.sql(
        "ALTER TABLE bourn_streams RENAME TO away; UPDATE bourn_stream_totals SET version = version + 1",
    );
    eventually("it cannot be served", async || client.get("/v1/stream/s").await.status == 503).await;
    let before = refused().await;
    eventually("the browser has asked three times", async || refused().await >= before + 3).await;
    bourn.sql(
        "ALTER TABLE away RENAME TO bourn_streams; UPDATE bourn_stream_totals SET version = version + 1",
    );
    append("second").await;
    page.seen(2).await;

    // There is no place for its connection.
    let mut held = Vec::new();
    let mut refusals = 0;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while std::time::Instant::now() < deadline {
        let mut stream = tokio::net::TcpStream::connect(bourn.address()).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        if tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await.is_ok()
            && &answer == b"HTTP/1.1 200"
        {
            held.push(stream);
        } else {
            refusals += 1;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    assert!(held.len() >= 7 && refusals > 0, "{} are held, {refusals} were refused", held.len());
    drop(held);
    append("third").await;
    page.seen(3).await;

    // And a restart.
    bourn.terminate();
    bourn.ended().await;
    bourn.restart().await;
    append("fourth").await;
    let seen = page.seen(4).await;
    assert_eq!(seen["keys"], serde_json::json!(["first", "second", "third", "fourth"]));
}
