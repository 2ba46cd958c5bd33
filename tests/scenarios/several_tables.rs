//! Several tables as one stream: one order, one offset, transactions whole; in every mode, by one address for each set.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::tokens::{issuer_with_secret, token};
use crate::support::{Bourn, eventually};

const PAGES: &str = "/v1/entities/pages";
const ATTACHMENTS: &str = "/v1/entities/attachments";
const BOTH: &str = "/v1/entities/attachments,pages";
const BOTH_OF_ACME: &str = "/v1/scopes/acme/entities/attachments,pages";
const LOGS: &str = "[[entity]]\ntype = 'page'\ntable = 'pages'\nscope = 'organization_id'\n\
     [[entity]]\ntype = 'attachment'\ntable = 'attachments'\nscope = 'organization_id'\n\
     [[entity]]\ntype = 'entry'\ntable = 'entries'\n";

/// Transactions that each make two pages and an attachment of two scopes.
fn fill(bourn: &Bourn, from: usize, count: usize) {
    for i in from..from + count {
        bourn.sql(&format!(
            "BEGIN; INSERT INTO pages (id, organization_id) VALUES ('p{i}', 'acme'), ('q{i}', 'beta'); \
             INSERT INTO attachments (id, organization_id) VALUES ('a{i}', 'acme'); COMMIT"
        ));
    }
}

/// The type and key of each message.
fn keys(messages: &[Value]) -> Vec<String> {
    messages
        .iter()
        .map(|m| format!("{} {}", m["type"].as_str().unwrap(), m["key"].as_str().unwrap()))
        .collect()
}

fn expected(from: usize, count: usize, scoped: bool) -> Vec<String> {
    let of_one = |i: usize| {
        let all = [format!("page p{i}"), format!("page q{i}"), format!("attachment a{i}")];
        all.into_iter().filter(move |key| !scoped || !key.contains('q'))
    };
    (from..from + count).flat_map(of_one).collect()
}

#[tokio::test]
async fn a_set_of_tables_is_read_in_one_order_and_its_transactions_whole() {
    let bourn = Bourn::start(&[("chunk_messages", "8")]).await;
    let client = bourn.client();
    fill(&bourn, 0, 20);
    eventually("all is in the log", async || client.read_all(BOTH, "-1").await.0.len() == 60).await;
    for (stream, scoped) in [(BOTH, false), (BOTH_OF_ACME, true)] {
        let (mut offset, mut seen) = ("-1".to_owned(), Vec::new());
        loop {
            let chunk = client.get(&format!("{stream}?offset={offset}")).await;
            let messages = chunk.messages();
            let transactions: BTreeSet<_> =
                messages.iter().map(|m| m["headers"]["txid"].to_string()).collect();
            assert_eq!(
                messages.len(),
                transactions.len() * if scoped { 2 } else { 3 },
                "a transaction was cut"
            );
            seen.extend(messages);
            offset = chunk.next_offset();
            if chunk.up_to_date() {
                break;
            }
            assert!(chunk.header("cache-control").contains("public"));
        }
        assert_eq!(keys(&seen), expected(0, 20, scoped), "{stream}");
        // Each table's messages are those of its own stream, at the same places.
        for table in [PAGES, ATTACHMENTS] {
            let own = stream.replace("attachments,pages", table.rsplit('/').next().unwrap());
            let (alone, _) = client.read_all(&own, "-1").await;
            let name = alone[0]["type"].clone();
            let among: Vec<_> = seen.iter().filter(|message| message["type"] == name).cloned().collect();
            assert_eq!(alone, among, "{own}");
            // A place of one stream is a place of every other.
            let (rest, _) =
                client.read_all(stream, &client.get(&format!("{own}?offset=now")).await.next_offset()).await;
            assert_eq!(
                rest.len(),
                usize::from(name == "page"),
                "the last transaction ends with an attachment"
            );
        }
        let head = client.send(http::Method::HEAD, &format!("{stream}?offset=-1"), &[], "").await;
        assert_eq!((head.status, head.next_offset()), (200, offset));
    }
}

#[tokio::test]
async fn a_set_of_tables_is_followed_live() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    for (stream, scoped) in [(BOTH, false), (BOTH_OF_ACME, true)] {
        let from = if scoped { 10 } else { 0 };
        let start = client.get(&format!("{stream}?offset=now")).await.next_offset();
        let mut events = client.events(&format!("{stream}?offset={start}&live=sse"), &[]).await;
        let polled = format!("{stream}?offset={start}&live=long-poll");
        let poll = tokio::spawn({
            let client = bourn.client();
            async move { client.get(&polled).await }
        });
        client.until_readers(&["sse", "long-poll"]).await;
        fill(&bourn, from, 3);
        let mut seen = Vec::new();
        while seen.len() < expected(from, 3, scoped).len() {
            seen.extend(events.messages().await.0);
        }
        assert_eq!(keys(&seen), expected(from, 3, scoped), "{stream}");
        let polled = keys(&poll.await.unwrap().messages());
        assert!(!polled.is_empty() && expected(from, 3, scoped).starts_with(&polled), "{polled:?}");
    }
}

#[tokio::test]
async fn a_set_of_tables_has_one_address_and_is_only_read() {
    let bourn = Bourn::start_with(LOGS, &[], |database| {
        crate::support::sqlite3(
            database,
            "CREATE TABLE pages (id TEXT PRIMARY KEY NOT NULL, organization_id TEXT); \
             CREATE TABLE attachments (id TEXT PRIMARY KEY NOT NULL, organization_id TEXT); \
             CREATE TABLE entries (id TEXT PRIMARY KEY NOT NULL)",
        );
    })
    .await;
    let client = bourn.client();
    assert_eq!(client.get(&format!("{BOTH}?offset=-1")).await.status, 200);
    assert_eq!(client.get("/v1/entities/attachments%2Cpages?offset=-1").await.status, 200);
    assert_eq!(client.get("/v1/entities/attachments,entries,pages?offset=-1").await.status, 200);
    let many: Vec<String> = (10..27).map(|i| format!("t{i}")).collect();
    for (path, status, code) in [
        ("/v1/entities/pages,attachments?offset=-1", 400, "INVALID_PARAMETER"),
        ("/v1/entities/pages,pages?offset=-1", 400, "INVALID_PARAMETER"),
        (&format!("/v1/entities/{}?offset=-1", many.join(",")), 400, "INVALID_PARAMETER"),
        ("/v1/entities/attachments,pages", 400, "INVALID_PARAMETER"),
        ("/v1/entities/attachments,pages?limit=1", 400, "INVALID_PARAMETER"),
        ("/v1/entities/attachments,unknown?offset=-1", 404, "UNKNOWN_TABLE"),
        ("/v1/entities/,pages?offset=-1", 404, "UNKNOWN_TABLE"),
        ("/v1/entities/entries,pages?offset=-1&organizationId=acme", 400, "INVALID_PARAMETER"),
        ("/v1/scopes/acme/entities/entries,pages?offset=-1", 400, "INVALID_PARAMETER"),
        ("/v1/entities/attachments,pages/p1", 404, "UNKNOWN_TABLE"),
    ] {
        client.get(path).await.assert_error(status, code);
    }
    client.post(BOTH, &[], &json!({ "id": "x" })).await.assert_error(405, "METHOD_NOT_ALLOWED");

    // At the tail of a table that is not captured, the set would look complete and not be.
    bourn.sql("ALTER TABLE attachments RENAME TO gone");
    eventually("it is noticed", async || client.get("/ready").await.status == 503).await;
    client.get(&format!("{BOTH}?offset=-1")).await.assert_error(503, "ENTITY_UNAVAILABLE");
    assert_eq!(client.get("/v1/entities/entries,pages?offset=-1").await.status, 200);
}

#[tokio::test]
async fn a_set_of_tables_is_for_those_who_may_read_each() {
    let roles = "[[access.role]]\nname = 'member'\nread = ['page', 'attachment']\n\
         [[access.role]]\nname = 'guest'\nread = ['page']\n";
    let directory = tempfile::tempdir().unwrap();
    let config = issuer_with_secret(directory.path()) + roles;
    let bourn = Bourn::start_with(&config, &[("chunk_messages", "4")], |_| {}).await;
    let client = bourn.client();
    let bearer =
        |role: &str| format!("Bearer {}", token(&json!({ "sub": "me", "role": role, "scopes": ["acme"] })));
    let (member, guest) = (bearer("member"), bearer("guest"));
    fill(&bourn, 0, 10);
    let chunk = format!("{BOTH_OF_ACME}?offset=-1");
    eventually("a sealed chunk is at hand", async || {
        let answer = client.get_with(&chunk, &[("authorization", &member)]).await;
        answer.status == 200 && !answer.up_to_date()
    })
    .await;
    // The same address, whose answer is at hand, for those who may not.
    client.get_with(&chunk, &[("authorization", &guest)]).await.assert_error(403, "RIGHT_MISSING");
    let whole = format!("{BOTH}?offset=-1");
    client.get_with(&whole, &[("authorization", &member)]).await.assert_error(403, "SCOPE_REQUIRED");
    let foreign = "/v1/scopes/beta/entities/attachments,pages?offset=-1";
    client.get_with(foreign, &[("authorization", &member)]).await.assert_error(403, "SCOPE_FORBIDDEN");
}
