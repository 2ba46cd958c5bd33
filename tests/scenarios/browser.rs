//! A page in a real browser follows a stream with nothing but its own `EventSource`.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::{Bourn, PATIENCE};

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
