//! `bourn check` and `bourn prepare` on a database of the user's own, and the least that a role must be allowed.

use bourn_testkit::Cluster;
use serde_json::json;

use crate::holder::Holder;
use crate::site::{PAGE, PAGES, PAGES_PATH, Site, said};
use crate::support::eventually;

const BARE_PAGES: &str = "CREATE TABLE pages (id text PRIMARY KEY, organization_id text, name text NOT NULL DEFAULT '', \
     content text, transactions jsonb, last_client_id text); INSERT INTO pages (id) VALUES ('p1'), ('p2');";
const NOTES: &str = "CREATE TABLE notes (body text);";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_lacks_is_told_printed_as_sql_and_done() {
    let site = Site::bare(Cluster::shared(), &[BARE_PAGES, NOTES].concat(), &[PAGE, NOTE].concat());
    let before = site.run(&["check"]).await;
    let text = said(&before);
    assert!(!before.status.success(), "{text}");
    for line in [
        "FAIL publication `bourn` is missing; `bourn prepare --apply` makes it",
        "FAIL note: table `notes` has no column `id`",
        "ok   wal_level is `logical`",
        "ok   page: table public.pages with 6 columns",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    site.configure(PAGE);
    let printed = site.run(&["prepare"]).await;
    assert!(printed.status.success(), "{}", said(&printed));
    let sql = String::from_utf8(printed.stdout).unwrap();
    for part in [
        "CREATE SCHEMA bourn",
        "REPLICA IDENTITY FULL",
        "CREATE PUBLICATION \"bourn\"",
        "ADD TABLE public.pages",
    ] {
        assert!(sql.contains(part), "{part}: {sql}");
    }
    let things = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'bourn') + (SELECT count(*) FROM pg_publication)";
    assert_eq!(site.sql(things), "0", "it was only printed");
    site.sql(&sql);
    let after = site.run(&["check"]).await;
    assert!(after.status.success() && !said(&after).contains("FAIL"), "{}", said(&after));
    // Doing it again does nothing.
    let again = String::from_utf8(site.run(&["prepare"]).await.stdout).unwrap();
    let rest: Vec<&str> = again.lines().filter(|line| !["BEGIN;", "COMMIT;", ""].contains(line)).collect();
    assert!(rest.is_empty(), "{again}");
    site.prepare().await;
    site.prepare().await;
    let server = site.server().await;
    site.assert_agrees(&server, "pages").await;
    assert_eq!(server.client().read_all(PAGES_PATH, "-1").await.0.len(), 2, "from the first row on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_generated_column_can_still_be_written_once_it_is_published() {
    let table = "CREATE TABLE pages (id text PRIMARY KEY, name text, length int GENERATED ALWAYS AS (length(name)) STORED)";
    let site = Site::new(table, "[[entity]]\ntype = 'page'\ntable = 'pages'\n").await.eager();
    site.sql("INSERT INTO pages VALUES ('p1', 'x'), ('p2', 'y')");
    let server = site.server().await;
    site.sql("UPDATE pages SET name = 'xyz' WHERE id = 'p1'; DELETE FROM pages WHERE id = 'p2'");
    site.captured().await;
    let (messages, _) = server.client().read_all(PAGES_PATH, "-1").await;
    assert_eq!(messages.last().unwrap()["headers"]["operation"], "delete");
    assert_eq!(
        messages[2]["value"],
        json!({ "id": "p1", "name": "xyz" }),
        "computed columns are not streamed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_may_prepare_at_once() {
    let site = Site::bare(Cluster::shared(), PAGES, PAGE);
    tokio::join!(site.prepare(), site.prepare(), site.prepare(), site.prepare());
    let checked = site.run(&["check"]).await;
    assert!(checked.status.success(), "{}", said(&checked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_the_least_privileges_is_told_what_it_lacks_and_then_serves() {
    let cluster = Cluster::shared();
    let mut site = Site::bare(cluster, BARE_PAGES, PAGE);
    let role = format!("app_{}", site.database.name());
    site.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'secret'"));
    let owner = site.url().to_owned();
    site.reach_by(&site.database.url_as(&role, "secret"));

    let lacks = said(&site.run(&["check"]).await);
    for line in [
        format!("role `{role}` may not replicate: ALTER ROLE \"{role}\" REPLICATION"),
        format!("CREATE SCHEMA bourn AUTHORIZATION \"{role}\""),
        format!("page: role `{role}` may not read it: GRANT SELECT ON public.pages TO \"{role}\""),
        "FAIL publication `bourn` is missing".to_owned(),
    ] {
        assert!(lacks.contains(&line), "{line}: {lacks}");
    }
    let refused = site.refused().await;
    assert!(refused.contains("CREATE SCHEMA bourn AUTHORIZATION"), "{refused}");

    // What check has said, by the hand of who may do it.
    site.sql(&format!(
        "ALTER ROLE \"{role}\" REPLICATION; CREATE SCHEMA bourn AUTHORIZATION \"{role}\"; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON public.pages TO \"{role}\""
    ));
    // The tables' owner publishes them with what prepare prints; the log's tables are the server's own to make.
    let printed = said(&site.run(&["prepare"]).await);
    let publishing: String = printed
        .lines()
        .filter(|line| line.contains("PUBLICATION") || line.contains("REPLICA IDENTITY"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(
        publishing.contains("CREATE PUBLICATION") && publishing.contains("REPLICA IDENTITY FULL"),
        "{printed}"
    );
    site.sql(&publishing);
    let checked = site.run(&["check"]).await;
    assert!(checked.status.success(), "{}", said(&checked));

    let mut server = site.server().await;
    let client = server.client();
    client.make_page("p3", "t1").await;
    let changed = client.patch("/v1/entities/pages/p3", &[], &json!({ "name": "y" })).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    assert_eq!(client.delete("/v1/entities/pages/p1", &[]).await.status, 200);
    site.sql("UPDATE pages SET content = 'by another'; TRUNCATE pages; INSERT INTO pages (id) VALUES ('p4')");
    site.assert_agrees(&server, "pages").await;
    server.kill().await;
    // The slot is lost meanwhile: the role can recreate it.
    let slot = site.slot();
    eventually("the slot is free", async || {
        site.try_sql(&format!("SELECT pg_drop_replication_slot('{slot}')")).is_ok()
    })
    .await;
    site.sql("DELETE FROM pages");
    server.restart().await;
    site.assert_agrees(&server, "pages").await;
    drop(server);
    site.reach_by(&owner);
    eventually("the role can go", async || {
        site.try_sql(&format!("DROP SCHEMA bourn CASCADE; DROP OWNED BY {role}; DROP ROLE {role}")).is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_prepare_does_is_reported_line_by_line() {
    let mut site = Site::bare(Cluster::shared(), &[BARE_PAGES, NOTES].concat(), &[PAGE, NOTE].concat());
    let done = said(&site.run(&["prepare", "--apply"]).await);
    for line in [
        "done: the log's tables in schema `bourn`",
        "done: CREATE PUBLICATION \"bourn\"",
        "done: ALTER PUBLICATION \"bourn\" ADD TABLE public.pages;",
        "left: note: table `notes` has no column `id`",
    ] {
        assert!(done.contains(line), "{line}: {done}");
    }
    site.configure(PAGE);
    let again = said(&site.run(&["prepare", "--apply"]).await);
    assert!(
        again.starts_with("nothing to do: the database is prepared") && !again.contains("done:"),
        "{again}"
    );
    // A role is given the right to replicate where it may be, and is said to need it where not.
    let role = format!("plain_{}", site.database.name());
    site.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; ALTER SCHEMA bourn OWNER TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA bourn, public TO {role}"));
    site.reach_by(&site.database.url_as(&role, "x"));
    let grant = format!("ALTER ROLE \"{role}\" REPLICATION;");
    let printed = said(&site.run(&["prepare"]).await);
    assert!(printed.contains(&grant), "{printed}");
    let left = said(&site.run(&["prepare", "--apply"]).await);
    assert!(left.contains(&format!("left: {grant} -- a superuser has to run this")), "{left}");
    site.sql(&grant);
    let printed = said(&site.run(&["prepare"]).await);
    assert!(!printed.contains("ALTER ROLE"), "{printed}");
    site.sql(&format!("DROP SCHEMA bourn CASCADE; DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_a_newer_version_is_neither_served_nor_prepared() {
    let site = Site::new(PAGES, PAGE).await;
    site.sql("INSERT INTO bourn.migrations VALUES (99)");
    for said in [
        said(&site.run(&["check"]).await),
        said(&site.run(&["prepare", "--apply"]).await),
        site.refused().await,
    ] {
        assert!(
            said.contains("the log's tables have version 99, and this server knows versions up to"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_refuses_is_told_in_words_of_our_own() {
    let site = Site::bare(Cluster::shared(), PAGES, PAGE);
    site.sql("CREATE SCHEMA bourn; CREATE TABLE bourn.log (x int)");
    let refused = site.refused().await;
    let line = refused.lines().find(|line| line.starts_with("bourn: ")).unwrap();
    assert!(!line.contains("at line") && !line.contains("relation"), "{refused}");
    assert!(line.contains("that is not as the server needs it"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_databases_of_one_cluster_are_captured_side_by_side_without_naming_slots() {
    let cluster = Cluster::start();
    let mut servers = Vec::new();
    for _ in 0..2 {
        let mut site = Site::on(&cluster, PAGES, PAGE).await.eager();
        site.set("slot", "");
        let server = site.server().await;
        site.sql("INSERT INTO pages (id) VALUES ('p1')");
        site.assert_agrees(&server, "pages").await;
        let slots =
            format!("SELECT slot_name FROM pg_replication_slots WHERE database = '{}'", site.database.name());
        assert_eq!(site.sql(&slots), format!("bourn_{}", site.database.name()));
        servers.push((site, server));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_a_database_that_is_away() {
    let cluster = Cluster::start();
    let mut site = Site::on(&cluster, PAGES, PAGE).await.eager();
    cluster.stop_fast();
    site.set("startup_timeout", "1s");
    let refused = site.refused().await;
    assert!(
        refused.contains("it is tried again") && refused.contains("is it running, and is the address right?"),
        "{refused}"
    );
    site.set("startup_timeout", "60s");
    let waking = cluster.clone();
    let waking = std::thread::spawn(move || waking.start_again());
    let server = site.server().await;
    waking.join().unwrap();
    site.sql("INSERT INTO pages (id) VALUES ('p1')");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_a_lock_on_the_log() {
    let mut site = Site::new(PAGES, PAGE).await.eager();
    site.sql("INSERT INTO pages (id) VALUES ('p1')");
    // Its log is there.
    drop(site.server().await);
    site.set("lock_timeout", "50ms");
    site.set("capture_timeout", "300ms");
    let lock = Holder::new(&site, "LOCK TABLE bourn.log IN ACCESS EXCLUSIVE MODE").await;
    let refusals = || {
        let log = site.database.cluster().log();
        log.lines().filter(|line| line.contains(site.database.name()) && line.contains(" timeout")).count()
    };
    let release = async {
        eventually("the start has met the lock more than once", async || refusals() > 1).await;
        lock.commit();
    };
    let (server, ()) = tokio::join!(site.begin_server(), release);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_that_the_publication_names_are_streamed() {
    if Cluster::shared().major() < 18 {
        return;
    }
    let table = "CREATE TABLE pages (id text PRIMARY KEY, name text, length int GENERATED ALWAYS AS (length(name)) STORED); \
         ALTER TABLE pages REPLICA IDENTITY FULL; INSERT INTO pages VALUES ('p1', 'x'); \
         CREATE PUBLICATION bourn FOR TABLE pages WITH (publish_via_partition_root = true, publish_generated_columns = stored)";
    let site = Site::new(table, "[[entity]]\ntype = 'page'\ntable = 'pages'\n").await.eager();
    let server = site.server().await;
    let client = server.client();
    site.sql("UPDATE pages SET name = 'xyz'; INSERT INTO pages VALUES ('p2', 'yy')");
    site.assert_agrees(&server, "pages").await;
    assert_eq!(
        client.get("/v1/entities/pages/p1").await.json(),
        json!({ "id": "p1", "name": "xyz", "length": 3 })
    );
    let changed = client.patch("/v1/entities/pages/p1", &[], &json!({ "name": "wxyz" })).await;
    assert_eq!((changed.status, &changed.json()["length"]), (200, &json!(4)), "{}", changed.text());
    assert_eq!(client.patch("/v1/entities/pages/p1", &[], &json!({ "length": 9 })).await.status, 400);
    site.assert_agrees(&server, "pages").await;
}
