//! Bourn in another application: `examples/axum.rs`, run as it stands.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::Client;

/// Starts the example, which cargo has built beside the tests; gives it and the address it says.
async fn start(database: &std::path::Path) -> (Child, String) {
    let tests = std::env::current_exe().unwrap();
    let example = tests.parent().and_then(std::path::Path::parent).unwrap().join("examples/axum");
    let mut application = Command::new(example)
        .arg(database)
        .arg("127.0.0.1:0")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("cargo builds examples with the tests");
    let mut lines = BufReader::new(application.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("it says where it listens");
    (application, line.strip_prefix("listening on http://").unwrap().to_owned())
}

#[tokio::test]
async fn an_axum_application_streams_its_own_writes_and_bourns() {
    let directory = tempfile::tempdir().unwrap();
    let (mut application, address) = start(&directory.path().join("notes.db")).await;
    let client = Client::new(&address);
    let mut events = client.events("/feed/v1/entities/notes?offset=now&live=sse", &[]).await;
    events.control().await;

    // By the application's own route, and so by SQL.
    assert_eq!(client.post("/notes?text=hello", &[], &json!(null)).await.status, 201);
    let (messages, _) = events.messages().await;
    assert_eq!(messages[0]["value"], json!({ "id": 1, "text": "hello" }));
    // By Bourn's, under the path where it is mounted; links in answers have that path, too.
    let made =
        client.post("/feed/v1/entities/notes", &[("x-transaction-id", "t1")], &json!({ "text": "x" })).await;
    assert_eq!((made.status, made.header("location")), (201, "/feed/v1/entities/notes/2"));
    let (messages, _) = events.messages().await;
    assert_eq!(messages[0]["headers"]["txid"], "t1");
    let page = client.get("/feed/v1/entities/notes?limit=1").await;
    assert_eq!(page.json(), json!([{ "id": 1, "text": "hello" }]));
    assert!(
        page.header("link").starts_with("</feed/v1/entities/notes?limit=1&after=1>"),
        "{}",
        page.header("link")
    );
    let stream =
        client.send(http::Method::PUT, "/feed/v1/stream/log", &[("content-type", "text/plain")], "").await;
    assert_eq!(stream.header("location"), format!("http://{address}/feed/v1/stream/log"));
    assert_eq!(client.get("/feed/v1/entities/none").await.status, 404);
    assert_eq!(client.get("/feed/ready").await.status, 200);

    // Told to stop, both end and event streams with them.
    kill(Pid::from_raw(application.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
    let ended = tokio::time::timeout(crate::support::PATIENCE, application.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}
