//! Tables that are altered, dropped and recreated while they are streamed: columns come and go without a restart, and
//! what cannot be streamed any more stops its own entity type alone.

use serde_json::json;

use crate::load::{Load, on_pages};
use crate::site::{PAGE, PAGES, PAGES_PATH, Site, is_ready, said, says};
use crate::support::{Bourn, eventually};

const NOTES: &str = "CREATE TABLE notes (id text PRIMARY KEY, body text);";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\n";

async fn pages_and_notes() -> (Site, Bourn) {
    let site = Site::new(&[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).await.eager();
    site.sql("INSERT INTO pages (id, name) SELECT 'p' || i, 'first' FROM generate_series(1, 50) i; INSERT INTO notes VALUES ('n0', 'x')");
    let server = site.server().await;
    (site, server)
}

/// Asserts that a change of the notes is in their stream at once, whatever is wrong with the pages.
async fn assert_notes_go_on(site: &Site, server: &Bourn, id: &str) {
    site.sql(&format!("INSERT INTO notes VALUES ('{id}', 'x')"));
    eventually("the note is in its stream", async || {
        server
            .client()
            .read_all("/v1/entities/notes", "-1")
            .await
            .0
            .iter()
            .any(|message| message["key"] == id)
    })
    .await;
    assert_eq!(server.client().get(&format!("/v1/entities/notes/{id}")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_may_be_added_dropped_renamed_and_retyped() {
    let (site, server) = pages_and_notes().await;
    for (i, change) in [
        "ADD COLUMN colour text",
        "ADD COLUMN rank int NOT NULL DEFAULT 7",
        "ADD COLUMN made timestamptz DEFAULT clock_timestamp()",
        "RENAME COLUMN colour TO paint",
        "ALTER COLUMN rank TYPE text",
        "ALTER COLUMN rank TYPE numeric USING rank::numeric / 3",
        "DROP COLUMN paint",
        "DROP COLUMN rank, ADD COLUMN rank jsonb DEFAULT '{\"a\": 1.50}'",
        "ALTER COLUMN name DROP NOT NULL",
    ]
    .iter()
    .enumerate()
    {
        site.sql(&format!(
            "ALTER TABLE pages {change}; UPDATE pages SET content = 'c{i}' WHERE id = 'p{}'",
            i + 1
        ));
        site.assert_agrees(&server, "pages").await;
        assert_notes_go_on(&site, &server, &format!("n{}", i + 1)).await;
    }
    let made = server.client().post(PAGES_PATH, &[], &json!({ "id": "new", "rank": [1] })).await;
    assert_eq!((made.status, &made.json()["rank"]), (201, &json!([1])));
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_may_change_while_many_write() {
    let (site, server) = pages_and_notes().await;
    let load = Load::start(&site.database.url(), 4, 700, &on_pages());
    for i in 0..6 {
        load.more(30).await;
        let change = match i % 3 {
            0 => format!("ADD COLUMN c{i} int DEFAULT {i}"),
            1 => format!("ALTER COLUMN c{} TYPE text", i - 1),
            _ => format!("DROP COLUMN c{}", i - 2),
        };
        // The table's lock and the writers' may stand crosswise.
        eventually("the table is altered", async || {
            site.try_sql(&format!("ALTER TABLE pages {change}")).is_ok()
        })
        .await;
    }
    load.more(30).await;
    load.end().await;
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_and_made_anew_stops_its_entity_type_alone_and_comes_back() {
    let (site, server) = pages_and_notes().await;
    let client = server.client();
    let (_, offset) = client.read_all(PAGES_PATH, "-1").await;
    site.sql("DROP TABLE pages");
    says(&client, "page: the database has no table `pages`").await;
    client.get(PAGES_PATH).await.assert_error(503, "ENTITY_UNAVAILABLE");
    client.post(PAGES_PATH, &[], &json!({ "id": "x" })).await.assert_error(503, "ENTITY_UNAVAILABLE");
    client.get(&format!("{PAGES_PATH}?offset=-1")).await.assert_error(503, "ENTITY_UNAVAILABLE");
    assert_notes_go_on(&site, &server, "n1").await;
    let entities = client.get("/ready").await.json()["entities"].clone();
    assert_eq!((&entities[0]["state"], &entities[1]["state"]), (&json!("unavailable"), &json!("ready")));

    site.sql(&format!(
        "{PAGES} INSERT INTO pages (id, name) VALUES ('p1', 'first'), ('p2', 'other'), ('fresh', 'x')"
    ));
    says(&client, "does not name table").await;
    assert_notes_go_on(&site, &server, "n2").await;
    site.prepare().await;
    is_ready(&client).await;
    site.assert_agrees(&server, "pages").await;
    // A reader that followed from before gets the difference.
    let (messages, _) = client.read_all(PAGES_PATH, &offset).await;
    let gone = messages.iter().filter(|message| message["headers"]["operation"] == "delete").count();
    assert_eq!(gone, 48, "of the fifty two are there again");
    site.sql("UPDATE pages SET name = 'again'");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_its_scope_key_or_identity_is_told_and_comes_back() {
    let (site, server) = pages_and_notes().await;
    let client = server.client();
    for (i, (break_it, words, mend_it)) in [
        (
            "ALTER TABLE pages DROP COLUMN organization_id",
            "organization_id",
            "ALTER TABLE pages ADD COLUMN organization_id text DEFAULT 'acme'",
        ),
        (
            "ALTER TABLE pages RENAME COLUMN id TO ident",
            "no column `id`",
            "ALTER TABLE pages RENAME COLUMN ident TO id",
        ),
        (
            "ALTER TABLE pages REPLICA IDENTITY NOTHING",
            "REPLICA IDENTITY FULL",
            "ALTER TABLE pages REPLICA IDENTITY FULL",
        ),
        (
            "ALTER PUBLICATION bourn DROP TABLE pages",
            "`bourn prepare --apply` fixes it",
            "ALTER PUBLICATION bourn ADD TABLE pages",
        ),
        (
            "ALTER PUBLICATION bourn SET TABLE notes, pages WHERE (name = 'first')",
            "leaves out rows",
            "ALTER PUBLICATION bourn SET TABLE notes, pages",
        ),
        ("ALTER TABLE pages RENAME TO papers", "no table `pages`", "ALTER TABLE papers RENAME TO pages"),
    ]
    .into_iter()
    .enumerate()
    {
        site.sql(break_it);
        // What happens to it meanwhile is made good.
        let _ = site.try_sql(&format!("UPDATE pages SET content = 'b{i}'"));
        let _ = site.try_sql("DELETE FROM papers WHERE ctid IN (SELECT ctid FROM papers LIMIT 5)");
        says(&client, words).await;
        assert_notes_go_on(&site, &server, &format!("n{}", i + 1)).await;
        site.sql(mend_it);
        is_ready(&client).await;
        site.assert_agrees(&server, "pages").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_may_alter_the_table_that_it_changes() {
    let (site, server) = pages_and_notes().await;
    for sql in [
        "BEGIN; UPDATE pages SET content = 'a' WHERE id = 'p1'; ALTER TABLE pages ADD COLUMN n int DEFAULT 1; \
         UPDATE pages SET n = 2 WHERE id = 'p2'; COMMIT",
        "BEGIN; INSERT INTO pages (id, n) VALUES ('x', 3); ALTER TABLE pages ALTER COLUMN n TYPE text; \
         UPDATE pages SET n = 'four' WHERE id IN ('x', 'p3'); ALTER TABLE pages DROP COLUMN content; DELETE FROM pages WHERE id = 'p4'; COMMIT",
        "BEGIN; ALTER TABLE pages ADD COLUMN gone int; UPDATE pages SET gone = 1; ROLLBACK",
        "BEGIN; TRUNCATE pages; ALTER TABLE pages RENAME COLUMN n TO m; INSERT INTO pages (id, m) VALUES ('p1', 'x'); COMMIT",
        "BEGIN; DROP TABLE notes; CREATE TABLE notes (body text, id text PRIMARY KEY); ALTER PUBLICATION bourn ADD TABLE notes; \
         INSERT INTO notes VALUES ('x', 'n1'), ('x', 'n2'); COMMIT",
    ] {
        site.sql(sql);
        site.assert_agrees(&server, "pages").await;
        site.assert_agrees(&server, "notes").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_need_quoting_and_other_schemas_are_as_good_as_any() {
    const TABLES: &str = r#"CREATE SCHEMA "App"; CREATE TYPE "App"."Mood" AS ENUM ('a', 'b');
        CREATE TABLE "App"."Odd ""Name" ("The Id" text PRIMARY KEY, "sel'ect" int, "order" "App"."Mood", "é\" text[]);
        CREATE TABLE "App".pages (id text PRIMARY KEY, name text); CREATE TABLE pages (id text PRIMARY KEY, name text);"#;
    const ENTITIES: &str = r#"
        [[entity]]
        type = 'odd'
        table = 'App.Odd "Name'
        key = 'The Id'
        scope = "sel'ect"
        [[entity]]
        type = 'app-page'
        table = 'App.pages'
        [[entity]]
        type = 'page'
        table = 'pages'
    "#;
    let site = Site::new(TABLES, ENTITIES).await.eager();
    site.sql(r#"INSERT INTO "App"."Odd ""Name" VALUES ('a', 1, 'a', '{x}'); INSERT INTO "App".pages VALUES ('p', 'app'); INSERT INTO pages VALUES ('p', 'public')"#);
    let server = site.server().await;
    let client = server.client();
    site.sql(r#"UPDATE "App"."Odd ""Name" SET "sel'ect" = 2, "order" = 'b'; UPDATE "App".pages SET name = 'app 2'"#);
    site.captured().await;
    let odd = "/v1/entities/App.Odd%20%22Name";
    let row = json!({ "The Id": "a", "sel'ect": 2, "order": "b", "é\\": ["x"] });
    assert_eq!(client.get(&format!("{odd}/a")).await.json(), row);
    assert_eq!(client.read_all(odd, "-1").await.0.last().unwrap()["value"], row);
    let changed = client.patch(&format!("{odd}/a"), &[], &json!({ "order": "a" })).await;
    assert_eq!((changed.status, &changed.json()["order"]), (200, &json!("a")));
    for (stream, name) in [("/v1/entities/App.pages", "app 2"), (PAGES_PATH, "public")] {
        assert_eq!(client.get(&format!("{stream}/p")).await.json()["name"], name);
        assert_eq!(client.read_all(stream, "-1").await.0.last().unwrap()["value"]["name"], name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_served_as_one_entity_type_and_a_second_one_is_refused_in_words() {
    let twice = format!("{PAGE}[[entity]]\ntype = 'again'\ntable = 'public.pages'\n");
    let site = Site::new(PAGES, &twice).await.eager();
    let server = site.begin_server().await;
    let client = server.client();
    says(&client, "streamed as entity type `page` already").await;
    let refused = client.get("/v1/entities/public.pages?offset=-1").await;
    refused.assert_error(503, "ENTITY_UNAVAILABLE");
    let check = site.run(&["check"]).await;
    assert!(
        !check.status.success() && said(&check).contains("a table has one entity type"),
        "{}",
        said(&check)
    );
    site.sql("INSERT INTO pages (id) VALUES ('p1'), ('p2')");
    eventually("both rows are told", async || {
        let told = client.get(&format!("{PAGES_PATH}?offset=-1")).await;
        told.status == 200 && told.messages().len() == 2
    })
    .await;
}
