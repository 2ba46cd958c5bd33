//! Existing clients of the protocol, unmodified.

use serde_json::{Value, json};

use crate::support::{Bourn, PATIENCE};

#[tokio::test]
async fn the_durable_streams_client_and_streamdb_follow_a_table() {
    // Small chunks, so that catching up takes several reads.
    let bourn = Bourn::start(&[("chunk_messages", "8")]).await;
    let client = bourn.client();
    for i in 0..30 {
        client.make_page(&format!("p{i:02}"), &format!("t{i}")).await;
    }
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
    let output = tokio::process::Command::new("node")
        .args(["follow.js", &format!("http://{}", bourn.address())])
        .current_dir(directory)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE * 2, output).await.expect("the clients end in time").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let seen: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!((&seen["preloaded"], &seen["left"]), (&json!(30), &json!(30)), "{seen}");
    assert_eq!(
        (&seen["created"], &seen["updated"], &seen["deleted"]),
        (&json!("one"), &json!("two"), &Value::Null)
    );
    assert_eq!(seen["both"], json!([30, "notes.txt"]), "{seen}");
    let mut expected: Vec<String> = (0..30).map(|i| format!("insert p{i:02}")).collect();
    expected.extend(["insert mine", "update mine", "delete mine"].map(str::to_owned));
    for mode in ["catch-up", "long-poll", "sse"] {
        assert_eq!(seen[mode], json!(expected), "{mode}");
    }
}

#[tokio::test]
async fn the_durable_streams_client_writes_and_follows_a_stored_stream() {
    let bourn = Bourn::start(&[]).await;
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
    let output = tokio::process::Command::new("node")
        .args(["stored.js", &format!("http://{}", bourn.address())])
        .current_dir(directory)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE * 2, output).await.expect("the client ends in time").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let seen: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    let numbers = |last: u64| json!((1..=last).collect::<Vec<_>>());
    assert_eq!(seen["catch-up"], numbers(20), "{seen}");
    assert_eq!((&seen["long-poll"], &seen["sse"]), (&numbers(22), &numbers(22)), "{seen}");
    assert_eq!((&seen["closed"], &seen["left"]), (&json!(true), &json!(404)), "{seen}");
}
