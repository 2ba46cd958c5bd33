//! Each value has one JSON form, in the list, the row and the stream.

use bourn::access::Rights;
use serde_json::{Value, json};

use crate::backend::{Backend, key};
use crate::sqlite::Sqlite;

#[tokio::test(flavor = "multi_thread")]
async fn every_value_has_one_form_on_sqlite() {
    let table = "CREATE TABLE samples (id INTEGER PRIMARY KEY, flag BOOLEAN, small INTEGER, amount REAL, price NUMERIC, label TEXT, \
                 data BLOB, doc JSON, at DATETIME)";
    let db = Sqlite::open(&[table]).await;
    let rows = [
        (
            "(1, 1, 9007199254740993, 0.1, 12, 'a\"\\' || char(10) || 'é', x'00ff', '{\"b\": [1, 2.50], \"a\": null}', '2026-01-15 10:30:00')",
            json!({ "id": 1, "flag": true, "small": 9_007_199_254_740_993_i64, "amount": 0.1, "price": 12, "label": "a\"\\\né", "data": "\\x00ff",
                 "doc": { "b": [1, 2.5], "a": null }, "at": "2026-01-15T10:30:00" }),
        ),
        (
            "(2, 0, -1, 1e300, 0.30000000000000004, '', x'', '\"text\"', '2026-01-15T10:30:00.123Z')",
            json!({ "id": 2, "flag": false, "small": -1, "amount": 1e300, "price": 0.300_000_000_000_000_04, "label": "", "data": "\\x",
                 "doc": "text", "at": "2026-01-15T10:30:00.123Z" }),
        ),
        (
            "(3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
            json!({ "id": 3, "flag": null, "small": null, "amount": null, "price": null, "label": null, "data": null, "doc": null, "at": null }),
        ),
        (
            "(4, 'maybe', 'many', 9e999, 'free', 5, 'text', 'not json', 17)",
            json!({ "id": 4, "flag": "maybe", "small": "many", "amount": "Infinity", "price": "free", "label": "5", "data": "text",
                 "doc": "not json", "at": 17 }),
        ),
    ];
    for (values, _) in &rows {
        db.sql(&format!("INSERT INTO samples VALUES {values}"));
    }
    let log = db.log(4).await;
    let listed = db.rows("samples").await;
    for (activity, (_, expected)) in log.iter().zip(&rows) {
        let logged = activity.value.as_deref().unwrap();
        let row = db.storage().row(&db.entity("samples"), &key(&activity.entity_id)).await.unwrap().unwrap();
        let row = row.open(&Rights::everything()).unwrap();
        assert_eq!(std::str::from_utf8(&row).unwrap(), logged, "row and stream agree to the byte");
        let parsed: Value = serde_json::from_str(logged).unwrap();
        assert_eq!(listed[&activity.entity_id], parsed);
        let plain: Value = serde_json::from_str(&expected.to_string()).unwrap();
        let numbers = |value: &Value| -> Vec<(String, Option<f64>, String)> {
            value
                .as_object()
                .unwrap()
                .iter()
                .map(|(k, v)| {
                    (k.clone(), v.as_f64(), if v.is_number() { String::new() } else { v.to_string() })
                })
                .collect()
        };
        // Numbers are compared as numbers: 2.50 and 2.5 are the same one.
        let (mut left, mut right) = (numbers(&parsed), numbers(&plain));
        left.retain(|(name, ..)| name != "doc");
        right.retain(|(name, ..)| name != "doc");
        assert_eq!(left, right);
        assert_eq!(parsed["small"].to_string(), plain["small"].to_string(), "whole numbers in full digits");
    }
    // What is written over REST comes back as it was sent.
    let columns = json!({ "flag": true, "small": 5, "amount": 2.5, "price": 3, "label": "x", "data": "\\x0a", "doc": [1, { "k": "v" }], "at": "2026-01-15T10:30:00Z" });
    db.write("t1", db.create("samples", "5", &columns)).await.unwrap();
    let log = db.log(5).await;
    let stored: Value = serde_json::from_str(log[4].value.as_deref().unwrap()).unwrap();
    for (name, value) in columns.as_object().unwrap() {
        assert_eq!(&stored[name], value, "{name}");
    }
}
