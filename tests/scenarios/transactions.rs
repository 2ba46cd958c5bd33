//! Transactions: their state, their history, and undoing them.

use serde_json::{Value, json};

use crate::support::{Bourn, eventually, page};

const PAGES: &str = "/v1/entities/pages";

#[tokio::test]
async fn a_transaction_is_unknown_then_confirmed_with_its_offset() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    assert_eq!(
        client.get("/v1/transactions/t1").await.json(),
        json!({ "transactionId": "t1", "state": "unknown" })
    );
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.get("/v1/transactions/t1?wait=20").await.json() }
    });
    client.make_page("p1", "t1").await;
    let state = waiting.await.unwrap();
    assert_eq!(state["state"], "confirmed");
    let (_, tail) = client.read_all(PAGES, "-1").await;
    assert_eq!(state["offset"], tail);
    // A foreign writer's transaction is known by what it wrote.
    bourn.sql(r#"INSERT INTO pages (id, transactions) VALUES ('p2', '{"insert":"sql-1"}')"#);
    assert_eq!(client.get("/v1/transactions/sql-1?wait=20").await.json()["state"], "confirmed");
    client.get("/v1/transactions/t1?wait=61").await.assert_error(400, "INVALID_PARAMETER");
}

#[tokio::test]
async fn the_history_answers_the_five_questions() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let headers = |t, c| [("x-transaction-id", t), ("x-client-id", c)];
    client.post(PAGES, &headers("t1", "c1"), &page("p1", "One")).await;
    client.patch("/v1/entities/pages/p1", &headers("t2", "c2"), &json!({ "name": "Two" })).await;
    client.post(PAGES, &headers("t3", "c1"), &json!({ "id": "p2", "organization_id": "beta" })).await;
    client
        .post(
            "/v1/entities/attachments",
            &headers("t4", "c2"),
            &json!({ "id": "a1", "organization_id": "acme" }),
        )
        .await;

    let asked = async |query: &str| -> Vec<String> {
        let answer = client.get(&format!("/v1/activities?{query}")).await;
        answer
            .messages()
            .iter()
            .map(|activity| activity["transactionId"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(asked("transactionId=t2").await, ["t2"]);
    assert_eq!(asked("entityType=page&entityId=p1").await, ["t2", "t1"]);
    assert_eq!(asked("clientId=c1").await, ["t3", "t1"]);
    assert_eq!(asked("organizationId=acme").await, ["t4", "t2", "t1"]);
    assert_eq!(asked("organizationId=acme&entityType=page").await, ["t2", "t1"]);
    assert_eq!(asked("entityType=page&limit=2").await, ["t3", "t2"]);
    assert_eq!(asked("").await, ["t4", "t3", "t2", "t1"]);
    let found = client.get("/v1/activities?transactionId=t2").await.json();
    assert_eq!((&found[0]["entityType"], &found[0]["entityId"]), (&json!("page"), &json!("p1")));
    assert_eq!(found[0]["changedKeys"], json!(["name"]));
    assert_eq!(found[0]["previousValues"]["name"], "One");
    let before = found[0]["id"].as_str().unwrap();
    assert_eq!(asked(&format!("before={before}")).await, ["t1"]);

    let (stream, _) = client.read_all("/v1/activities?organizationId=acme", "-1").await;
    let types: Vec<_> = stream.iter().map(|activity| activity["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["page.created", "page.updated", "attachment.created"]);
    let (stream, _) = client.read_all("/v1/activities?entityType=attachment", "-1").await;
    assert_eq!(stream.len(), 1);
}

async fn rows(bourn: &Bourn, table: &str) -> Vec<(String, Value)> {
    let list = bourn.client().get(&format!("/v1/entities/{table}")).await.json();
    let name = |row: &Value| row.get("name").or_else(|| row.get("title")).cloned().unwrap_or_default();
    list.as_array().unwrap().iter().map(|row| (row["id"].to_string(), name(row))).collect()
}

async fn undo(bourn: &Bourn, transaction: &str, id: &str) -> crate::support::Answer {
    let path = format!("/v1/transactions/{transaction}/rollback");
    bourn.client().send(http::Method::POST, &path, &[("x-transaction-id", id)], "").await
}

#[tokio::test]
async fn create_update_and_delete_are_undone_by_their_opposites() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    client
        .patch(
            "/v1/entities/pages/p1",
            &[("x-transaction-id", "t2")],
            &json!({ "name": "Two", "content": "c" }),
        )
        .await;
    client.delete("/v1/entities/pages/p1", &[("x-transaction-id", "t3")]).await;

    assert_eq!(undo(&bourn, "t3", "u3").await.status, 200);
    assert_eq!(rows(&bourn, "pages").await, [("\"p1\"".to_owned(), json!("Two"))]);
    let again = undo(&bourn, "t3", "u3").await;
    assert_eq!(again.header("x-idempotent-hit"), "true");
    assert_eq!(again.json()["undone"][0]["transactionId"], "t3");

    let blocked = undo(&bourn, "t2", "u2").await;
    blocked.assert_error(409, "ROLLBACK_BLOCKED");
    let dependents: Vec<_> =
        blocked.json()["dependents"].as_array().unwrap().iter().map(|d| d["transactionId"].clone()).collect();
    assert_eq!(json!(dependents), json!(["t3", "u3"]));

    let cascade = undo(&bourn, "t2", "u2").await;
    cascade.assert_error(409, "ROLLBACK_BLOCKED");
    let cascade = client
        .send(
            http::Method::POST,
            "/v1/transactions/t2/rollback?cascade=true",
            &[("x-transaction-id", "u2")],
            "",
        )
        .await;
    assert_eq!(cascade.status, 200, "{}", cascade.text());
    let order: Vec<_> =
        cascade.json()["undone"].as_array().unwrap().iter().map(|u| u["transactionId"].clone()).collect();
    assert_eq!(json!(order), json!(["u3", "t3", "t2"]));
    let page = client.get("/v1/entities/pages/p1").await.json();
    assert_eq!((&page["name"], &page["content"]), (&json!("p1"), &json!(null)));
    assert_eq!(page["transactions"], json!({ "insert": "t1", "update": "u2", "delete": null }));

    let (messages, _) = client.read_all(PAGES, "-1").await;
    assert_eq!(messages.last().unwrap()["headers"]["txid"], "u2", "an undo is a transaction in the log");
    assert_eq!(client.get("/v1/transactions/u2").await.json()["state"], "confirmed");
    undo(&bourn, "nobody", "u9").await.assert_error(404, "UNKNOWN_TRANSACTION");
}

#[tokio::test]
async fn a_foreign_transaction_over_two_tables_is_undone_whole() {
    let config = "[[entity]]\ntype='list'\ntable='lists'\nprevious_values=true\n[[entity]]\ntype='item'\ntable='items'\nkey='n'\nprevious_values=true\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        crate::support::sqlite3(
            database,
            "CREATE TABLE lists (id TEXT PRIMARY KEY, title TEXT); CREATE TABLE items (n INTEGER PRIMARY KEY, list TEXT REFERENCES lists, done BOOLEAN, data BLOB, price REAL);
             INSERT INTO lists VALUES ('l1', 'one'); INSERT INTO items VALUES (1, 'l1', 0, x'00ff', 0.1);",
        );
    })
    .await;
    let client = bourn.client();
    let before =
        (client.get("/v1/entities/lists").await.json(), client.get("/v1/entities/items").await.json());
    assert_eq!(before.1, json!([{ "n": 1, "list": "l1", "done": false, "data": "\\x00ff", "price": 0.1 }]));
    bourn.sql("BEGIN; UPDATE items SET done = 1; DELETE FROM items WHERE n = 1; UPDATE lists SET title = 'two'; INSERT INTO lists VALUES ('l2', 'new'); COMMIT");
    crate::support::eventually("the transaction is in the stream", async || {
        client.read_all("/v1/entities/lists", "-1").await.0.len() == 3
    })
    .await;
    let (messages, _) = client.read_all("/v1/entities/items", "-1").await;
    let txid = messages.last().unwrap()["headers"]["txid"].as_str().unwrap().to_owned();
    let undone = undo(&bourn, &txid, "u1").await;
    assert_eq!(undone.status, 200, "{}", undone.text());
    assert_eq!(undone.json()["undone"].as_array().unwrap().len(), 4);
    let after =
        (client.get("/v1/entities/lists").await.json(), client.get("/v1/entities/items").await.json());
    assert_eq!(after, before);
    let (messages, _) = client.read_all("/v1/entities/items", "-1").await;
    assert_eq!(
        messages.last().unwrap()["headers"]["txid"],
        "u1",
        "also where the table has no transactions column"
    );
}

#[tokio::test]
async fn without_previous_values_there_is_no_undo() {
    let config = "[[entity]]\ntype='page'\ntable='pages'\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        crate::support::sqlite3(
            database,
            "CREATE TABLE pages (id TEXT PRIMARY KEY, name TEXT, transactions TEXT)",
        );
    })
    .await;
    bourn.client().post(PAGES, &[("x-transaction-id", "t1")], &json!({ "id": "p1" })).await;
    undo(&bourn, "t1", "u1").await.assert_error(422, "NOT_REVERSIBLE");
    let (messages, _) = bourn.client().read_all(PAGES, "-1").await;
    assert!(messages[0].get("old_value").is_none());
}

#[tokio::test]
async fn who_waits_for_a_transaction_costs_nothing_at_other_commits() {
    const WRITES: usize = 300;
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let write = async |name: &str| {
        let before = bourn.cpu();
        for i in 0..WRITES {
            client.make_page(&format!("{name}{i}"), &format!("{name}{i}")).await;
        }
        bourn.cpu() - before
    };
    write("warm").await;
    let alone = write("alone").await;
    let mut waiters = Vec::new();
    for i in 0..400 {
        let client = client.clone();
        waiters.push(tokio::spawn(
            async move { client.get(&format!("/v1/transactions/never{i}?wait=60")).await },
        ));
    }
    let last = tokio::spawn({
        let client = client.clone();
        async move { client.get("/v1/transactions/late?wait=60").await.json() }
    });
    eventually("they wait", async || {
        client.get("/metrics").await.text().contains("bourn_open_connections 402\n")
    })
    .await;
    let beside = write("beside").await;
    let (alone, beside) = (alone.as_secs_f64(), beside.as_secs_f64());
    assert!(beside < 2.5 * alone + 0.3, "{beside} s of CPU beside 400 waiters, {alone} s alone");
    client.make_page("late", "late").await;
    let state =
        tokio::time::timeout(std::time::Duration::from_secs(2), last).await.expect("at once").unwrap();
    assert_eq!(state["state"], "confirmed");
    for waiter in waiters {
        waiter.abort();
    }
}
