//! A table of rows that a SQLite file may hold, however unexpected. For each, the list, its pages, the stream and
//! the single rows must agree, and a row that cannot be served is left out of all of them and reported. Add to it
//! whatever is found.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{Bourn, Client, eventually, sqlite3};

/// One table: its columns, what a foreign writer does to it, and the keys that are then to be seen, in their order.
struct Case {
    table: &'static str,
    columns: &'static str,
    statements: &'static str,
    keys: &'static [&'static str],
    /// Rows that are left out.
    left_out: u32,
}

const CASES: &[Case] = &[
    Case {
        table: "bytes_as_keys",
        columns: "id TEXT PRIMARY KEY, name",
        statements: "INSERT INTO bytes_as_keys VALUES ('abc', 1), (x'616263', 2), (x'ff', 3), ('\\x616263', 4)",
        keys: &["\\x616263", "abc"],
        left_out: 2,
    },
    Case {
        table: "broken_keys",
        columns: "id TEXT PRIMARY KEY, name",
        statements: "INSERT INTO broken_keys VALUES (CAST(x'ff41' AS TEXT), 1), ('é', 2), ('ok', 3), (CAST(x'c3' AS TEXT), 4), \
                     ('😀', 5), (CAST(x'eda080' AS TEXT), 6), (CAST(x'c0af' AS TEXT), 7), ('日本', 8)",
        keys: &["ok", "é", "日本", "😀"],
        left_out: 4,
    },
    Case {
        table: "odd_keys",
        columns: "id TEXT PRIMARY KEY, name",
        statements: "INSERT INTO odd_keys VALUES ('', 1), ('a' || char(0) || 'b', 2), ('a' || char(9) || 'b', 3), \
                     ('line' || char(10), 4), (' ', 5), ('%41', 6), ('a/b?c#d', 7), ('\"', 8), (char(127), 9)",
        keys: &[" ", "\"", "%41", "a\tb", "a/b?c#d", "line\n", "\u{7f}"],
        left_out: 2,
    },
    Case {
        table: "long_keys",
        columns: "id TEXT PRIMARY KEY, name",
        statements: "INSERT INTO long_keys VALUES (replace(hex(zeroblob(128)), '00', 'ab'), 1), (replace(hex(zeroblob(3000)), '00', 'ab'), 2)",
        keys: &[
            "abababababababababababababababababababababababababababababababababababababababababababababababababababababababababababababababab\
             abababababababababababababababababababababababababababababababababababababababababababababababababababababababababababababababab",
        ],
        left_out: 1,
    },
    Case {
        table: "real_keys",
        columns: "id REAL PRIMARY KEY, name",
        statements: "INSERT INTO real_keys VALUES (0.3, 1), (0.1 + 0.2, 2), (5, 3), (-0.5, 4), (9e999, 5)",
        keys: &["-0.5", "0.3", "0.30000000000000004", "5.0"],
        left_out: 1,
    },
    Case {
        table: "numbers_for_text",
        columns: "id UUID PRIMARY KEY, name",
        statements: "INSERT INTO numbers_for_text VALUES ('0012', 1), ('1e5', 2), ('0012-34', 3)",
        keys: &["12", "100000", "0012-34"],
        left_out: 0,
    },
    Case {
        table: "text_in_numbers",
        columns: "id INTEGER PRIMARY KEY, name INTEGER, other) WITHOUT ROWID; CREATE TABLE text_in_numbers_too (id INT",
        statements: "INSERT INTO text_in_numbers VALUES (5, 'x', 1), ('seven', x'00', 2), (5.5, 1e300, 3)",
        keys: &["5", "5.5", "seven"],
        left_out: 0,
    },
    Case {
        table: "columns_of_other_types",
        columns: "id TEXT PRIMARY KEY, transactions INTEGER, created_at INTEGER, modified_at INTEGER NOT NULL DEFAULT 0, \
                  last_client_id BLOB, deleted_at INTEGER NOT NULL DEFAULT 0",
        statements: "INSERT INTO columns_of_other_types (id, transactions, created_at) VALUES ('a', 7, 8), ('b', NULL, NULL); \
                     UPDATE columns_of_other_types SET deleted_at = 5 WHERE id = 'b'",
        keys: &["a", "b"],
        left_out: 0,
    },
    Case {
        table: "broken_values",
        columns: "id TEXT PRIMARY KEY, name TEXT, doc JSON, at DATETIME, flag BOOLEAN, data BLOB, transactions JSON",
        statements: "INSERT INTO broken_values (id, name) VALUES ('a', CAST(x'ff42' AS TEXT)), ('b', 'a' || char(0) || 'b'); \
                     INSERT INTO broken_values (id, doc, at, flag, data) VALUES ('c', '{\"b\":1,\"a\":2,\"b\":3}', x'00', 'yes', 'text'), \
                     ('d', '[1,', '2026-01-02 03:04:05', 2, 9e999), ('e', CAST(x'22ff22' AS TEXT), 1e308, 1.5, ''); \
                     INSERT INTO broken_values (id, transactions) VALUES ('f', 'no json'), ('g', CAST(x'7bff' AS TEXT)), ('h', '{\"insert\":5}')",
        keys: &["a", "b", "c", "d", "e", "f", "g", "h"],
        left_out: 0,
    },
    Case {
        table: "folded_keys",
        columns: "id TEXT PRIMARY KEY COLLATE NOCASE, name",
        statements: "INSERT INTO folded_keys VALUES ('a', 1), ('B', 2); INSERT OR REPLACE INTO folded_keys VALUES ('A', 3); \
                     INSERT OR IGNORE INTO folded_keys VALUES ('b', 4); UPDATE folded_keys SET name = 5 WHERE id = 'b'",
        keys: &["A", "B"],
        left_out: 0,
    },
    Case {
        table: "replaced_by_value",
        columns: "id TEXT PRIMARY KEY, slug TEXT UNIQUE ON CONFLICT REPLACE, name UNIQUE",
        statements: "INSERT INTO replaced_by_value VALUES ('a', 's', 1), ('b', 't', 2), ('c', 'u', 3); \
                     INSERT INTO replaced_by_value VALUES ('d', 's', 4); INSERT OR REPLACE INTO replaced_by_value VALUES ('e', 'v', 2); \
                     UPDATE OR REPLACE replaced_by_value SET name = 4 WHERE id = 'c'",
        keys: &["c", "e"],
        left_out: 0,
    },
];

fn config() -> String {
    let entity = |case: &Case| {
        let table = case.table;
        format!("[[entity]]\ntype = '{table}'\ntable = '{table}'\nprevious_values = true\n")
    };
    CASES.iter().map(entity).collect()
}

fn tables() -> String {
    CASES.iter().map(|case| format!("CREATE TABLE {} ({});", case.table, case.columns)).collect()
}

/// What every reader sees of a case's table, checked against each other.
async fn check(client: &Client, case: &Case, how: &str) {
    let path = format!("/v1/entities/{}", case.table);
    let at = format!("{}, {how}", case.table);
    let list = client.get(&path).await.messages();
    let mut state = BTreeMap::new();
    for message in client.read_all(&path, "-1").await.0 {
        let key = message["key"].as_str().unwrap().to_owned();
        match message["headers"]["operation"].as_str() {
            Some("delete") => state.remove(&key),
            _ => state.insert(key, message["value"].clone()),
        };
    }
    let mut keys: Vec<&str> = state.keys().map(String::as_str).collect();
    let mut wanted = case.keys.to_vec();
    keys.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(keys, wanted, "{at}: the stream has these rows");
    let streamed: Vec<&Value> = case.keys.iter().map(|key| &state[*key]).collect();
    assert_eq!(
        list.iter().collect::<Vec<_>>(),
        streamed,
        "{at}: the list has the rows as the stream has them"
    );
    for (key, row) in case.keys.iter().zip(&list) {
        let escaped = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
        let one = client.get(&format!("{path}/{escaped}")).await;
        assert_eq!((one.status, &one.json()), (200, row), "{at}: `{key}` is reached by its key");
    }
    let mut paged = Vec::new();
    let mut next = Some(format!("{path}?limit=1"));
    while let Some(page) = next.take() {
        let answer = client.get(&page).await;
        paged.extend(answer.messages());
        assert!(paged.len() <= list.len(), "{at}: the pages come to an end");
        let link = answer.header("link");
        next = link.strip_prefix('<').map(|link| link.split_once('>').unwrap().0.to_owned());
    }
    assert_eq!(paged, list, "{at}: the pages have the rows of the list");
}

async fn check_all(bourn: &Bourn, how: &str) {
    let client = bourn.client();
    for case in CASES {
        check(&client, case, how).await;
    }
    let ready = client.get("/ready").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    for case in CASES.iter().filter(|case| case.left_out > 0) {
        let reason = format!("{} rows are left out", case.left_out);
        assert!(ready.text().contains(&reason), "{}: {}", case.table, ready.text());
    }
}

#[tokio::test]
async fn rows_that_were_there_before_the_server_are_served_or_left_out_everywhere() {
    let bourn = Bourn::start_with(&config(), &[], |database| {
        sqlite3(database, &tables());
        for case in CASES {
            sqlite3(database, case.statements);
        }
    })
    .await;
    check_all(&bourn, "compared").await;
}

#[tokio::test]
async fn rows_that_other_processes_write_are_served_or_left_out_everywhere() {
    let mut bourn = Bourn::start_with(&config(), &[], |database| {
        sqlite3(database, &tables());
    })
    .await;
    for case in CASES {
        bourn.sql(case.statements);
    }
    bourn.sql("INSERT INTO odd_keys VALUES ('last', 1)");
    let client = bourn.client();
    eventually("the last row is in the stream", async || {
        let (messages, _) = client.read_all("/v1/entities/odd_keys", "-1").await;
        messages.iter().any(|message| message["key"] == "last")
    })
    .await;
    bourn.sql("DELETE FROM odd_keys WHERE id = 'last'");
    eventually("it has left it", async || {
        let (messages, _) = client.read_all("/v1/entities/odd_keys", "-1").await;
        messages.last().unwrap()["headers"]["operation"] == "delete"
    })
    .await;
    // The rows that are left out are counted at a start.
    bourn.terminate();
    bourn.ended().await;
    bourn.restart().await;
    check_all(&bourn, "captured").await;
}

#[tokio::test]
async fn a_row_with_broken_text_is_changed_and_its_change_repeated() {
    let config = "[[entity]]\ntype='page'\ntable='pages'\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(
            database,
            "CREATE TABLE pages (id TEXT PRIMARY KEY, name TEXT, size INTEGER, transactions JSON); \
             INSERT INTO pages (id, name, transactions) VALUES ('p', CAST(x'ff42' AS TEXT), CAST(x'7bff' AS TEXT))",
        );
    })
    .await;
    let client = bourn.client();
    for hit in ["", "true"] {
        let headers = [("x-transaction-id", "t1")];
        let changed = client.patch("/v1/entities/pages/p", &headers, &json!({ "size": 5 })).await;
        assert_eq!((changed.status, changed.header("x-idempotent-hit")), (200, hit), "{}", changed.text());
        assert_eq!(changed.json()["size"], 5);
    }
}

#[tokio::test]
async fn an_id_that_the_column_would_keep_as_another_is_refused_with_the_right_one() {
    let config = "[[entity]]\ntype='page'\ntable='pages'\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(database, "CREATE TABLE pages (id UUID PRIMARY KEY, name TEXT)");
    })
    .await;
    let client = bourn.client();
    for id in ["0012", "1e5"] {
        let refused = client.post("/v1/entities/pages", &[], &json!({ "id": id })).await;
        assert!((400..500).contains(&refused.status), "{}", refused.text());
        assert!(refused.text().contains("declare the column as TEXT"), "{}", refused.text());
    }
    for id in ["..", "."] {
        let refused = client.post("/v1/entities/pages", &[], &json!({ "id": id })).await;
        refused.assert_error(400, "INVALID_ID");
    }
    assert_eq!(client.get("/v1/entities/pages").await.json(), json!([]));
    assert_eq!(client.post("/v1/entities/pages", &[], &json!({ "id": "12" })).await.status, 201);
}

#[tokio::test]
async fn a_row_whose_creation_makes_another_is_answered_as_itself() {
    let config = "[[entity]]\ntype='node'\ntable='nodes'\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(
            database,
            "CREATE TABLE nodes (id INTEGER PRIMARY KEY, parent INTEGER, name TEXT); \
             CREATE TRIGGER child AFTER INSERT ON nodes WHEN NEW.parent IS NULL BEGIN INSERT INTO nodes (parent, name) VALUES (NEW.id, 'child'); END",
        );
    })
    .await;
    let made = bourn.client().post("/v1/entities/nodes", &[], &json!({ "name": "parent" })).await;
    assert_eq!((made.status, made.header("location")), (201, "/v1/entities/nodes/1"));
    assert_eq!(made.json(), json!({ "id": 1, "parent": null, "name": "parent" }));
}

#[tokio::test]
async fn columns_of_other_types_are_left_alone_and_others_can_be_named() {
    let config = "[[entity]]\ntype='old'\ntable='old'\n\
                  [[entity]]\ntype='named'\ntable='named'\ntransactions='txns'\nlast_client_id='device'\ncreated_at='born'\nmodified_at='touched'\ndeleted_at='removed_at'\n\
                  [[entity]]\ntype='off'\ntable='off'\ntransactions=false\ndeleted_at=false\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(
            database,
            "CREATE TABLE old (id TEXT PRIMARY KEY, transactions INTEGER, created_at INTEGER, deleted_at INTEGER NOT NULL DEFAULT 0); \
             CREATE TABLE named (id TEXT PRIMARY KEY, txns JSON, device TEXT, born TEXT, touched TEXT, removed_at TEXT, deleted_at TEXT); \
             CREATE TABLE off (id TEXT PRIMARY KEY, transactions JSON, deleted_at TEXT); \
             INSERT INTO off VALUES ('o', '[1]', 'yesterday')",
        );
    })
    .await;
    let client = bourn.client();
    let headers = [("x-transaction-id", "t1"), ("x-client-id", "c1")];
    let old = client
        .post("/v1/entities/old", &headers, &json!({ "id": "a", "transactions": 7, "created_at": 8 }))
        .await;
    assert_eq!(
        old.json(),
        json!({ "id": "a", "transactions": 7, "created_at": 8, "deleted_at": 0 }),
        "{}",
        old.text()
    );
    let changed =
        client.patch("/v1/entities/old/a", &[("x-transaction-id", "t2")], &json!({ "deleted_at": 1 })).await;
    assert_eq!(changed.json()["transactions"], 7);
    assert_eq!(client.get("/v1/entities/old").await.json(), json!([changed.json()]));

    let headers = [("x-transaction-id", "t3"), ("x-client-id", "c1")];
    let named =
        client.post("/v1/entities/named", &headers, &json!({ "id": "a", "deleted_at": "own" })).await.json();
    assert_eq!(
        (&named["txns"]["insert"], &named["device"], &named["deleted_at"]),
        (&json!("t3"), &json!("c1"), &json!("own"))
    );
    assert!(named["born"].is_string(), "{named}");
    let read_only = client.patch("/v1/entities/named/a", &[], &json!({ "touched": "x" })).await;
    read_only.assert_error(400, "READ_ONLY_COLUMN");
    let expecting = [("x-transaction-id", "t4"), ("x-expected-transaction-id", "t3")];
    assert_eq!(client.delete("/v1/entities/named/a", &expecting).await.status, 200);
    client.get("/v1/entities/named/a").await.assert_error(404, "NOT_FOUND");
    let (messages, _) = client.read_all("/v1/entities/named", "-1").await;
    assert_eq!(
        (&messages[1]["headers"]["operation"], &messages[1]["headers"]["txid"]),
        (&json!("delete"), &json!("t4"))
    );

    assert_eq!(client.get("/v1/entities/off/o").await.json()["deleted_at"], "yesterday");
    let file = bourn.database().with_file_name("bourn.toml");
    let url = bourn.url().to_owned();
    let checked =
        Bourn::output(&["check", "--config", file.to_str().unwrap(), "--database", &url], &[]).await;
    let text = String::from_utf8(checked.stdout).unwrap();
    assert!(text.contains("old: column `deleted_at` is left alone"), "{text}");
    assert!(!text.contains("off: column"), "{text}");
}

#[tokio::test]
async fn a_name_that_is_configured_must_be_a_column_that_fits() {
    let config = "[[entity]]\ntype='page'\ntable='pages'\ndeleted_at='size'\n";
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("test.db");
    sqlite3(&database, "CREATE TABLE pages (id TEXT PRIMARY KEY, size INTEGER)");
    let file = directory.path().join("bourn.toml");
    std::fs::write(&file, config).unwrap();
    let url = format!("sqlite:{}", database.display());
    let checked =
        Bourn::output(&["check", "--config", file.to_str().unwrap(), "--database", &url], &[]).await;
    let text = String::from_utf8(checked.stdout).unwrap();
    assert!(text.contains("column `size` of table `pages` cannot be its `deleted_at`"), "{text}");
}

#[tokio::test]
async fn the_lock_sees_what_writers_in_sql_did() {
    let config = "[[entity]]\ntype='page'\ntable='pages'\nconflict='optimistic-lock'\n[[entity]]\ntype='note'\ntable='notes'\nconflict='optimistic-lock'\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(
            database,
            "CREATE TABLE pages (id TEXT PRIMARY KEY, name TEXT, transactions JSON); CREATE TABLE notes (id TEXT PRIMARY KEY, body TEXT); \
             INSERT INTO pages VALUES ('old', 'a', NULL), ('stamped', 'a', '{\"insert\":\"s1\"}')",
        );
    })
    .await;
    let client = bourn.client();
    let txid = async |path: &str, key: &str, name: &str| {
        let found = std::cell::RefCell::new(String::new());
        eventually("the change is in the stream", async || {
            let (messages, _) = client.read_all(path, "-1").await;
            let last = messages.iter().rev().find(|message| message["key"] == key);
            let Some(last) =
                last.filter(|last| last["value"]["name"] == name || last["value"]["body"] == name)
            else {
                return false;
            };
            *found.borrow_mut() = last["headers"]["txid"].as_str().unwrap().to_owned();
            true
        })
        .await;
        found.into_inner()
    };
    let patch = async |path: &str, expected: &str, body: Value| {
        client.patch(path, &[("x-expected-transaction-id", expected)], &body).await
    };
    // A row that SQL made, with nothing in `transactions`.
    let (pages, old) = ("/v1/entities/pages", "/v1/entities/pages/old");
    let id = txid(pages, "old", "a").await;
    assert_eq!(patch(old, "another", json!({ "name": "b" })).await.json()["actualTransaction"], id);
    let changed = patch(old, &id, json!({ "name": "b" })).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    // An UPDATE in SQL that leaves `transactions` alone is noticed.
    let mine = changed.header("x-transaction-id").to_owned();
    bourn.sql("UPDATE pages SET name = 'theirs' WHERE id = 'old'");
    let id = txid(pages, "old", "theirs").await;
    let lost = patch(old, &mine, json!({ "name": "mine" })).await;
    assert_eq!((lost.status, &lost.json()["actualTransaction"]), (409, &json!(id)));
    assert_eq!(patch(old, &id, json!({ "name": "c" })).await.status, 200);
    // A row that was found with its ids in it is known by those.
    assert_eq!(patch("/v1/entities/pages/stamped", "s1", json!({ "name": "b" })).await.status, 200);
    // A table without the column is locked by what the stream says.
    client
        .post("/v1/entities/notes", &[("x-transaction-id", "n1")], &json!({ "id": "n", "body": "a" }))
        .await;
    let note = "/v1/entities/notes/n";
    client.patch(note, &[], &json!({ "body": "b" })).await.assert_error(428, "EXPECTATION_REQUIRED");
    assert_eq!(patch(note, "n0", json!({ "body": "b" })).await.status, 409);
    assert_eq!(patch(note, "n1", json!({ "body": "b" })).await.status, 200);
    bourn.sql("UPDATE notes SET body = 'theirs'");
    let id = txid("/v1/entities/notes", "n", "theirs").await;
    assert_eq!(patch(note, &id, json!({ "body": "c" })).await.status, 200);
}

#[tokio::test]
async fn an_id_that_the_ledger_forgot_is_known_by_the_log() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let path = "/v1/entities/pages/p1";
    let first = [("x-transaction-id", "t2")];
    client.patch(path, &first, &json!({ "name": "first" })).await;
    client.patch(path, &[("x-transaction-id", "t3")], &json!({ "name": "second" })).await;
    bourn.sql("DELETE FROM bourn_ledger");
    let late = client.patch(path, &first, &json!({ "name": "first" })).await;
    assert_eq!((late.status, late.header("x-idempotent-hit")), (200, "true"));
    assert_eq!(client.get(path).await.json()["name"], "second", "nothing was overwritten");
    client.delete(path, &first).await.assert_error(422, "TRANSACTION_REUSED");
    assert_eq!(client.read_all("/v1/entities/pages", "-1").await.0.len(), 3);
}

#[tokio::test]
async fn an_undo_that_would_lose_something_says_what() {
    let config = "[[entity]]\ntype='list'\ntable='lists'\nprevious_values=true\n[[entity]]\ntype='item'\ntable='items'\nprevious_values=true\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        sqlite3(
            database,
            "CREATE TABLE lists (id TEXT PRIMARY KEY, title TEXT); \
             CREATE TABLE items (id TEXT PRIMARY KEY, list TEXT REFERENCES lists ON DELETE CASCADE, label TEXT)",
        );
    })
    .await;
    let client = bourn.client();
    let made = async |table: &str, transaction: &str, row: Value| {
        let headers = [("x-transaction-id", transaction)];
        assert_eq!(client.post(&format!("/v1/entities/{table}"), &headers, &row).await.status, 201);
    };
    let undo = async |transaction: &str, query: &str| {
        let path = format!("/v1/transactions/{transaction}/rollback{query}");
        client.send(http::Method::POST, &path, &[], "").await
    };
    made("lists", "t1", json!({ "id": "l", "title": "parent" })).await;
    made("items", "t2", json!({ "id": "i", "list": "l", "label": "child" })).await;
    // The child belongs to a later transaction, and would go with its parent.
    let blocked = undo("t1", "").await;
    blocked.assert_error(409, "ROLLBACK_BLOCKED");
    assert_eq!(blocked.json()["dependents"][0]["transactionId"], "t2", "{}", blocked.text());
    assert_eq!(client.get("/v1/entities/items/i").await.status, 200);
    // A value whose column has another name now would come back as NULL.
    assert_eq!(client.delete("/v1/entities/items/i", &[("x-transaction-id", "t3")]).await.status, 200);
    bourn.sql(
        "ALTER TABLE items RENAME COLUMN label TO caption; INSERT INTO items (id, caption) VALUES ('j', 'x')",
    );
    eventually("the server has seen the new name", async || {
        client.get("/v1/entities/items/j").await.json().get("caption").is_some()
    })
    .await;
    let refused = undo("t3", "").await;
    refused.assert_error(422, "NOT_REVERSIBLE");
    assert!(refused.text().contains("column `label`"), "{}", refused.text());
    client.get("/v1/entities/items/i").await.assert_error(404, "NOT_FOUND");
    assert_eq!(undo("t1", "").await.status, 200);
}
