//! Undo puts back what the database held, and takes nothing with it without saying so.

use http::Method;
use serde_json::json;

use crate::support::{Answer, Bourn, Client, eventually, sqlite3};

const ODD: &str = "/v1/entities/odd";

async fn undo(client: &Client, transaction: &str, query: &str) -> Answer {
    let path = format!("/v1/transactions/{transaction}/rollback{query}");
    client.send(Method::POST, &path, &[], "").await
}

/// The id of the last transaction of a stream that has so many messages.
async fn last_transaction(client: &Client, stream: &str, messages: usize) -> String {
    let mut last = String::new();
    eventually("the stream has the messages", async || {
        // Not parsed: some hold strings that no parser of this language takes.
        let read = client.get(&format!("{stream}?offset=-1")).await;
        let ids: Vec<&str> = read.text().split("\"txid\":\"").skip(1).collect();
        last = ids.last().map_or("", |rest| rest.split('"').next().unwrap()).to_owned();
        assert!(ids.len() <= messages, "{}", read.text());
        ids.len() == messages
    })
    .await;
    last
}

#[tokio::test]
async fn values_come_back_with_their_types_and_bytes() {
    let config = "[[entity]]\ntype='odd'\ntable='odd'\nprevious_values=true\n";
    let table = "CREATE TABLE odd (id TEXT PRIMARY KEY, t TEXT, d DATETIME, j JSON, b BLOB, r REAL, a, n NUMERIC, i INTEGER, o BOOLEAN)";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(database, table);
    })
    .await;
    let client = bourn.client();
    let deep = format!("'{}1{}'", "[".repeat(200), "]".repeat(200));
    let rows = [
        "x'00ff', '2026-01-02 03:04:05', 'not JSON', 'text', 9e999, 5.0, 'Infinity', 'seven', 'yes'",
        r#"'\x00', '2026-01-02T03:04:05', '{"b": 1,  "a":[2], "b":3}', x'', -9e999, '5.0', x'01', 1.5, 2"#,
        r#"CAST(x'ff41' AS TEXT), x'32', '["\ud800", 1e400]', '\x0102', 0.1, x'c3', 'NaN', x'', 1"#,
        "'a' || char(0) || 'b', 20260102, ' \"padded\" ', NULL, 'Infinity', 1e-320, 12345678901234567890, NULL, 0.5",
        &format!("'', '', {deep}, x'41', 1.7976931348623157e308, '', '', '', ''"),
    ];
    for (i, row) in rows.iter().enumerate() {
        bourn.sql(&format!("INSERT INTO odd VALUES ('k{i}', {row})"));
    }
    last_transaction(&client, ODD, rows.len()).await;
    let columns = ["t", "d", "j", "b", "r", "a", "n", "i", "o"];
    let parts: Vec<String> = columns
        .iter()
        .map(|c| {
            format!(
                "typeof({c}) || CASE typeof({c}) WHEN 'real' THEN printf('%!.18g', {c}) ELSE hex({c}) END"
            )
        })
        .collect();
    let state = format!("SELECT id, {} FROM odd ORDER BY id", parts.join(", "));
    let before = bourn.sql(&state);
    let mut messages = rows.len();
    let sets: Vec<String> = columns.iter().map(|column| format!("{column} = 7")).collect();
    // The last only changes how the values are kept, not how JSON shows them.
    for change in [
        &*format!("UPDATE odd SET {}", sets.join(", ")),
        "DELETE FROM odd",
        "UPDATE odd SET t = '\\x00ff', d = '2026-01-02T03:04:05', j = '\"not JSON\"' WHERE id = 'k0'",
    ] {
        bourn.sql(change);
        let changed = if change.ends_with("'k0'") { 1 } else { rows.len() };
        messages += changed;
        let transaction = last_transaction(&client, ODD, messages).await;
        assert_ne!(bourn.sql(&state), before);
        let undone = undo(&client, &transaction, "").await;
        assert_eq!(undone.status, 200, "{change}: {}", undone.text());
        assert_eq!(bourn.sql(&state), before, "{change}");
        messages += changed;
        last_transaction(&client, ODD, messages).await;
    }
}

#[tokio::test]
async fn values_that_rows_have_exchanged_are_exchanged_back() {
    let config = "[[entity]]\ntype='seat'\ntable='seats'\nprevious_values=true\n[[entity]]\ntype='place'\ntable='places'\nprevious_values=true\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(
            database,
            "CREATE TABLE seats (id TEXT PRIMARY KEY, guest TEXT UNIQUE, note TEXT); \
             CREATE TABLE places (id TEXT PRIMARY KEY, n INTEGER NOT NULL UNIQUE)",
        );
    })
    .await;
    let client = bourn.client();
    bourn.sql("INSERT INTO seats VALUES ('a', 'x', 'n'), ('b', 'y', NULL), ('c', 'z', NULL); INSERT INTO places VALUES ('a', 1), ('b', 2)");
    last_transaction(&client, "/v1/entities/places", 2).await;
    let seats = bourn.sql("SELECT * FROM seats");
    bourn.sql(
        "BEGIN; UPDATE seats SET guest = NULL; UPDATE seats SET guest = 'y' WHERE id = 'a'; \
         UPDATE seats SET guest = 'z' WHERE id = 'b'; UPDATE seats SET guest = 'x' WHERE id = 'c'; \
         UPDATE places SET n = -n; UPDATE places SET n = 3 + n; COMMIT",
    );
    let transaction = last_transaction(&client, "/v1/entities/places", 6).await;
    assert_eq!(bourn.sql("SELECT n FROM places ORDER BY id"), "2\n1");
    let undone = undo(&client, &transaction, "").await;
    assert_eq!(undone.status, 200, "{}", undone.text());
    assert_eq!(bourn.sql("SELECT * FROM seats"), seats);
    assert_eq!(bourn.sql("SELECT n FROM places ORDER BY id"), "1\n2");
    // A value that a row outside has stays with it.
    bourn.sql("UPDATE seats SET guest = 'w' WHERE id = 'a'");
    bourn.sql("INSERT INTO seats VALUES ('d', 'x', NULL)");
    eventually("the log has the changes", async || {
        client.read_all("/v1/entities/seats", "-1").await.0.last().unwrap()["key"] == "d"
    })
    .await;
    let (read, _) = client.read_all("/v1/entities/seats", "-1").await;
    let freed = read.iter().rfind(|message| message["key"] == "a").unwrap()["headers"]["txid"].clone();
    undo(&client, freed.as_str().unwrap(), "").await.assert_error(409, "NOT_UNIQUE");
    assert_eq!(bourn.sql("SELECT guest FROM seats WHERE id = 'a'"), "w");
}

#[tokio::test]
async fn rows_that_would_be_deleted_along_are_dependents() {
    let config = "[[entity]]\ntype='list'\ntable='lists'\nprevious_values=true\n[[entity]]\ntype='item'\ntable='items'\nprevious_values=true\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(
            database,
            "CREATE TABLE lists (id TEXT PRIMARY KEY, title TEXT); \
             CREATE TABLE items (id TEXT PRIMARY KEY, list TEXT REFERENCES lists ON DELETE CASCADE, \
             parent TEXT REFERENCES items ON DELETE CASCADE)",
        );
    })
    .await;
    let client = bourn.client();
    let made = async |table: &str, transaction: &str, row: serde_json::Value| {
        let headers = [("x-transaction-id", transaction)];
        assert_eq!(client.post(&format!("/v1/entities/{table}"), &headers, &row).await.status, 201);
    };
    made("lists", "t1", json!({ "id": "l" })).await;
    made("items", "t2", json!({ "id": "i", "list": "l" })).await;
    made("items", "t3", json!({ "id": "j", "parent": "i" })).await;
    let blocked = undo(&client, "t1", "").await;
    blocked.assert_error(409, "ROLLBACK_BLOCKED");
    let ids: Vec<_> =
        blocked.json()["dependents"].as_array().unwrap().iter().map(|d| d["transactionId"].clone()).collect();
    assert_eq!(ids, ["t2", "t3"]);
    let undone = undo(&client, "t1", "?cascade=true").await;
    assert_eq!(undone.status, 200, "{}", undone.text());
    let undone: Vec<_> =
        undone.json()["undone"].as_array().unwrap().iter().map(|u| u["transactionId"].clone()).collect();
    assert_eq!(undone, ["t3", "t2", "t1"]);
    assert_eq!(bourn.sql("SELECT count(*) FROM lists UNION ALL SELECT count(*) FROM items"), "0\n0");
    // A row that was there before, and refers only since: its change goes back, and it stays.
    made("items", "t4", json!({ "id": "k" })).await;
    made("lists", "t5", json!({ "id": "m" })).await;
    client.patch("/v1/entities/items/k", &[("x-transaction-id", "t6")], &json!({ "list": "m" })).await;
    let blocked = undo(&client, "t5", "").await;
    assert_eq!(blocked.json()["dependents"][0]["transactionId"], "t6", "{}", blocked.text());
    assert_eq!(undo(&client, "t5", "?cascade=true").await.status, 200);
    assert_eq!(client.get("/v1/entities/items/k").await.json()["list"], json!(null));
}

#[tokio::test]
async fn a_column_that_has_another_name_now_is_no_column_to_put_back() {
    let config = "[[entity]]\ntype='item'\ntable='items'\nprevious_values=true\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(database, "CREATE TABLE items (id TEXT PRIMARY KEY, label TEXT)");
    })
    .await;
    let client = bourn.client();
    client.post("/v1/entities/items", &[("x-transaction-id", "t1")], &json!({ "id": "i" })).await;
    let change = json!({ "label": "x" });
    assert_eq!(
        client.patch("/v1/entities/items/i", &[("x-transaction-id", "t2")], &change).await.status,
        200
    );
    bourn.sql("ALTER TABLE items RENAME COLUMN label TO caption");
    eventually("the server has seen the new name", async || {
        client.get("/v1/entities/items/i").await.json().get("caption").is_some()
    })
    .await;
    // The other name may be in the log as a change of its own by now, which `cascade` undoes, too.
    let refused = undo(&client, "t2", "?cascade=true").await;
    refused.assert_error(422, "NOT_REVERSIBLE");
    assert!(refused.text().contains("column `label`"), "{}", refused.text());
    assert_eq!(bourn.sql("SELECT caption FROM items"), "x");
}
