//! Replica identities, large values that an update leaves as they were, and changed keys: whatever the stream leaves
//! out, the log has rows whole.

use serde_json::Value;

use crate::load::{Load, on_pages};
use crate::site::{PAGES_PATH, Site, state};
use crate::support::{Bourn, eventually};

/// Text that does not compress, so that it lies outside the row.
const LARGE: &str = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 400))";
const TABLE: &str = "CREATE TABLE pages (id text PRIMARY KEY, organization_id text NOT NULL DEFAULT 'acme', name text, content text, \
     more jsonb, UNIQUE (id, organization_id));";
const ENTITY: &str =
    "[[entity]]\ntype = 'page'\ntable = 'pages'\nscope = 'organization_id'\nprevious_values = true\n";
const IDENTITIES: [&str; 3] = ["DEFAULT", "USING INDEX pages_id_organization_id_key", "FULL"];

async fn with_identity(identity: &str) -> (Site, Bourn) {
    let site = Site::new(TABLE, ENTITY).await.eager();
    site.sql(&format!("ALTER TABLE pages REPLICA IDENTITY {identity}"));
    // One row that was there before anybody captured.
    site.sql(&format!("INSERT INTO pages (id, name, content) SELECT 'old', 'first', {LARGE}"));
    let server = site.server().await;
    (site, server)
}

async fn messages(server: &Bourn) -> Vec<Value> {
    server.client().read_all(PAGES_PATH, "-1").await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_that_an_update_leaves_as_they_were_stay_in_the_stream() {
    for identity in IDENTITIES {
        let (site, server) = with_identity(identity).await;
        site.sql(&format!(
            "INSERT INTO pages (id, name, content, more) SELECT 'new', 'first', {LARGE}, jsonb_build_object('x', {LARGE})"
        ));
        site.sql("UPDATE pages SET name = 'second'");
        site.assert_agrees(&server, "pages").await;
        // Many versions in one transaction, and rows that came in it.
        site.sql(&format!(
            "BEGIN; INSERT INTO pages (id, content) SELECT 'in' || i, {LARGE} FROM generate_series(1, 3) i; \
             UPDATE pages SET name = 'third'; UPDATE pages SET name = 'fourth'; UPDATE pages SET content = content || 'x' WHERE id = 'new'; \
             UPDATE pages SET name = 'fifth' WHERE id <> 'in2'; DELETE FROM pages WHERE id = 'in2'; COMMIT"
        ));
        site.assert_agrees(&server, "pages").await;
        for message in messages(&server).await {
            let whole = message["headers"]["operation"] == "delete"
                || message["value"]["content"].as_str().is_some_and(|text| text.len() >= 12_800);
            assert!(whole, "{identity}: a version without its large value: {:.300}", message.to_string());
            if message["headers"]["operation"] == "update" {
                assert!(
                    message["old_value"]["content"].is_string(),
                    "{identity}: {:.300}",
                    message.to_string()
                );
                assert!(!message["headers"]["changed_keys"].as_array().unwrap().is_empty());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_keys_and_scopes_leave_one_place_and_enter_another() {
    for identity in IDENTITIES {
        let (site, server) = with_identity(identity).await;
        site.sql("UPDATE pages SET id = 'moved' WHERE id = 'old'");
        site.sql("UPDATE pages SET organization_id = 'other' WHERE id = 'moved'");
        site.sql("UPDATE pages SET id = 'both', organization_id = 'acme' WHERE id = 'moved'");
        site.sql("BEGIN; UPDATE pages SET id = 'x'; UPDATE pages SET id = 'both'; UPDATE pages SET name = 'end'; COMMIT");
        // Two rows swap their keys by way of a third.
        site.sql("INSERT INTO pages (id, name) VALUES ('a', 'A'), ('b', 'B')");
        site.sql(
            "BEGIN; UPDATE pages SET id = 'c' WHERE id = 'a'; UPDATE pages SET id = 'a' WHERE id = 'b'; \
             UPDATE pages SET id = 'b' WHERE id = 'c'; COMMIT",
        );
        site.sql("BEGIN; DELETE FROM pages WHERE id = 'a'; INSERT INTO pages (id, name) VALUES ('a', 'new'); COMMIT");
        site.assert_agrees(&server, "pages").await;
        let other = server.client().read_all(&format!("{PAGES_PATH}?organizationId=other"), "-1").await.0;
        let told: Vec<_> =
            other.iter().map(|message| message["headers"]["operation"].as_str().unwrap()).collect();
        assert_eq!(told, ["insert", "delete"], "{identity}: it came and left");
        let swapped = server.client().get("/v1/entities/pages/b").await.json();
        assert_eq!(swapped["name"], "A", "{identity}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_rows_are_told_in_their_scope_with_their_previous_values() {
    for identity in IDENTITIES {
        let (site, server) = with_identity(identity).await;
        site.sql("BEGIN; UPDATE pages SET name = 'last words'; DELETE FROM pages; COMMIT");
        site.assert_agrees(&server, "pages").await;
        let scoped = server.client().read_all(&format!("{PAGES_PATH}?organizationId=acme"), "-1").await.0;
        let last = scoped.last().unwrap();
        assert_eq!(
            (&last["headers"]["operation"], &last["old_value"]["name"]),
            (&"delete".into(), &"last words".into()),
            "{identity}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changes_while_it_is_softly_deleted_comes_back_as_it_is() {
    for identity in IDENTITIES {
        let (site, server) = with_identity(identity).await;
        site.sql("ALTER TABLE pages ADD COLUMN deleted_at timestamptz");
        site.assert_agrees(&server, "pages").await;
        let client = server.client();
        for change in
            [format!("UPDATE pages SET content = {LARGE}"), "UPDATE pages SET name = 'other'".to_owned()]
        {
            site.sql("UPDATE pages SET deleted_at = now()");
            site.captured().await;
            // The database has it in the log a moment before the server knows.
            eventually("it is gone", async || state(&client, PAGES_PATH).await.is_empty()).await;
            site.sql(&change);
            site.captured().await;
            site.sql("UPDATE pages SET deleted_at = NULL");
            site.assert_agrees(&server, "pages").await;
            // And all of it at once.
            site.sql(&format!(
                "BEGIN; UPDATE pages SET deleted_at = now(); {change}; UPDATE pages SET deleted_at = NULL; COMMIT"
            ));
            site.assert_agrees(&server, "pages").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_compared_again_while_many_write_whatever_its_identity() {
    for (seed, identity) in IDENTITIES.iter().enumerate() {
        let (site, server) = with_identity(identity).await;
        site.sql(&format!("INSERT INTO pages (id, name, content) SELECT 'large' || i, 'x', {LARGE} FROM generate_series(1, 50) i"));
        let load = Load::start(&site.database.url(), 2, 910 + seed as u64, &on_pages());
        for round in 0..4 {
            load.more(50).await;
            // The table is rewritten, so that it is compared with the log, while rows change their keys and scopes.
            site.sql(&format!(
                "ALTER TABLE pages ALTER COLUMN more TYPE jsonb USING '{{\"round\": {round}}}'"
            ));
        }
        load.more(50).await;
        load.end().await;
        site.assert_agrees(&server, "pages").await;
    }
}
