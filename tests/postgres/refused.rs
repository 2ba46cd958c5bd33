//! Rows that the log refuses: they stop their own entity type and no other, say so, and can be passed over.

use serde_json::Value;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, said, state};
use crate::support::{Client, Event, PATIENCE, within};

const NOTES: &str =
    "CREATE TABLE notes (id text PRIMARY KEY, body text); ALTER TABLE notes REPLICA IDENTITY FULL;";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\n";
const NOTES_PATH: &str = "/v1/entities/notes";
/// What stands for a row that the log cannot hold: any reason for which the database refuses it is met in the same way.
const REFUSE: &str = "ALTER TABLE bourn.activities ADD CONSTRAINT refused CHECK (value NOT LIKE '%poison%')";
const ACCEPT: &str = "ALTER TABLE bourn.activities DROP CONSTRAINT refused";

async fn site() -> Site {
    let mut site = Site::new(&format!("{PAGES} {NOTES}"), &format!("{PAGE}{NOTE}")).await.eager();
    site.set("sse_heartbeat", "1s");
    // The log's tables are made by the first server or `prepare`, which has run.
    site.sql(REFUSE);
    site
}

/// What `/ready` says of the entity type `page`.
async fn page_state(client: &Client) -> Value {
    let ready = client.get("/ready").await.json();
    let entities = ready["entities"].as_array().unwrap().clone();
    entities.into_iter().find(|entity| entity["type"] == "page").unwrap()
}

async fn has_stopped(client: &Client) -> bool {
    within(PATIENCE, async || page_state(client).await["state"] == "stopped").await
}

async fn agrees(site: &Site, client: &Client, stream: &str, table: &str, unless: &str) -> bool {
    let held = site.table(table, "id");
    let held: Vec<_> = held.keys().filter(|key| *key != unless).cloned().collect();
    within(PATIENCE, async || {
        client.get(&format!("{stream}?offset=now")).await.status == 200
            && state(client, stream).await.into_keys().eq(held.iter().cloned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_log_refuses_stops_its_own_entity_type_until_an_operator_skips_it() {
    let site = site().await;
    let server = site.server().await;
    let client = server.client();
    site.sql("INSERT INTO pages (id) VALUES ('before'); INSERT INTO notes VALUES ('n1', '')");
    assert!(agrees(&site, &client, PAGES_PATH, "pages", "").await);
    let mut live = client.events(&format!("{PAGES_PATH}?offset=-1&live=sse"), &[]).await;
    site.sql(
        "BEGIN; INSERT INTO notes VALUES ('n2', ''); INSERT INTO pages (id) VALUES ('beside'); \
         INSERT INTO pages (id, name) VALUES ('p1', 'poison'); COMMIT; \
         INSERT INTO pages (id) VALUES ('after'); INSERT INTO notes VALUES ('n3', '')",
    );
    assert!(has_stopped(&client).await, "{}", client.get("/ready").await.text());
    // The other type goes on, also with what the same transaction did to it.
    assert!(agrees(&site, &client, NOTES_PATH, "notes", "").await);
    site.captured().await;

    // It says which row, why, and the way on; the server itself can serve.
    let ready = client.get("/ready").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    let condition = page_state(&client).await["conditions"][0].clone();
    assert_eq!(condition["key"], "p1");
    assert!(condition["reason"].as_str().unwrap().contains("23514"), "{condition}");
    assert!(condition["remedy"].as_str().unwrap().contains("bourn skip page"), "{condition}");
    assert!(server.recent_log().contains("bourn skip page"), "{}", server.recent_log());
    let check = site.run(&["check"]).await;
    assert!(!check.status.success() && said(&check).contains("bourn skip page"), "{}", said(&check));
    assert!(client.get("/metrics").await.text().contains("bourn_entities_stopped 1"));

    // No read is given that looks complete and is not; the list and writes go on.
    let stream = client.get("/v1/entities/pages?offset=-1").await;
    assert_eq!((stream.status, stream.json()["code"].clone()), (503, "ENTITY_UNAVAILABLE".into()));
    let ends = async { while live.next().await != Event::End {} };
    assert!(
        tokio::time::timeout(PATIENCE, ends).await.is_ok(),
        "a live reader is left with what lacks changes"
    );
    assert_eq!(client.get("/v1/entities/pages").await.json().as_array().unwrap().len(), 4);
    let written =
        client.post("/v1/entities/pages", &[], &serde_json::json!({"id": "rest", "name": "x"})).await;
    assert_eq!(written.status, 201, "{}", written.text());
    site.sql("INSERT INTO pages (id) VALUES ('passing')");
    let listed = client.get("/v1/entities/pages").await;
    assert!(listed.text().contains("passing"), "{}", listed.text());
    site.sql("DELETE FROM pages WHERE id = 'passing'");

    // So does another server, started later, and the same one after a restart.
    drop(server);
    let server = site.begin_server().await;
    let client = server.client();
    assert!(has_stopped(&client).await, "{}", client.get("/ready").await.text());
    site.sql("INSERT INTO pages (id) VALUES ('later'); INSERT INTO notes VALUES ('n4', '')");
    assert!(agrees(&site, &client, NOTES_PATH, "notes", "").await);
    assert_eq!(client.get("/v1/entities/pages?offset=now").await.status, 503);

    let skipped = site.run(&["skip", "page"]).await;
    assert!(skipped.status.success() && said(&skipped).contains("`p1`"), "{}", said(&skipped));
    assert!(agrees(&site, &client, PAGES_PATH, "pages", "p1").await, "{}", client.get("/ready").await.text());
    let listed_now = client.get("/v1/entities/pages").await.json();
    assert!(
        listed_now.as_array().unwrap().iter().all(|row| row["id"] != "p1"),
        "a list has a row of which the stream tells nothing: {listed_now}"
    );
    // A row of such a list that went before the log could have it is known to have gone.
    let next = listed.next_offset();
    let (followed, _) = client.read_all(PAGES_PATH, &next).await;
    let end = followed.iter().find(|change| change["key"] == "passing");
    assert!(end.is_some_and(|end| end["headers"]["operation"] == "delete"), "{followed:?}");
    let again = site.run(&["skip", "page"]).await;
    assert!(!again.status.success() && said(&again).contains("has not stopped"), "{}", said(&again));
    let check = site.run(&["check"]).await;
    assert!(check.status.success() && said(&check).contains("row `p1` is passed over"), "{}", said(&check));

    // A skipped row is passed over for as long as it is refused, and no longer.
    site.sql(
        "UPDATE pages SET name = 'poison again' WHERE id = 'p1'; INSERT INTO pages (id) VALUES ('still')",
    );
    assert!(agrees(&site, &client, PAGES_PATH, "pages", "p1").await);
    site.sql("UPDATE pages SET name = 'fine' WHERE id = 'p1'");
    assert!(agrees(&site, &client, PAGES_PATH, "pages", "").await);
    // One that the log has alive leaves the streams when it is refused.
    site.sql("UPDATE pages SET name = 'poison' WHERE id = 'p1'");
    assert!(agrees(&site, &client, PAGES_PATH, "pages", "p1").await);
    site.sql(ACCEPT);
    site.sql("UPDATE pages SET content = 'x' WHERE id = 'p1'");
    assert!(agrees(&site, &client, PAGES_PATH, "pages", "").await);
    site.assert_log_is_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_in_a_transaction_that_is_appended_in_parts_stops_its_type_alone() {
    let site = site().await;
    let server = site.server().await;
    let client = server.client();
    site.sql(
        "BEGIN; INSERT INTO pages (id) SELECT 'p' || g FROM generate_series(1, 6000) g; \
         INSERT INTO notes SELECT 'n' || g, '' FROM generate_series(1, 6000) g; \
         UPDATE pages SET name = 'poison' WHERE id = 'p77'; \
         INSERT INTO notes SELECT 'm' || g, '' FROM generate_series(1, 6000) g; COMMIT",
    );
    assert!(has_stopped(&client).await, "{}", client.get("/ready").await.text());
    let others = agrees(&site, &client, NOTES_PATH, "notes", "").await;
    assert!(others, "{} {}", client.get("/ready").await.text(), server.recent_log());
    assert_eq!(page_state(&client).await["conditions"][0]["key"], "p77");
    let skipped = site.run(&["skip", "page"]).await;
    assert!(skipped.status.success(), "{}", said(&skipped));
    assert!(agrees(&site, &client, PAGES_PATH, "pages", "p77").await);
    site.assert_log_is_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_that_is_found_by_comparing_stops_its_type_and_each_can_be_skipped() {
    let site = site().await;
    site.sql(
        "INSERT INTO pages (id, name) SELECT 'p' || g, CASE WHEN g IN (500, 4000) THEN 'poison' ELSE 'x' END FROM generate_series(1, 5000) g; \
         INSERT INTO notes SELECT 'n' || g, '' FROM generate_series(1, 5000) g",
    );
    let server = site.begin_server().await;
    let client = server.client();
    assert!(has_stopped(&client).await, "{}", client.get("/ready").await.text());
    assert!(agrees(&site, &client, NOTES_PATH, "notes", "").await);
    let mut skipped = Vec::new();
    for _ in 0..2 {
        assert!(has_stopped(&client).await, "{}", client.get("/ready").await.text());
        let key = page_state(&client).await["conditions"][0]["key"].clone();
        let output = site.run(&["skip", "page"]).await;
        assert!(output.status.success(), "{}", said(&output));
        assert!(within(PATIENCE, async || page_state(&client).await["conditions"][0]["key"] != key).await);
        skipped.push(key);
    }
    skipped.sort_by_key(|key| key.as_str().map(str::to_owned));
    assert_eq!(skipped, ["p4000", "p500"]);
    let complete = async || {
        if client.get("/v1/entities/pages?offset=now").await.status != 200 {
            return false;
        }
        let stream = state(&client, PAGES_PATH).await;
        stream.len() == 4998 && !stream.contains_key("p500") && !stream.contains_key("p4000")
    };
    assert!(within(PATIENCE, complete).await);
    site.assert_log_is_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_is_no_rows_fault_stops_no_entity_type() {
    let site = site().await;
    let server = site.server().await;
    let client = server.client();
    site.sql("ALTER TABLE bourn.activities RENAME COLUMN value TO away");
    site.sql("INSERT INTO pages (id) VALUES ('p1')");
    let stalls = async || client.get("/ready").await.status == 503;
    assert!(within(PATIENCE, stalls).await, "{}", client.get("/ready").await.text());
    assert_ne!(page_state(&client).await["state"], "stopped");
    site.sql("ALTER TABLE bourn.activities RENAME COLUMN away TO value");
    assert!(agrees(&site, &client, PAGES_PATH, "pages", "").await);
    assert_ne!(page_state(&client).await["state"], "stopped");
}
