//! Undo puts back what the database held, and takes nothing with it without saying so.

use bourn_testkit::Cluster;
use http::Method;
use serde_json::json;

use crate::site::Site;
use crate::support::{Answer, Bourn, Client};

async fn undo(client: &Client, transaction: &str, query: &str) -> Answer {
    let path = format!("/v1/transactions/{transaction}/rollback{query}");
    client.send(Method::POST, &path, &[], "").await
}

async fn site(tables: &str, names: &[(&str, &str)]) -> (Site, Bourn) {
    let entities: String = names
        .iter()
        .map(|(name, table)| format!("[[entity]]\ntype='{name}'\ntable='{table}'\nprevious_values=true\n"))
        .collect();
    let site = Site::on(Cluster::shared(), tables, &entities).await.eager();
    let server = site.server().await;
    (site, server)
}

/// Runs SQL as one transaction that has an id.
fn named(site: &Site, id: &str, sql: &str) {
    let message = format!(r#"{{"transactionId":"{id}"}}"#);
    site.sql(&format!("BEGIN; SELECT pg_logical_emit_message(true, 'bourn', '{message}'); {sql}; COMMIT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_rows_have_exchanged_are_exchanged_back() {
    let tables = "CREATE TABLE seats (id text PRIMARY KEY, guest text UNIQUE, note text); \
                  CREATE TABLE places (id text PRIMARY KEY, n int NOT NULL UNIQUE); \
                  ALTER TABLE seats REPLICA IDENTITY FULL; ALTER TABLE places REPLICA IDENTITY FULL";
    let (site, server) = site(tables, &[("seat", "seats"), ("place", "places")]).await;
    let client = server.client();
    site.sql("INSERT INTO seats VALUES ('a', 'x', 'n'), ('b', 'y', NULL), ('c', 'z', NULL); INSERT INTO places VALUES ('a', 1), ('b', 2)");
    site.captured().await;
    let state = "SELECT string_agg(id || guest || coalesce(note, ''), ',' ORDER BY id) FROM seats \
                 UNION ALL SELECT string_agg(id || n, ',' ORDER BY id) FROM places";
    let before = site.sql(state);
    named(
        &site,
        "swap",
        "UPDATE seats SET guest = NULL; UPDATE seats SET guest = 'y' WHERE id = 'a'; UPDATE seats SET guest = 'z' WHERE id = 'b'; \
         UPDATE seats SET guest = 'x' WHERE id = 'c'; UPDATE places SET n = -n; UPDATE places SET n = 3 + n",
    );
    site.captured().await;
    assert_ne!(site.sql(state), before);
    let undone = undo(&client, "swap", "").await;
    assert_eq!(undone.status, 200, "{}", undone.text());
    assert_eq!(site.sql(state), before);
    // A value that a row outside has stays with it.
    named(&site, "free", "UPDATE seats SET guest = 'w' WHERE id = 'a'");
    site.sql("INSERT INTO seats VALUES ('d', 'x', NULL)");
    site.captured().await;
    undo(&client, "free", "").await.assert_error(409, "NOT_UNIQUE");
    assert_eq!(site.sql("SELECT guest FROM seats WHERE id = 'a'").trim(), "w");
    site.assert_agrees(&server, "seats").await;
    site.assert_agrees(&server, "places").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_would_be_deleted_along_are_dependents() {
    let tables = "CREATE TABLE lists (id text PRIMARY KEY, title text); \
                  CREATE TABLE hidden (id text PRIMARY KEY, list text REFERENCES lists ON DELETE CASCADE); \
                  CREATE TABLE items (id text PRIMARY KEY, list text REFERENCES hidden ON DELETE CASCADE, \
                                      parent text REFERENCES items ON DELETE CASCADE)";
    let (site, server) = site(tables, &[("list", "lists"), ("item", "items")]).await;
    let client = server.client();
    let made = async |table: &str, transaction: &str, row: serde_json::Value| {
        let headers = [("x-transaction-id", transaction)];
        assert_eq!(client.post(&format!("/v1/entities/{table}"), &headers, &row).await.status, 201);
    };
    made("lists", "t1", json!({ "id": "l" })).await;
    // A table that is not streamed is between them.
    site.sql("INSERT INTO hidden VALUES ('h', 'l')");
    made("items", "t2", json!({ "id": "i", "list": "h" })).await;
    made("items", "t3", json!({ "id": "j", "parent": "i" })).await;
    let blocked = undo(&client, "t1", "").await;
    blocked.assert_error(409, "ROLLBACK_BLOCKED");
    let ids = |answer: &Answer, list: &str| -> Vec<serde_json::Value> {
        answer.json()[list].as_array().unwrap().iter().map(|one| one["transactionId"].clone()).collect()
    };
    assert_eq!(ids(&blocked, "dependents"), ["t2", "t3"]);
    assert_eq!(site.sql("SELECT count(*) FROM items").trim(), "2");
    let undone = undo(&client, "t1", "?cascade=true").await;
    assert_eq!(undone.status, 200, "{}", undone.text());
    assert_eq!(ids(&undone, "undone"), ["t3", "t2", "t1"]);
    assert_eq!(site.sql("SELECT (SELECT count(*) FROM lists) + (SELECT count(*) FROM items)").trim(), "0");
    site.assert_agrees(&server, "items").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_json_and_halves_of_surrogates_are_no_reason_to_refuse() {
    let tables = "CREATE TABLE docs (id text PRIMARY KEY, data json, at timestamp, bin bytea); ALTER TABLE docs REPLICA IDENTITY FULL";
    let (site, server) = site(tables, &[("doc", "docs")]).await;
    let client = server.client();
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    site.sql(&format!(
        "INSERT INTO docs VALUES ('a', '{{\"b\":\"\\ud800\",\"a\":1,\"b\":2}}', '2026-01-02 03:04:05', '\\x00ff'), ('b', '{deep}', 'infinity', '')"
    ));
    site.captured().await;
    let state = "SELECT string_agg(d::text, ';' ORDER BY id) FROM docs d";
    let before = site.sql(state);
    named(&site, "all", "UPDATE docs SET data = NULL, at = NULL, bin = NULL");
    named(&site, "gone", "DELETE FROM docs");
    site.captured().await;
    for id in ["gone", "all"] {
        let undone = undo(&client, id, "").await;
        // The deletion's undo is later than the update.
        let expected = if id == "gone" { 200 } else { 409 };
        assert_eq!(undone.status, expected, "{}", undone.text());
        site.captured().await;
    }
    assert_eq!(undo(&client, "all", "?cascade=true").await.status, 200);
    assert_eq!(site.sql(state), before);
}
