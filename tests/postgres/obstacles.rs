//! What stands in the way when a server starts: it says what is wrong and what fixes it, and nothing is missing once it
//! is mended.

use std::process::Stdio;

use bourn_testkit::Cluster;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, is_ready, said, says};
use crate::support::eventually;

const SCRAM: &str = "scram-sha-256";

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_and_addresses_are_told_in_one_line() {
    let cluster =
        Cluster::options().scram("app", "secret").hba(&format!("host all nobody all {SCRAM}")).start();
    let mut site = Site::on(&cluster, PAGES, PAGE).await;
    site.set("startup_timeout", "0s");
    let port = cluster.port();
    for (url, words) in [
        (site.database.url_as("app", "wrong"), "see the user and the password"),
        (site.database.url_as("nobody", "at-all"), "see the user and the password"),
        (cluster.url("missing"), "make it, or name another"),
        (format!("postgres://app:secret@127.0.0.1:1/{port}"), "is it running, and is the address right?"),
        (format!("postgres://app:secret@nowhere.invalid:{port}/x"), "is the address right?"),
    ] {
        site.reach_by(&url);
        let refused = site.refused().await;
        let line =
            refused.lines().find(|line| line.starts_with("bourn: ")).unwrap_or_else(|| panic!("{refused}"));
        assert!(
            line.contains(words) && !refused.contains("wrong@") && !refused.contains("secret"),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_replicate_serves_what_there_is_until_it_may() {
    let mut site = Site::new(PAGES, PAGE).await.eager();
    let role = format!("plain_{}", site.database.name());
    site.sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; ALTER SCHEMA bourn OWNER TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA bourn, public TO {role}; \
         INSERT INTO pages (id) VALUES ('p1')"
    ));
    site.reach_by(&site.database.url_as(&role, "x"));
    let server = site.begin_server().await;
    let client = server.client();
    says(&client, &format!("ALTER ROLE \\\"{role}\\\" REPLICATION")).await;
    client.make_page("p2", "t1").await;
    assert_eq!(client.get("/v1/transactions/t1").await.json()["state"], "accepted");
    assert_eq!(client.get(&format!("{PAGES_PATH}?offset=-1")).await.status, 200);
    site.sql(&format!("ALTER ROLE {role} REPLICATION"));
    site.assert_agrees(&server, "pages").await;
    assert_eq!(client.get("/v1/transactions/t1").await.json()["state"], "confirmed");
    drop(server);
    eventually("the role can go", async || {
        site.try_sql(&format!("DROP SCHEMA bourn CASCADE; DROP OWNED BY {role}; DROP ROLE {role}")).is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_replicate_follows_what_another_server_captures() {
    let mut site = Site::new(PAGES, PAGE).await.eager();
    let leads = site.server().await;
    let role = format!("follows_{}", site.database.name());
    site.sql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA bourn TO {role}; \
         GRANT ALL ON ALL TABLES IN SCHEMA bourn, public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA bourn TO {role}"
    ));
    site.reach_by(&site.database.url_as(&role, "x"));
    let follows = site.server().await;
    site.sql("INSERT INTO pages (id) VALUES ('sql')");
    follows.client().make_page("rest", "t1").await;
    for server in [&follows, &leads] {
        site.assert_agrees(server, "pages").await;
    }
    assert_eq!(follows.client().get("/v1/transactions/t1").await.json()["state"], "confirmed");
    drop(follows);
    eventually("the role can go", async || {
        site.try_sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_tell_databases_apart_is_told_what_to_grant() {
    let mut site = Site::new(PAGES, PAGE).await.eager();
    let role = format!("blind_{}", site.database.name());
    site.sql(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; ALTER SCHEMA bourn OWNER TO {role}; \
         GRANT ALL ON ALL TABLES IN SCHEMA bourn, public TO {role}; \
         REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; INSERT INTO pages (id) VALUES ('p1')"
    ));
    site.reach_by(&site.database.url_as(&role, "x"));
    let grant = format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO \"{role}\"");
    let checked = said(&site.run(&["check"]).await);
    assert!(checked.contains(&grant), "{checked}");
    let refused = site.refused().await;
    assert!(refused.contains(&grant), "{refused}");
    site.sql(&grant);
    let server = site.server().await;
    site.assert_agrees(&server, "pages").await;
    drop(server);
    eventually("the role can go", async || {
        site.try_sql(&format!("DROP SCHEMA bourn CASCADE; DROP OWNED BY {role}; DROP ROLE {role}")).is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_logical_replication_is_told_and_served_once_it_has_it() {
    let cluster = Cluster::options().setting("wal_level", "replica").start();
    let site = Site::on(&cluster, PAGES, PAGE).await.eager();
    site.sql("INSERT INTO pages (id) VALUES ('p1')");
    let checked = said(&site.run(&["check"]).await);
    assert!(checked.contains("FAIL wal_level is `replica`"), "{checked}");
    let server = site.begin_server().await;
    let client = server.client();
    says(&client, "ALTER SYSTEM SET wal_level = 'logical'").await;
    assert_eq!(client.get(&format!("{PAGES_PATH}/p1")).await.status, 200);
    site.sql("ALTER SYSTEM SET wal_level = 'logical'");
    cluster.restart();
    is_ready(&client).await;
    site.sql("INSERT INTO pages (id) VALUES ('p2')");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_room_for_a_slot_is_told() {
    let cluster = Cluster::options().setting("max_replication_slots", "1").start();
    let site = Site::on(&cluster, PAGES, PAGE).await.eager();
    site.sql("SELECT pg_create_physical_replication_slot('standby')");
    let checked = said(&site.run(&["check"]).await);
    assert!(checked.contains("FAIL there is no room for a replication slot"), "{checked}");
    let server = site.begin_server().await;
    says(&server.client(), "raise max_replication_slots").await;
    site.sql("INSERT INTO pages (id) VALUES ('p1'); SELECT pg_drop_replication_slot('standby')");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_publication_is_told_and_made_while_the_server_runs() {
    let site = Site::bare(Cluster::shared(), PAGES, PAGE).eager();
    site.sql("INSERT INTO pages (id) VALUES ('p1')");
    let server = site.begin_server().await;
    says(&server.client(), "`bourn prepare --apply` makes it").await;
    site.sql("INSERT INTO pages (id) VALUES ('p2')");
    site.prepare().await;
    site.sql("INSERT INTO pages (id) VALUES ('p3')");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_primary_key_stops_its_entity_type_alone() {
    let tables = format!("{PAGES} CREATE TABLE notes (id text, body text);");
    let entities = format!("{PAGE}[[entity]]\ntype = 'note'\ntable = 'notes'\n");
    let site = Site::new(&tables, &entities).await.eager();
    let server = site.begin_server().await;
    let client = server.client();
    says(&client, "note: ").await;
    let reason = crate::site::problems(&client).await;
    assert!(reason.contains("unique") && reason.contains("`id`"), "{reason}");
    client.get("/v1/entities/notes").await.assert_error(503, "ENTITY_UNAVAILABLE");
    assert!(site.time_to_capture("p1").await.as_secs() < 5, "the pages go on");
    site.sql("INSERT INTO notes VALUES ('n1', 'x'); ALTER TABLE notes ADD PRIMARY KEY (id); INSERT INTO notes VALUES ('n2', 'x')");
    says(&client, "does not name table public.notes; `bourn prepare --apply` fixes it").await;
    site.prepare().await;
    site.assert_agrees(&server, "notes").await;
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_another_program_holds_is_told_and_what_that_took_is_made_good() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let slot = site.slot();
    site.sql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    let mut holder = tokio::process::Command::new("pg_recvlogical")
        .args([
            "--start",
            "--no-loop",
            "-f",
            "/dev/null",
            "-s",
            "1",
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=bourn",
        ])
        .args(["-S", &slot, "-d", &site.database.url()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("pg_recvlogical is installed with PostgreSQL's client");
    eventually("the slot is held", async || site.sender().is_some()).await;
    let server = site.begin_server().await;
    let client = server.client();
    says(&client, "is held by another program (`pg_recvlogical`)").await;
    client.make_page("p1", "t1").await;
    // It takes the change and lets the database forget it.
    let mark = site.sql("SELECT pg_current_wal_insert_lsn()");
    eventually("the change is gone from the stream", async || {
        site.sql(&format!(
            "SELECT confirmed_flush_lsn >= '{mark}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
        )) == "t"
    })
    .await;
    holder.start_kill().unwrap();
    holder.wait().await.unwrap();
    is_ready(&client).await;
    site.sql("INSERT INTO pages (id) VALUES ('p2')");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_plugin_or_database_is_told_by_name() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let slot = site.slot();
    site.sql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding'); INSERT INTO pages (id) VALUES ('p1')"));
    let checked = said(&site.run(&["check"]).await);
    assert!(checked.contains(&format!("FAIL slot `{slot}` is for test_decoding")), "{checked}");
    let server = site.begin_server().await;
    says(&server.client(), "is for the plugin `test_decoding`").await;
    server.client().make_page("p2", "t1").await;
    site.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    site.assert_agrees(&server, "pages").await;

    let mut other = Site::new(PAGES, PAGE).await.eager();
    other.set("slot", &slot);
    let lost = other.begin_server().await;
    says(&lost.client(), "belongs to another database").await;
}
