//! Rows that the database itself cannot give: they stop their own entity type, by their keys, and can be passed over.

use std::collections::BTreeMap;

use bourn_testkit::Cluster;
use serde_json::Value;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, said, state};
use crate::support::{Client, PATIENCE, within};

const NOTES: &str = "CREATE TABLE notes (id int PRIMARY KEY, body text);";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\n";
const NOTES_PATH: &str = "/v1/entities/notes";

/// The pages that have come, if the stream is served.
async fn pages(client: &Client) -> BTreeMap<String, Value> {
    match client.get(&format!("{PAGES_PATH}?offset=now")).await.status {
        200 => state(client, PAGES_PATH).await,
        _ => BTreeMap::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_database_cannot_give_stops_its_own_entity_type_until_an_operator_skips_it() {
    let cluster = Cluster::start();
    let mut site = Site::bare(&cluster, "", &[PAGE, NOTE].concat()).eager();
    // The encoding has bytes that stand for no character.
    cluster.psql(
        "postgres",
        "CREATE DATABASE other ENCODING 'WIN1252' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'",
    );
    let sql = |sql: &str| cluster.psql("other", sql);
    sql(&[PAGES, NOTES].concat());
    sql(
        "INSERT INTO pages (id, name) SELECT 'p' || i, CASE i WHEN 1234 THEN chr(129) ELSE 'x' END FROM generate_series(1, 5000) i; \
         INSERT INTO notes SELECT i, '' FROM generate_series(1, 10) i",
    );
    site.reach_by(&cluster.url("other"));
    site.set("slot", "other");
    site.prepare().await;
    let server = site.begin_server().await;
    let client = server.client();

    let condition = async || {
        let ready = client.get("/ready").await.json();
        ready["entities"].as_array().unwrap().iter().find(|entity| entity["type"] == "page").unwrap()["conditions"][0].clone()
    };
    assert!(within(PATIENCE, async || condition().await["key"] == "p1234").await, "{}", condition().await);
    let reason = condition().await["reason"].to_string();
    assert!(reason.contains("cannot be read") && reason.contains("22P05"), "{reason}");
    assert!(within(PATIENCE, async || state(&client, NOTES_PATH).await.len() == 10).await);
    let skipped = site.run(&["skip", "page"]).await;
    assert!(skipped.status.success() && said(&skipped).contains("`p1234`"), "{}", said(&skipped));
    let complete = async || pages(&client).await.len() == 4999;
    assert!(within(PATIENCE, complete).await, "{}", client.get("/ready").await.text());

    // A change of it ends the replication stream; others come all the same.
    sql(
        "UPDATE pages SET content = 'y' WHERE id = 'p1234'; UPDATE pages SET name = 'y' WHERE id = 'p1'; INSERT INTO notes VALUES (11, '')",
    );
    assert!(
        within(PATIENCE, async || pages(&client).await.get("p1").is_some_and(|page| page["name"] == "y"))
            .await
    );
    assert!(within(PATIENCE, async || state(&client, NOTES_PATH).await.len() == 11).await);
    // Once it can be read it is there.
    sql("UPDATE pages SET name = 'fine' WHERE id = 'p1234'");
    assert!(
        within(PATIENCE, async || pages(&client)
            .await
            .get("p1234")
            .is_some_and(|page| page["name"] == "fine"))
        .await
    );
    // One that the log has leaves the streams when it cannot be read any more.
    sql("UPDATE pages SET name = chr(129) WHERE id = 'p1234'");
    assert!(within(PATIENCE, complete).await, "{}", client.get("/ready").await.text());
}
