//! Bodies of rows: what a JSON column is given arrives as it was sent, and what all bodies take together is bounded.

use http::Method;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Bourn, eventually, sqlite3};

const JSON: (&str, &str) = ("content-type", "application/json");
const DOCUMENTS: &str = "/v1/entities/docs";
const MIB: u64 = 1 << 20;

async fn documents(settings: &[(&str, &str)]) -> Bourn {
    let config = "[[entity]]\ntype='doc'\ntable='docs'\n";
    Bourn::start_with(config, settings, |database| {
        sqlite3(database, "CREATE TABLE docs (id TEXT PRIMARY KEY, data JSON, body TEXT, n INTEGER)");
    })
    .await
}

#[tokio::test]
async fn a_json_column_gets_the_text_that_was_sent() {
    let bourn = documents(&[]).await;
    let client = bourn.client();
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let values = [
        r#"{"b":1,"a":2,"b":3}"#,
        r#"{"$serde_json::private::RawValue":"[1,2]"}"#,
        r#"{"$serde_json::private::Number":"7"}"#,
        r#"[123456789012345678901234567890.00,1e400,-0.0]"#,
        r#"["\ud800","\u00e9","é","\/"]"#,
        &deep,
    ];
    for (i, value) in values.into_iter().enumerate() {
        let row = format!(r#"{{"id":"d{i}","data":{value},"body":null,"n":null}}"#);
        let made = client.send(Method::POST, DOCUMENTS, &[JSON], row.clone()).await;
        assert_eq!((made.status, made.text()), (201, row.as_str()));
        assert_eq!(bourn.sql(&format!("SELECT data FROM docs WHERE id = 'd{i}'")).trim(), value);
        assert_eq!(client.get(&format!("{DOCUMENTS}/d{i}")).await.text(), row);
    }
    let stream = client.get(&format!("{DOCUMENTS}?offset=-1")).await;
    assert!(values.iter().all(|value| stream.text().contains(value)), "{}", stream.text());
    // White space between tokens is the database's to keep; it never goes out.
    let spaced = r#"{"data": {"b" : [1, 2],  "a":"x  y"}}"#;
    let set = client.send(Method::PATCH, &format!("{DOCUMENTS}/d0"), &[JSON], spaced).await;
    assert!(set.text().contains(r#""data":{"b":[1,2],"a":"x  y"},"#), "{}", set.text());
    assert_eq!(bourn.sql("SELECT data FROM docs WHERE id = 'd0'").trim(), r#"{"b" : [1, 2],  "a":"x  y"}"#);
    for (body, code) in [
        (r#"{"n":1,"n":1}"#, "INVALID_JSON"),
        (r#"{"n":1,"\u006e":2}"#, "INVALID_JSON"),
        (r#"{"body":"\ud800"}"#, "WRONG_TYPE"),
        (&format!(r#"{{"data":{}{}}}"#, "[".repeat(1001), "]".repeat(1001)), "WRONG_TYPE"),
        (r#"{"data":{"a":"\u0000"}}"#, "WRONG_TYPE"),
        (r#"{"n":1.0}"#, "WRONG_TYPE"),
    ] {
        let refused = client.send(Method::PATCH, &format!("{DOCUMENTS}/d1"), &[JSON], body.to_owned()).await;
        refused.assert_error(400, code);
        assert!(code != "INVALID_JSON" || refused.text().contains("column `n` is given twice"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_take_a_few_times_their_size() {
    let bourn = documents(&[]).await;
    let client = bourn.client();
    let data = format!("[0{}]", ",0".repeat(520_000));
    client.send(Method::POST, DOCUMENTS, &[JSON], r#"{"id":"first"}"#).await;
    let before = bourn.peak();
    let mut writes = tokio::task::JoinSet::new();
    for i in 0..20 {
        let (client, body) = (client.clone(), format!(r#"{{"id":"{i}","data":{data}}}"#));
        writes.spawn(async move { client.send(Method::POST, DOCUMENTS, &[JSON], body).await.status });
    }
    let statuses = writes.join_all().await;
    assert_eq!(statuses, [201; 20], "the default `body_memory` has room for all of them");
    let grown = (bourn.peak() - before) / MIB;
    println!("20 bodies of 1 MiB took {grown} MiB");
    assert!(grown < 160, "20 bodies of 1 MiB took {grown} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_stall_are_bounded_together() {
    let bourn = documents(&[("body_memory", "16MiB"), ("body_timeout", "60s")]).await;
    let client = bourn.client();
    client.send(Method::POST, DOCUMENTS, &[JSON], r#"{"id":"first"}"#).await;
    let before = bourn.resident();
    let mut stalled = Vec::new();
    for i in 0..200 {
        let mut stream = TcpStream::connect(bourn.address()).await.unwrap();
        let head = format!(
            "POST {DOCUMENTS} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {MIB}\r\n\r\n{{\"id\":\"{i}\",\"body\":\"",
            bourn.address()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // One that is refused is read on for a while, and then closed.
        let _ = stream.write_all(&vec![b'x'; 900 << 10]).await;
        stalled.push(stream);
    }
    let large = format!(r#"{{"id":"large","body":"{}"}}"#, "x".repeat(1_048_000));
    eventually("there is no room for more", async || {
        let answer = client.send(Method::POST, DOCUMENTS, &[JSON], large.clone()).await;
        assert!([201, 409, 429].contains(&answer.status), "{}", answer.status);
        answer.status == 429
    })
    .await;
    let grown = (bourn.resident() - before) / MIB;
    println!("200 stalled bodies took {grown} MiB");
    assert!(grown < 48, "200 stalled bodies took {grown} MiB");
    drop(stalled);
    eventually("there is room again", async || {
        client.send(Method::POST, DOCUMENTS, &[JSON], r#"{"id":"last"}"#).await.status == 201
    })
    .await;
}
