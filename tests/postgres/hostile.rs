//! Rows, tables and connections that do their worst: capture goes on, and the stream still adds up to the table.

use std::process::Stdio;

use bourn_testkit::Cluster;

use crate::site::{PAGE, PAGES, Site, state};
use crate::support::{PATIENCE, eventually, within};

#[tokio::test(flavor = "multi_thread")]
async fn ids_keys_and_scopes_of_any_length_are_logged() {
    let site = Site::new(&PAGES.replace("transactions jsonb", "transactions json"), PAGE).await;
    let server = site.server().await;
    let noise = |pieces: u32| {
        format!("(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, {pieces}))")
    };
    site.sql(&format!(
        "INSERT INTO pages (id, transactions) VALUES ('p1', json_build_object('insert', {}));
         INSERT INTO pages (id, last_client_id) VALUES ('p2', {});
         INSERT INTO pages (id, organization_id) VALUES ('p3', {});
         INSERT INTO pages (id) VALUES (left({}, 2680));
         INSERT INTO pages (id, transactions) VALUES ('p4', '{{\"insert\":\"\\u0000\"}}');
         UPDATE pages SET name = 'after';",
        noise(120),
        noise(200),
        noise(400),
        noise(90)
    ));
    site.captured().await;
    // PostgreSQL itself cannot give this one as `jsonb`, with which the others are compared.
    site.sql("DELETE FROM pages WHERE id = 'p4'");
    site.assert_agrees(&server, "pages").await;
    let ids =
        "SELECT count(*) FROM bourn.activities WHERE transaction_id IS NOT NULL OR client_id IS NOT NULL";
    assert_eq!(site.sql(ids), "0", "what cannot be an id is none");
    let plan = site.sql(
        "SET enable_seqscan = off; EXPLAIN SELECT seq FROM bourn.activities WHERE hashtextextended(entity_id, 0) = hashtextextended('p1', 0) \
         AND entity_id = 'p1' AND entity_type = 'page' ORDER BY seq DESC LIMIT 1",
    );
    assert!(plan.contains("activities_entity"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_survives_the_rows_of_another_table_within_it() {
    let mut site = Site::new(&format!("{PAGES} CREATE TABLE other (x int)"), PAGE).await;
    site.set("leader_timeout", "2s");
    let server = site.server().await;
    site.sql(
        "BEGIN; INSERT INTO pages (id) SELECT 'p' || g FROM generate_series(1, 6000) g; \
         INSERT INTO other SELECT g FROM generate_series(1, 3000000) g; COMMIT",
    );
    site.assert_agrees(&server, "pages").await;
    assert!(!server.recent_log().contains("does not capture any more"), "{}", server.recent_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_is_compared_anew_whether_it_was_being_compared_or_not() {
    let site = Site::new(
        "CREATE TABLE m (id int PRIMARY KEY, x int); ALTER TABLE m REPLICA IDENTITY FULL; \
         INSERT INTO m SELECT g, g FROM generate_series(1, 60000) g",
        "[[entity]]\ntype = 'm'\ntable = 'm'\n",
    )
    .await;
    let server = site.begin_server().await;
    eventually("some of it is compared", async || {
        site.sql("SELECT coalesce(max(compared), 0) >= 4000 FROM bourn.entities") == "t"
    })
    .await;
    site.sql("ALTER TABLE m ALTER COLUMN x TYPE int USING x + 1");
    site.assert_agrees(&server, "m").await;
    assert_eq!(site.sql("SELECT count(*) FROM bourn.activities WHERE action = 'delete'"), "0");
    site.sql("ALTER TABLE m ALTER COLUMN x TYPE int USING x * 100");
    site.assert_agrees(&server, "m").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_whose_type_or_label_changes_end_under_their_old_names() {
    let site = Site::new(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE m (id int PRIMARY KEY); ALTER TABLE m REPLICA IDENTITY FULL; \
         CREATE TABLE n (id mood PRIMARY KEY); ALTER TABLE n REPLICA IDENTITY FULL; INSERT INTO m VALUES (1), (2); INSERT INTO n VALUES ('sad'), ('ok')",
        "[[entity]]\ntype = 'm'\ntable = 'm'\n[[entity]]\ntype = 'n'\ntable = 'n'\n",
    )
    .await;
    let server = site.server().await;
    site.assert_agrees(&server, "m").await;
    site.sql(
        "ALTER TABLE m ALTER COLUMN id TYPE uuid USING lpad(id::text, 32, '0')::uuid; ALTER TYPE mood RENAME VALUE 'sad' TO 'glum'",
    );
    for table in ["m", "n"] {
        site.assert_agrees(&server, table).await;
    }
    let keys: Vec<_> = state(&server.client(), "/v1/entities/n").await.into_keys().collect();
    assert_eq!(keys, ["glum", "ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_column_may_have_a_parameter_in_its_name() {
    let site = Site::new(
        "CREATE TABLE m (\"id$1\" text PRIMARY KEY, id text); ALTER TABLE m REPLICA IDENTITY FULL; INSERT INTO m VALUES ('a', 'a')",
        "[[entity]]\ntype = 'm'\ntable = 'm'\nkey = 'id$1'\n",
    )
    .await;
    let server = site.server().await;
    site.sql("ALTER TABLE m ADD COLUMN more int DEFAULT 7");
    site.assert_agrees(&server, "m").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_rows_that_wait_for_the_log_wait_in_the_database() {
    let cluster = Cluster::start();
    let mut site = Site::on(&cluster, PAGES, PAGE).await;
    site.set("capture_timeout", "120s");
    site.set("capture_memory", "32MiB");
    let server = site.server().await;
    let mut lock = site.database.psql_command();
    let mut lock = lock
        .args(["-c", "BEGIN; LOCK TABLE bourn.log; SELECT pg_sleep(100)"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let holds = "SELECT count(*) FROM pg_locks WHERE relation = 'bourn.log'::regclass AND mode = 'AccessExclusiveLock' AND granted";
    eventually("the log is locked", async || site.sql(holds) == "1").await;
    for _ in 0..4 {
        site.sql("INSERT INTO pages (id, content) SELECT gen_random_uuid(), repeat(md5(random()::text), 32768) FROM generate_series(1, 100)");
    }
    let sent = format!(
        "SELECT pg_wal_lsn_diff(sent_lsn, (SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}')) FROM pg_stat_replication",
        site.slot()
    );
    let mut before = String::new();
    within(PATIENCE, async || {
        let now = site.sql(&sent);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        std::mem::replace(&mut before, now.clone()) == now && !now.is_empty() && now != "0"
    })
    .await;
    let memory = server.resident();
    assert!(memory < 200 << 20, "{memory} bytes are resident");
    site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(100)%' AND pid <> pg_backend_pid()");
    let _ = lock.wait();
    site.captured().await;
    assert_eq!(site.sql("SELECT count(*) FROM bourn.activities"), "400");
}
