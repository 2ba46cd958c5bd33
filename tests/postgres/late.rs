//! Writers that come late, or meet a row that another has changed: a retry after the ledger has forgotten it, and an
//! expectation of a row that SQL has written.

use serde_json::{Value, json};

use crate::site::{PAGE, PAGES, PAGES_PATH, Site};
use crate::support::{Answer, Client};

const LOCKED: &str = "[[entity]]\ntype = 'page'\ntable = 'pages'\nconflict = 'optimistic-lock'\n";

async fn patch(client: &Client, id: &str, transaction: &str, expected: &str, name: &str) -> Answer {
    let headers = [("x-transaction-id", transaction), ("x-expected-transaction-id", expected)];
    client.patch(&format!("{PAGES_PATH}/{id}"), &headers, &json!({ "name": name })).await
}

fn conflicts(answer: &Answer, actual: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (409, &Value::from("TRANSACTION_CONFLICT")));
    assert_eq!(answer.json()["actualTransaction"], actual);
}

/// The transaction that the stream shows last for a row.
async fn txid(site: &Site, client: &Client, id: &str) -> String {
    site.captured().await;
    let (messages, _) = client.read_all(PAGES_PATH, "-1").await;
    let last = messages.iter().rfind(|message| message["key"] == id).unwrap();
    last["headers"]["txid"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_a_hit_for_as_long_as_the_log_has_its_transaction() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    let path = format!("{PAGES_PATH}/p1");
    let ids = |id: &'static str| [("x-transaction-id", id)];
    assert_eq!(client.patch(&path, &ids("t2"), &json!({ "name": "second" })).await.status, 200);
    assert_eq!(client.patch(&path, &ids("t3"), &json!({ "name": "third" })).await.status, 200);
    site.captured().await;
    site.sql("DELETE FROM bourn.ledger");
    let again = client.patch(&path, &ids("t2"), &json!({ "name": "second" })).await;
    assert_eq!((again.status, again.header("x-idempotent-hit")), (200, "true"), "{}", again.text());
    assert_eq!(again.json()["name"], "third", "what came later stays");
    assert_eq!(client.make_page("p1", "t1").await.header("x-idempotent-hit"), "true");
    // The same id for something else is none.
    client.delete(&path, &ids("t2")).await.assert_error(422, "TRANSACTION_REUSED");
    let other = client.patch(&format!("{PAGES_PATH}/p2"), &ids("t2"), &json!({ "name": "x" })).await;
    other.assert_error(422, "TRANSACTION_REUSED");
    assert_eq!(client.delete(&path, &ids("t4")).await.status, 200);
    site.captured().await;
    site.sql("DELETE FROM bourn.ledger");
    let gone = client.delete(&path, &ids("t4")).await;
    assert_eq!((gone.status, gone.header("x-idempotent-hit")), (200, "true"), "{}", gone.text());
    assert_eq!(
        client.patch(&path, &ids("t2"), &json!({ "name": "second" })).await.header("x-idempotent-hit"),
        "true"
    );
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_sql_has_made_or_changed_is_locked_by_the_transaction_that_the_stream_shows() {
    let site = Site::new(PAGES, LOCKED).await.eager();
    site.sql("INSERT INTO pages (id, name) VALUES ('before', 'x')");
    let server = site.server().await;
    let client = server.client();
    site.sql("INSERT INTO pages (id, name) VALUES ('p1', 'x')");
    for id in ["before", "p1"] {
        let current = txid(&site, &client, id).await;
        conflicts(&patch(&client, id, &format!("wrong-{id}"), "12345", "y").await, &current);
        let taken = patch(&client, id, &format!("first-{id}"), &current, "y").await;
        assert_eq!(taken.status, 200, "{id}: {}", taken.text());
        // A writer that leaves `transactions` alone is noticed.
        site.sql(&format!("UPDATE pages SET content = 'by sql' WHERE id = '{id}'"));
        let missed = patch(&client, id, &format!("second-{id}"), &format!("first-{id}"), "z").await;
        let current = txid(&site, &client, id).await;
        conflicts(&missed, &current);
        assert_eq!(missed.json()["serverVersion"]["content"], "by sql");
        assert_eq!(patch(&client, id, &format!("third-{id}"), &current, "z").await.status, 200);
        // One that stamps its own id is known by it.
        site.sql(&format!(
            "UPDATE pages SET transactions = jsonb_set(transactions, '{{update}}', '\"sql-{id}\"') WHERE id = '{id}'"
        ));
        assert_eq!(patch(&client, id, &format!("fourth-{id}"), &format!("sql-{id}"), "z").await.status, 200);
    }
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_right_however_the_row_was_written_and_far_capture_has_come() {
    let mut site = Site::new(PAGES, LOCKED).await.eager();
    site.set("capture_gather", "200ms");
    // Rows that were there with stamps of their own before anything was captured.
    site.sql(
        "INSERT INTO pages (id, transactions) VALUES ('stamped', '{\"insert\": \"a\", \"update\": \"b\"}')",
    );
    let server = site.server().await;
    let client = server.client();
    assert_eq!(patch(&client, "stamped", "t1", "b", "x").await.status, 200);
    // One after the other, each expecting the one before, sooner than they can be captured.
    let mut before = "t1".to_owned();
    for i in 0..20 {
        let next = format!("chain{i}");
        let answer = patch(&client, "stamped", &next, &before, &next).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        before = next;
    }
    // What changes nothing that the log shows, or rewrites the rows, is no change.
    for nothing in [
        "UPDATE pages SET name = name",
        "ALTER TABLE pages ALTER COLUMN content TYPE varchar(99)",
        "ALTER TABLE pages ADD COLUMN counted bigint GENERATED BY DEFAULT AS IDENTITY",
        "VACUUM FULL pages",
    ] {
        site.sql(nothing);
        site.assert_agrees(&server, "pages").await;
        let current = txid(&site, &client, "stamped").await;
        let next = format!("after-{}", nothing.len());
        let answer = patch(&client, "stamped", &next, &current, "x").await;
        assert_eq!(answer.status, 200, "{nothing}: {}", answer.text());
    }
    // In a subtransaction the row has another transaction's number than the stream.
    site.sql("BEGIN; SAVEPOINT s; UPDATE pages SET content = 'sub'; RELEASE s; COMMIT");
    let current = txid(&site, &client, "stamped").await;
    assert_eq!(patch(&client, "stamped", "after-sub", &current, "x").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_rows_own_writes_needs_no_capture() {
    let site = Site::new(PAGES, LOCKED).await.eager();
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    site.captured().await;
    // Nothing is captured any more.
    site.sql(&format!(
        "ALTER PUBLICATION bourn RENAME TO away; SELECT pg_terminate_backend({})",
        site.sender().unwrap()
    ));
    assert_eq!(patch(&client, "p1", "t2", "t1", "x").await.status, 200);
    assert_eq!(patch(&client, "p1", "t3", "t2", "y").await.status, 200);
    conflicts(&patch(&client, "p1", "t4", "t2", "z").await, "t3");
    site.sql("UPDATE pages SET content = 'by sql'");
    let unknown = patch(&client, "p1", "t5", "t3", "z").await;
    assert_eq!(unknown.status, 503, "{}", unknown.text());
    site.sql("ALTER PUBLICATION away RENAME TO bourn");
    site.assert_agrees(&server, "pages").await;
    let current = txid(&site, &client, "p1").await;
    assert_ne!(current, "t3");
    let answer = patch(&client, "p1", "t6", &current, "z").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}
