//! Tables and types that change while they are read: what is answered fits together, and nothing is taken for what it was.

use std::process::Stdio;

use bourn_testkit::Cluster;
use serde_json::{Value, json};

use crate::site::{PAGE, PAGES, PAGES_PATH, Site};
use crate::support::eventually;

const MEASURE: &str = "[[entity]]\ntype = 'measure'\ntable = 'measures'\n";
const MEASURES_PATH: &str = "/v1/entities/measures";

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_waits_for_a_rewrite_has_the_rows_that_came_out_of_it() {
    let table = "CREATE TABLE measures (id text PRIMARY KEY, x int); INSERT INTO measures SELECT 'm' || i, i FROM generate_series(1, 50) i;";
    let site = Site::new(table, MEASURE).await.eager();
    let server = site.server().await;
    let client = server.client();
    let mut psql = site.database.psql_command();
    let rewrite =
        "BEGIN; ALTER TABLE measures ALTER COLUMN x TYPE bigint USING x * 10; SELECT pg_sleep(1); COMMIT";
    let mut psql = psql.args(["-c", rewrite]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    eventually("the table is being rewritten", async || {
        site.sql("SELECT count(*) FROM pg_locks WHERE relation = 'measures'::regclass AND mode = 'AccessExclusiveLock' AND granted") == "1"
    })
    .await;
    let list = client.get(MEASURES_PATH).await;
    assert_eq!(list.status, 200, "{}", list.text());
    let rows = list.json();
    assert_eq!(rows.as_array().unwrap().len(), 50, "{}", list.text());
    assert!(rows.as_array().unwrap().iter().any(|row| row["x"] == 500), "{}", list.text());
    assert!(psql.wait().unwrap().success());
    site.assert_agrees(&server, "measures").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_after_a_type_has_changed_is_what_the_database_makes_of_it() {
    let table = "CREATE TYPE size AS (w int, h int); \
         CREATE TABLE measures (id text PRIMARY KEY, x int, s size); INSERT INTO measures VALUES ('m1', 2, (3, 4)), ('m2', 5, NULL);";
    let mut site = Site::new(table, MEASURE).await;
    // The tables are looked at now and then alone: it is the answers that have to notice.
    site.set("follow_interval", "20s");
    let server = site.server().await;
    let client = server.client();
    let path = format!("{MEASURES_PATH}/m1");
    assert_eq!(client.get(&path).await.json(), json!({ "id": "m1", "x": 2, "s": { "w": 3, "h": 4 } }));
    for change in [
        "ALTER TABLE measures ALTER COLUMN x TYPE text USING '7 of ' || x",
        "ALTER TABLE measures ALTER COLUMN x TYPE text USING '007'",
        "ALTER TABLE measures ALTER COLUMN x TYPE jsonb USING to_jsonb(x)",
        "ALTER TABLE measures ALTER COLUMN x TYPE text USING '12'",
        "ALTER TYPE size RENAME ATTRIBUTE w TO width",
        "ALTER TYPE size ADD ATTRIBUTE d numeric",
        "ALTER TABLE measures RENAME COLUMN x TO y",
        "ALTER TABLE measures ADD COLUMN z bool DEFAULT true",
        "ALTER TABLE measures DROP COLUMN y",
    ] {
        site.sql(change);
        let held = site.table("measures", "id");
        let list = client.get(MEASURES_PATH).await;
        assert_eq!(list.status, 200, "{change}: {}", list.text());
        let listed: Value =
            serde_json::from_str(list.text()).unwrap_or_else(|error| panic!("{error}: {}", list.text()));
        assert_eq!(listed, json!([held["m1"], held["m2"]]), "{change}");
        site.sql("ALTER TABLE measures ADD COLUMN passing int; ALTER TABLE measures DROP COLUMN passing");
        assert_eq!(client.get(&path).await.json(), held["m1"], "{change}");
        site.sql("ALTER TABLE measures ADD COLUMN passing int; ALTER TABLE measures DROP COLUMN passing");
        let patched = client.patch(&path, &[], &json!({})).await;
        assert_eq!((patched.status, patched.json()), (200, held["m1"].clone()), "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_composite_type_whose_attributes_change_is_the_same_in_list_and_stream() {
    let table = "CREATE TYPE size AS (w int); CREATE TABLE measures (id text PRIMARY KEY, s size); INSERT INTO measures VALUES ('m1', ROW(1));";
    let site = Site::new(table, MEASURE).await.eager();
    let server = site.server().await;
    let client = server.client();
    for (i, change) in
        ["ADD ATTRIBUTE h int", "RENAME ATTRIBUTE w TO width", "DROP ATTRIBUTE h"].into_iter().enumerate()
    {
        site.sql(&format!("ALTER TYPE size {change}"));
        let id = format!("n{i}");
        site.sql(&format!("INSERT INTO measures (id) VALUES ('{id}')"));
        site.assert_agrees(&server, "measures").await;
        let listed: Value = client.get(MEASURES_PATH).await.json();
        assert_eq!(listed[0], site.table("measures", "id")["m1"], "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_its_type_or_domain_refuses_is_of_no_row() {
    let table = "CREATE DOMAIN code AS text CHECK (VALUE ~ '^[a-z]+$'); CREATE TABLE measures (id code PRIMARY KEY, x int); INSERT INTO measures VALUES ('abc', 1);";
    let site = Site::new(table, MEASURE).await.eager();
    let server = site.server().await;
    let client = server.client();
    let path = format!("{MEASURES_PATH}/A1");
    client.get(&path).await.assert_error(404, "NOT_FOUND");
    client.patch(&path, &[], &json!({ "x": 2 })).await.assert_error(404, "NOT_FOUND");
    client.delete(&path, &[]).await.assert_error(404, "NOT_FOUND");
    assert_eq!(client.get(&format!("{MEASURES_PATH}/abc")).await.status, 200);
    // No text of PostgreSQL has a NUL.
    for path in [format!("{MEASURES_PATH}/%00"), "/v1/activities?organizationId=%00".into()] {
        let answer = client.get(&path).await;
        assert!(answer.status < 500, "{path}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floating_point_key_is_the_text_of_its_value_everywhere() {
    let table = "CREATE TABLE measures (id float8 PRIMARY KEY, x int); ALTER TABLE measures REPLICA IDENTITY FULL; INSERT INTO measures VALUES (1e20, 0), (1.5e-7, 0);";
    let site = Site::new(table, MEASURE).await.eager();
    let server = site.server().await;
    let client = server.client();
    site.sql("INSERT INTO measures VALUES (1e21, 0), (0.5, 0); UPDATE measures SET x = 1");
    site.captured().await;
    let (messages, _) = client.read_all(MEASURES_PATH, "-1").await;
    assert!(messages.len() >= 8, "{messages:?}");
    for message in &messages {
        assert_eq!(message["key"].as_str().unwrap(), message["value"]["id"].to_string());
    }
    for row in client.get(MEASURES_PATH).await.json().as_array().unwrap() {
        let one = client.get(&format!("{MEASURES_PATH}/{}", row["id"])).await;
        assert_eq!((one.status, &one.json()), (200, row), "{}", one.text());
    }
    let first = client.get(&format!("{MEASURES_PATH}?limit=3")).await;
    let next = first.header("link").split(['<', '>']).nth(1).unwrap().to_owned();
    assert_eq!(client.get(&next).await.json().as_array().unwrap().len(), 1, "{next}");
    assert_eq!(
        client.patch(&format!("{MEASURES_PATH}/100000000000000000000"), &[], &json!({ "x": 7 })).await.status,
        200
    );
    site.sql("DELETE FROM measures WHERE id = 1e21");
    site.captured().await;
    let (messages, _) = client.read_all(MEASURES_PATH, "-1").await;
    assert_eq!(messages.last().unwrap()["key"], "1000000000000000000000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_has_the_servers_own_name_does_not_mix_up_the_tables() {
    let cluster = Cluster::start();
    let table = "CREATE ROLE bourn LOGIN SUPERUSER PASSWORD 'x'; CREATE TABLE public.streams (id text PRIMARY KEY, path text);";
    let mut site = Site::bare(&cluster, table, "[[entity]]\ntype = 'stream'\ntable = 'streams'\n");
    site.reach_by(&site.database.url_as("bourn", "x"));
    site.prepare().await;
    let server = site.server().await;
    let client = server.client();
    assert_eq!(
        site.sql("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = 'bourn'"),
        "public|streams"
    );
    site.sql("INSERT INTO public.streams VALUES ('s1', 'ours')");
    assert_eq!(client.get("/v1/entities/streams").await.json(), json!([{ "id": "s1", "path": "ours" }]));
    site.captured().await;
    assert_eq!(client.read_all("/v1/entities/streams", "-1").await.0.len(), 1);
    // The server's own schema cannot be named either.
    site.configure("[[entity]]\ntype = 'own'\ntable = 'bourn.ledger'\n");
    let checked = crate::site::said(&site.run(&["check"]).await);
    assert!(checked.contains("FAIL own: `bourn.ledger` is the server's own"), "{checked}");
    let printed = crate::site::said(&site.run(&["prepare"]).await);
    assert!(!printed.contains("ADD TABLE"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_encoding_is_served_and_one_of_none_is_refused() {
    let cluster = Cluster::start();
    let mut site = Site::bare(&cluster, "", PAGE).eager();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("other_{}", encoding.to_lowercase());
        cluster.psql(
            "postgres",
            &format!(
                "CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
            ),
        );
        cluster.psql(&name, PAGES);
        site.reach_by(&cluster.url(&name));
        site.set("slot", &name);
        if encoding == "SQL_ASCII" {
            break;
        }
        site.prepare().await;
        let insert = "SET client_encoding = 'UTF8'; INSERT INTO pages (id, organization_id, name) VALUES ('é1', 'ü', 'Größe')";
        cluster.psql(&name, insert);
        let server = site.server().await;
        let client = server.client();
        assert_eq!(
            client
                .post(PAGES_PATH, &[], &json!({ "id": "ñ2", "organization_id": "ü", "name": "año" }))
                .await
                .status,
            201
        );
        cluster.psql(&name, &insert.replace("é1", "é3"));
        eventually("it is captured", async || client.read_all(PAGES_PATH, "-1").await.0.len() == 3).await;
        let scoped = format!("{PAGES_PATH}?organizationId=%C3%BC");
        assert_eq!(client.get(&scoped).await.json().as_array().unwrap().len(), 3);
        let (messages, _) = client.read_all(&scoped, "-1").await;
        assert_eq!(messages[0]["value"]["name"], "Größe");
        assert_eq!(messages.len(), 3);
        assert_eq!(client.get(&format!("{PAGES_PATH}/%C3%A91")).await.json()["name"], "Größe");
        // What the encoding cannot write is nowhere.
        client.get(&format!("{PAGES_PATH}/%E2%82%AC")).await.assert_error(404, "NOT_FOUND");
        client
            .patch(&format!("{PAGES_PATH}/%E2%82%AC"), &[], &json!({ "name": "x" }))
            .await
            .assert_error(404, "NOT_FOUND");
        let nowhere = format!("{PAGES_PATH}?organizationId=%E2%82%AC");
        assert_eq!(client.get(&nowhere).await.json(), json!([]));
        assert_eq!(client.read_all(&nowhere, "-1").await.0, Vec::<Value>::new());
        assert_eq!(client.get("/v1/activities?entityType=page&entityId=%E2%82%AC").await.json(), json!([]));
        let refused = client.patch(&format!("{PAGES_PATH}/%C3%A91"), &[], &json!({ "name": "10 €" })).await;
        assert_eq!(refused.status, 422, "{}", refused.text());
    }
    let checked = crate::site::said(&site.run(&["check"]).await);
    assert!(checked.contains("its encoding is SQL_ASCII"), "{checked}");
    let refused = site.refused().await;
    assert!(refused.contains("its encoding is SQL_ASCII"), "{refused}");
}
