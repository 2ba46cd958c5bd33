//! Rows are made, read, changed and deleted over REST.

use serde_json::{Value, json};

use crate::support::{Bourn, page};

const PAGES: &str = "/v1/entities/pages";

#[tokio::test]
async fn a_row_lives_from_create_to_delete_and_every_step_is_in_its_stream() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();

    let made =
        client.post(PAGES, &[("x-transaction-id", "t1"), ("x-client-id", "c1")], &page("p1", "One")).await;
    assert_eq!(made.status, 201);
    assert_eq!((made.header("x-transaction-id"), made.header("location")), ("t1", "/v1/entities/pages/p1"));
    assert_eq!(made.json()["transactions"], json!({ "insert": "t1", "update": null, "delete": null }));
    assert_eq!(made.json()["last_client_id"], "c1");

    let changed =
        client.patch("/v1/entities/pages/p1", &[("x-transaction-id", "t2")], &json!({ "name": "Two" })).await;
    assert_eq!(changed.status, 200);
    assert_eq!(changed.json()["transactions"], json!({ "insert": "t1", "update": "t2", "delete": null }));
    assert_eq!(client.get("/v1/entities/pages/p1").await.json(), changed.json());
    assert_eq!(client.get(PAGES).await.json(), json!([changed.json()]));

    let deleted = client.delete("/v1/entities/pages/p1", &[("x-transaction-id", "t3")]).await;
    assert_eq!(deleted.status, 200);
    assert_eq!(deleted.json()["transactions"]["delete"], "t3");
    client.get("/v1/entities/pages/p1").await.assert_error(404, "NOT_FOUND");
    assert_eq!(client.get(PAGES).await.json(), json!([]));

    let (messages, _) = client.read_all(PAGES, "-1").await;
    let told: Vec<_> =
        messages.iter().map(|m| (m["headers"]["operation"].clone(), m["headers"]["txid"].clone())).collect();
    assert_eq!(json!(told), json!([["insert", "t1"], ["update", "t2"], ["delete", "t3"]]));
    assert_eq!(messages[0]["value"], made.json(), "the stream has the row as the answer had it");
    assert_eq!(messages[1]["value"], changed.json());
    assert_eq!(messages[1]["headers"]["changed_keys"], json!(["name"]));
    assert!(messages[2].get("value").is_none());
}

#[tokio::test]
async fn ids_may_come_from_the_client_or_are_made_up() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let made = client.post(PAGES, &[], &json!({ "name": "nameless" })).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.json()["id"].as_str().unwrap().len(), 21);
    let transaction = made.header("x-transaction-id");
    assert_eq!(made.json()["transactions"]["insert"], transaction);
    assert_eq!(transaction.split_once('-').unwrap().1.len(), 12);
    client.make_page("p1", "t1").await;
    let again = client.post(PAGES, &[("x-transaction-id", "t2")], &page("p1", "other")).await;
    again.assert_error(409, "ALREADY_EXISTS");
    assert_eq!(client.get("/v1/entities/pages/p1").await.json()["name"], "p1");
}

#[tokio::test]
async fn a_retry_is_answered_and_not_done_again() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    let headers = [("x-transaction-id", "t1")];
    let first = client.post(PAGES, &headers, &page("p1", "One")).await;
    let again = client.post(PAGES, &headers, &page("p1", "One")).await;
    assert_eq!((again.status, again.header("x-idempotent-hit")), (201, "true"));
    assert_eq!(again.json(), first.json());
    assert_eq!(first.header("x-idempotent-hit"), "");

    client.post(PAGES, &headers, &page("p2", "One")).await.assert_error(422, "TRANSACTION_REUSED");
    client
        .patch("/v1/entities/pages/p1", &headers, &json!({ "name": "x" }))
        .await
        .assert_error(422, "TRANSACTION_REUSED");

    client.delete("/v1/entities/pages/p1", &[("x-transaction-id", "t2")]).await;
    let again = client.delete("/v1/entities/pages/p1", &[("x-transaction-id", "t2")]).await;
    assert_eq!((again.status, again.header("x-idempotent-hit")), (200, "true"));
    assert_eq!(client.read_all(PAGES, "-1").await.0.len(), 2);
}

#[tokio::test]
async fn of_24_concurrent_retries_one_is_done() {
    let bourn = Bourn::start(&[]).await;
    for round in 0..10 {
        let (id, transaction) = (format!("p{round}"), format!("t{round}"));
        let retries: Vec<_> = (0..24)
            .map(|_| {
                let (client, id, transaction) = (bourn.client(), id.clone(), transaction.clone());
                tokio::spawn(async move {
                    client.post(PAGES, &[("x-transaction-id", &transaction)], &page(&id, "same")).await
                })
            })
            .collect();
        let mut fresh = 0;
        for retry in retries {
            let answer = retry.await.unwrap();
            assert_eq!(answer.status, 201, "{}", answer.text());
            fresh += usize::from(answer.header("x-idempotent-hit").is_empty());
        }
        assert_eq!(fresh, 1);
    }
    assert_eq!(bourn.client().read_all(PAGES, "-1").await.0.len(), 10);
}

#[tokio::test]
async fn an_optimistic_lock_tells_what_the_server_has() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let expecting = |expected| [("x-transaction-id", "t9"), ("x-expected-transaction-id", expected)];
    let won = client
        .patch(
            "/v1/entities/pages/p1",
            &[("x-transaction-id", "t2"), ("x-expected-transaction-id", "t1")],
            &json!({ "name": "won" }),
        )
        .await;
    assert_eq!(won.status, 200);
    let lost = client.patch("/v1/entities/pages/p1", &expecting("t1"), &json!({ "name": "lost" })).await;
    assert_eq!(lost.status, 409);
    let Value::Object(body) = lost.json() else { panic!() };
    assert_eq!(
        Value::Object(body),
        json!({
            "error": "conflict",
            "code": "TRANSACTION_CONFLICT",
            "serverVersion": won.json(),
            "expectedTransaction": "t1",
            "actualTransaction": "t2",
        })
    );
    assert_eq!(client.delete("/v1/entities/pages/p1", &expecting("t1")).await.status, 409);
    assert_eq!(client.delete("/v1/entities/pages/p1", &expecting("t2")).await.status, 200);
    let on_create = client.post(PAGES, &expecting("t1"), &page("p2", "x")).await;
    on_create.assert_error(400, "INVALID_HEADER");
}

#[tokio::test]
async fn a_type_may_insist_on_the_lock() {
    let config = "[[entity]]\ntype = 'page'\ntable = 'pages'\nconflict = 'optimistic-lock'\n";
    let bourn = Bourn::start_with(config, &[], |database| {
        crate::support::sqlite3(
            database,
            "CREATE TABLE pages (id TEXT PRIMARY KEY, name TEXT, transactions TEXT)",
        );
    })
    .await;
    let client = bourn.client();
    let made = client.post(PAGES, &[("x-transaction-id", "t1")], &json!({ "id": "p1", "name": "a" })).await;
    assert_eq!(made.status, 201);
    let path = "/v1/entities/pages/p1";
    client.patch(path, &[], &json!({ "name": "b" })).await.assert_error(428, "EXPECTATION_REQUIRED");
    client.delete(path, &[]).await.assert_error(428, "EXPECTATION_REQUIRED");
    let expecting = [("x-expected-transaction-id", "t1")];
    assert_eq!(client.patch(path, &expecting, &json!({ "name": "b" })).await.status, 200);
}

#[tokio::test]
async fn lists_are_paged_by_key_and_narrowed_by_scope() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    for (id, organization) in [("a", "acme"), ("b", "beta"), ("c", "acme"), ("d", "acme"), ("é/ 1", "acme")]
    {
        let made = client.post(PAGES, &[], &json!({ "id": id, "organization_id": organization })).await;
        assert_eq!(made.status, 201);
    }
    let ids = |answer: &crate::support::Answer| -> Vec<String> {
        answer.messages().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = client.get("/v1/entities/pages?organizationId=acme&limit=2").await;
    assert_eq!(ids(&first), ["a", "c"]);
    let link = first.header("link");
    let next = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
    let second = client.get(next).await;
    assert_eq!(ids(&second), ["d", "é/ 1"]);
    let next = second.header("link").strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned();
    let last = client.get(&next).await;
    assert_eq!((ids(&last).len(), last.header("link")), (0, ""));
    assert_eq!(client.get("/v1/entities/pages/%C3%A9%2F%201").await.json()["id"], "é/ 1");

    let (scoped, _) = client.read_all("/v1/entities/pages?organizationId=beta", "-1").await;
    assert_eq!(scoped.len(), 1);
    assert_eq!(scoped[0]["key"], "b");
}
