//! What is wrong is answered with what would be right; nothing is written, and the server goes on.

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Bourn, page};

const PAGES: &str = "/v1/entities/pages";
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn every_bad_read_has_its_status_and_code() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let long = "x".repeat(9_000);
    let long_id = format!("/v1/entities/pages/{}", "x".repeat(4_097));
    let long_query = format!("{PAGES}?organizationId={long}");
    for (path, status, code) in [
        ("/v1/entities/pages?offset=", 400, "INVALID_OFFSET"),
        ("/v1/entities/pages?offset=5", 400, "INVALID_OFFSET"),
        ("/v1/entities/pages?offset=-1&offset=-1", 400, "INVALID_OFFSET"),
        ("/v1/entities/pages?offset=abcd_00000000000000011", 400, "INVALID_OFFSET"),
        ("/v1/entities/pages?live=sse", 400, "INVALID_OFFSET"),
        ("/v1/entities/pages?offset=-1&live=", 400, "INVALID_LIVE"),
        ("/v1/entities/pages?offset=-1&live=websocket", 400, "INVALID_LIVE"),
        ("/v1/entities/pages?offset=-1&live=sse&live=sse", 400, "INVALID_LIVE"),
        ("/v1/entities/pages?offset=-1&limit=3", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages?organisationId=acme", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages?organizationId=", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages?organizationId=a&organizationId=b", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages?organizationId=%ff", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages?limit=0", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages?limit=10001", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages?limit=-1", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages?after=%00", 400, "INVALID_PARAMETER"),
        (&long_query, 414, "URI_TOO_LONG"),
        ("/v1/entities/nothing", 404, "UNKNOWN_TABLE"),
        ("/v1/entities/activities", 404, "UNKNOWN_TABLE"),
        ("/v1/entities/bourn_ledger", 404, "UNKNOWN_TABLE"),
        ("/v1/entities/sqlite_master", 404, "UNKNOWN_TABLE"),
        ("/v1/entities/pages%22;%20DROP%20TABLE%20pages;--", 404, "UNKNOWN_TABLE"),
        ("/v1/entities/..%2f..%2fetc", 404, "UNKNOWN_TABLE"),
        ("/v1/entities/../entities/pages", 404, "UNKNOWN_PATH"),
        ("/v1/entities/pages/", 404, "UNKNOWN_PATH"),
        ("/v1/entities/%ff", 400, "INVALID_PATH"),
        ("/v1/entities/%zz", 400, "INVALID_PATH"),
        ("/v1/entities/pages/%00", 400, "INVALID_ID"),
        (&long_id, 400, "INVALID_ID"),
        ("/v1/entities/pages/' OR 1=1".replace(' ', "%20").leak(), 404, "NOT_FOUND"),
        ("/v1/activities?entityId=p1", 400, "INVALID_PARAMETER"),
        ("/v1/activities?entityType=pages", 400, "INVALID_PARAMETER"),
        ("/v1/activities?limit=1001", 400, "INVALID_PARAMETER"),
        ("/v1/activities?offset=-1&clientId=c1", 400, "INVALID_PARAMETER"),
        ("/v1/activities?transactionId=two%20words", 400, "INVALID_PARAMETER"),
        ("/v1/transactions/t1?wait=soon", 400, "INVALID_PARAMETER"),
        ("/v1/transactions/two%20words", 400, "INVALID_ID"),
        ("/", 404, "UNKNOWN_PATH"),
    ] {
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), (status, code), "{path}");
        answer.assert_error(status, code);
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    assert_eq!(client.get("/health").await.status, 200);
}

#[tokio::test]
async fn every_bad_write_names_its_fault_and_writes_nothing() {
    let bourn = Bourn::start(&[("body_limit", "4KiB")]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let big = json!({ "id": "p2", "content": "x".repeat(5_000) }).to_string();
    let bodies: [(&str, u16, &str); 15] = [
        ("", 400, "INVALID_JSON"),
        ("{", 400, "INVALID_JSON"),
        ("[]", 400, "INVALID_JSON"),
        ("null", 400, "INVALID_JSON"),
        ("{\"id\":\"p2\",}", 400, "INVALID_JSON"),
        ("\u{feff}{}", 400, "INVALID_JSON"),
        (r#"{"id":"p2","colour":"red"}"#, 400, "UNKNOWN_COLUMN"),
        (r#"{"id":"p2","name\"; DROP TABLE pages; --":"x"}"#, 400, "UNKNOWN_COLUMN"),
        (r#"{"id":"p2","name":5}"#, 400, "WRONG_TYPE"),
        (r#"{"id":"p2","name":"a\u0000b"}"#, 400, "WRONG_TYPE"),
        (r#"{"id":"p2","name":null}"#, 400, "MISSING_COLUMN"),
        (r#"{"id":"p2","transactions":{}}"#, 400, "READ_ONLY_COLUMN"),
        (r#"{"id":""}"#, 400, "INVALID_ID"),
        (r#"{"id":["p2"]}"#, 400, "INVALID_ID"),
        (&big, 413, "BODY_TOO_LARGE"),
    ];
    for (body, status, code) in bodies {
        let answer = client.send(Method::POST, PAGES, &[JSON], body.to_owned()).await;
        assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), (status, code), "{body}");
        answer.assert_error(status, code);
    }
    let named = client.send(Method::POST, PAGES, &[JSON], r#"{"id":"p2","name":5}"#).await;
    assert!(
        named.json()["message"].as_str().unwrap().contains("`name` must be a string"),
        "{}",
        named.text()
    );

    let body = page("p2", "x").to_string();
    let two = [JSON, ("x-transaction-id", "a"), ("x-transaction-id", "b")];
    let long = "x".repeat(129);
    for (headers, status, code) in [
        (vec![], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (vec![("content-type", "text/plain")], 415, "UNSUPPORTED_MEDIA_TYPE"),
        (vec![JSON, ("x-transaction-id", "")], 400, "INVALID_HEADER"),
        (vec![JSON, ("x-transaction-id", "two words")], 400, "INVALID_HEADER"),
        (vec![JSON, ("x-transaction-id", &long)], 400, "INVALID_HEADER"),
        (vec![JSON, ("x-client-id", "ümlaut")], 400, "INVALID_HEADER"),
        (two.to_vec(), 400, "INVALID_HEADER"),
    ] {
        client.send(Method::POST, PAGES, &headers, body.clone()).await.assert_error(status, code);
    }
    let patch = client.patch("/v1/entities/pages/p1", &[], &json!({ "id": "p9" })).await;
    patch.assert_error(400, "READ_ONLY_COLUMN");
    client.patch("/v1/entities/pages/p9", &[], &json!({ "name": "x" })).await.assert_error(404, "NOT_FOUND");
    client
        .post(&format!("{PAGES}?upsert=1"), &[], &page("p2", "x"))
        .await
        .assert_error(400, "INVALID_PARAMETER");

    for (method, path, allow) in [
        (Method::PUT, PAGES, "GET, HEAD, POST"),
        (Method::DELETE, PAGES, "GET, HEAD, POST"),
        (Method::POST, "/v1/entities/pages/p1", "GET, HEAD, PATCH, DELETE"),
        (Method::POST, "/v1/activities", "GET, HEAD"),
        (Method::GET, "/v1/transactions/t1/rollback", "POST"),
        (Method::POST, "/health", "GET, HEAD"),
    ] {
        let answer = client.send(method, path, &[JSON], "{}").await;
        answer.assert_error(405, "METHOD_NOT_ALLOWED");
        assert_eq!(answer.header("allow"), allow);
    }
    // SQL in a value is a value.
    let sql = "'); DROP TABLE pages; --";
    assert_eq!(client.post(PAGES, &[], &page("p2", sql)).await.json()["name"], sql);
    let (messages, _) = client.read_all(PAGES, "-1").await;
    assert_eq!(messages.len(), 2, "nothing but the two good writes");
}

/// Sends bytes and reads the whole answer.
async fn raw(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(crate::support::PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("an end in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bytes_that_are_no_request_are_refused() {
    let bourn = Bourn::start(&[("header_timeout", "300ms"), ("body_timeout", "300ms")]).await;
    let tls = raw(bourn.address(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    assert!(tls.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{tls}");
    assert!(tls.contains(r#""code":"INVALID_REQUEST""#) && tls.contains("TLS was sent"), "{tls}");
    assert!(raw(bourn.address(), b"NONSENSE\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let headers = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx-big: {}\r\n\r\n", "x".repeat(64 * 1024));
    assert!(raw(bourn.address(), headers.as_bytes()).await.starts_with("HTTP/1.1 431"));
    // Headers and bodies that never end.
    assert!(!raw(bourn.address(), b"GET / HTTP/1.1\r\nhost:").await.contains("200"));
    let slow = b"POST /v1/entities/pages HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{";
    let slow = raw(bourn.address(), slow).await;
    assert!(slow.starts_with("HTTP/1.1 408") && slow.contains("REQUEST_TIMEOUT"), "{slow}");
    // A connection that asks for nothing more is closed; one that is being answered is not.
    let mut events = bourn.client().events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    events.control().await;
    let idle = raw(bourn.address(), b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(idle.starts_with("HTTP/1.1 200"), "{idle}");
    bourn.client().make_page("p1", "t1").await;
    assert_eq!(events.messages().await.0[0]["key"], "p1");
    assert_eq!(bourn.client().get("/health").await.status, 200);
}

#[tokio::test]
async fn a_browser_is_told_what_it_may_send_and_see() {
    let bourn = Bourn::start(&[]).await;
    let preflight =
        bourn.client().send(Method::OPTIONS, PAGES, &[("origin", "https://app.example")], "").await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, "*"));
    assert!(preflight.header("access-control-allow-methods").contains("PATCH"));
    assert!(preflight.header("access-control-allow-headers").contains("X-Expected-Transaction-Id"));
    for path in [PAGES, "/v1/entities/pages?offset=-1", "/v1/entities/nothing", "/health"] {
        let answer = bourn.client().get(path).await;
        for name in ["Stream-Next-Offset", "Stream-Up-To-Date", "X-Transaction-Id", "ETag"] {
            assert!(answer.header("access-control-expose-headers").contains(name), "{path}");
        }
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cross-origin-resource-policy"), "cross-origin");
    }
}

#[tokio::test]
async fn a_web_page_of_elsewhere_neither_reads_nor_writes_a_server_on_loopback() {
    let bourn =
        Bourn::start(&[("allowed_hosts", "feed.test"), ("allowed_origins", "https://app.example")]).await;
    let client = bourn.client();
    let ask = async |host: &str, headers: &str| {
        let request = format!("GET {PAGES} HTTP/1.1\r\nhost: {host}\r\n{headers}connection: close\r\n\r\n");
        raw(bourn.address(), request.as_bytes()).await
    };
    for good in ["localhost", bourn.address(), "feed.test:80", "[::1]:4437"] {
        assert!(ask(good, "").await.starts_with("HTTP/1.1 200"), "{good}");
    }
    let rebound = ask("evil.example", "").await;
    assert!(rebound.starts_with("HTTP/1.1 403") && rebound.contains("HOST_NOT_ALLOWED"), "{rebound}");
    for origin in ["http://localhost:3000", "http://127.0.0.1:1", "https://app.example"] {
        assert_eq!(client.get_with(PAGES, &[("origin", origin)]).await.status, 200, "{origin}");
    }
    for origin in ["https://evil.example", "null"] {
        client.get_with(PAGES, &[("origin", origin)]).await.assert_error(403, "ORIGIN_NOT_ALLOWED");
        let write = client.post(PAGES, &[("origin", origin)], &page("p1", "x")).await;
        write.assert_error(403, "ORIGIN_NOT_ALLOWED");
    }
    assert_eq!(client.get("/v1/entities/pages/p1").await.status, 404);
}

#[tokio::test]
async fn a_request_names_one_host_and_its_body_comes_as_it_is() {
    let bourn = Bourn::start(&[]).await;
    let none = raw(bourn.address(), b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    let two = b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    for answer in [none, raw(bourn.address(), two).await] {
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("INVALID_REQUEST"), "{answer}");
    }
    assert!(raw(bourn.address(), b"GET /health HTTP/1.0\r\n\r\n").await.contains(" 200 OK"));
    bourn.client().send(Method::PUT, "/v1/stream/s", &[JSON], "").await;
    for coding in ["transfer-encoding: gzip, chunked", "content-encoding: gzip\r\ntransfer-encoding: chunked"]
    {
        let request = format!(
            "POST /v1/stream/s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{coding}\r\n\
             connection: close\r\n\r\n1\r\n1\r\n0\r\n\r\n"
        );
        let answer = raw(bourn.address(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 415") && answer.contains("uncompressed"), "{answer}");
    }
    assert_eq!(bourn.client().get("/v1/stream/s").await.text(), "[]");
}

#[tokio::test]
async fn head_refuses_what_get_refuses() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    client.send(Method::PUT, "/v1/stream/s", &[JSON], "[1]").await;
    let past = client.get(&format!("{PAGES}?offset=now")).await.next_offset().replace("01", "99");
    let (past_log, past_activities) =
        (format!("{PAGES}?offset={past}"), format!("/v1/activities?offset={past}"));
    for path in [
        PAGES,
        "/v1/entities/pages?offset=zzz",
        "/v1/entities/pages?offset=-1",
        "/v1/entities/pages?offset=abcd_0000000000000001",
        "/v1/entities/pages?offset=-1&limit=3",
        "/v1/entities/pages?live=sse",
        "/v1/entities/pages?offset=-1&live=no",
        "/v1/entities/pages?unknown=1",
        "/v1/entities/pages?limit=0",
        "/v1/entities/nothing",
        "/v1/entities/pages/p1?x=1",
        &past_log,
        &past_activities,
        "/v1/activities",
        "/v1/activities?offset=zzz",
        "/v1/activities?unknown=1",
        "/v1/activities?entityId=p1",
        "/v1/activities?limit=9999",
        "/v1/stream/s",
        "/v1/stream/s?offset=zzz",
        "/v1/stream/s?offset=0000000000000001_0000000000000099",
        "/v1/stream/s?offset=-1&live=no",
        "/v1/stream/nothing",
    ] {
        let (get, head) = (client.get(path).await, client.send(Method::HEAD, path, &[], "").await);
        assert_eq!(head.status, get.status, "{path}");
    }
}
