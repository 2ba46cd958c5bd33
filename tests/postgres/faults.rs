//! What befalls a database while it is served: the server says so, goes on as far as it can, and nothing is missing once
//! that is mended.

use bourn_testkit::Cluster;
use serde_json::json;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, is_ready, problems, says};
use crate::support::{SmallDisk, eventually, page};

/// Ends every connection of the servers.
const CUT: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_dropped_and_made_again_loses_nothing() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    site.captured().await;
    let (_, offset) = client.read_all(PAGES_PATH, "-1").await;
    site.sql("DROP PUBLICATION bourn");
    // The stream stumbles over what is written without it.
    site.sql("INSERT INTO pages (id) VALUES ('meanwhile'); UPDATE pages SET name = 'meanwhile'");
    says(&client, "publication `bourn`").await;
    let read = client.get(&format!("{PAGES_PATH}?offset=-1")).await;
    // It would look complete, and lack what was written meanwhile.
    read.assert_error(503, "ENTITY_UNAVAILABLE");
    site.prepare().await;
    site.sql("INSERT INTO pages (id) VALUES ('after')");
    is_ready(&client).await;
    site.assert_agrees(&server, "pages").await;
    assert!(client.read_all(PAGES_PATH, &offset).await.0.len() >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_for_a_moment_is_made_good() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let mut server = site.server().await;
    site.sql("INSERT INTO pages (id) VALUES ('p1'), ('p2'), ('p3')");
    site.assert_agrees(&server, "pages").await;
    for (i, (leave_out, put_back)) in [
        ("ALTER PUBLICATION bourn DROP TABLE pages", "ALTER PUBLICATION bourn ADD TABLE pages"),
        (
            "ALTER PUBLICATION bourn SET (publish = 'insert')",
            "ALTER PUBLICATION bourn SET (publish = 'insert, update, delete, truncate')",
        ),
        (
            "ALTER PUBLICATION bourn SET TABLE pages WHERE (id = 'p1')",
            "ALTER PUBLICATION bourn SET TABLE pages",
        ),
        ("ALTER TABLE pages RENAME TO papers", "ALTER TABLE papers RENAME TO pages"),
    ]
    .iter()
    .enumerate()
    {
        let table = if leave_out.contains("papers") { "papers" } else { "pages" };
        let meanwhile = |name: &str| format!("{leave_out}; UPDATE {table} SET name = '{name}'; {put_back}");
        // Faster than the server looks, and between its looks.
        site.sql(&meanwhile(&format!("at once {i}")));
        site.assert_agrees(&server, "pages").await;
        server.kill().await;
        site.sql(&meanwhile(&format!("in the dark {i}")));
        server.restart().await;
        site.assert_agrees(&server, "pages").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_changed_is_told_and_works_again_once_it_is_back() {
    let cluster = Cluster::options().scram("app", "secret").start();
    let mut site = Site::on(&cluster, PAGES, PAGE).await.eager();
    site.sql("ALTER ROLE app SUPERUSER");
    site.reach_by(&site.database.url_as("app", "secret"));
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    site.sql(&format!("ALTER ROLE app PASSWORD 'other'; {CUT}"));
    eventually("it is noticed", async || client.get("/ready").await.status == 503).await;
    site.sql("INSERT INTO pages (id) VALUES ('meanwhile')");
    let told = problems(&client).await;
    assert!(!told.contains("secret"), "{told}");
    site.sql("ALTER ROLE app PASSWORD 'secret'");
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges_that_are_taken_away_stop_what_needs_them_and_no_more() {
    let mut site = Site::new(
        &format!("{PAGES} CREATE TABLE notes (id text PRIMARY KEY);"),
        &format!("{PAGE}[[entity]]\ntype = 'note'\ntable = 'notes'\n"),
    )
    .await
    .eager();
    let role = format!("least_{}", site.database.name());
    site.sql(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; ALTER SCHEMA bourn OWNER TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA bourn, public TO {role}"
    ));
    site.reach_by(&site.database.url_as(&role, "x"));
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    site.captured().await;
    site.sql(&format!("REVOKE INSERT ON pages FROM {role}"));
    let refused = client.post(PAGES_PATH, &[], &page("p2", "x")).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(!refused.text().contains("permission denied"), "a database's own words: {}", refused.text());
    site.sql(&format!("REVOKE SELECT ON notes FROM {role}; INSERT INTO pages (id) VALUES ('p3')"));
    site.captured().await;
    assert_eq!(client.read_all(PAGES_PATH, "-1").await.0.len(), 2);
    site.sql(&format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"));
    client.make_page("p4", "t4").await;
    site.assert_agrees(&server, "pages").await;
    drop(server);
    eventually("the role can go", async || {
        site.try_sql(&format!("DROP SCHEMA bourn CASCADE; DROP OWNED BY {role}; DROP ROLE {role}")).is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_can_only_be_read_is_read() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let mut server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    site.assert_agrees(&server, "pages").await;
    let name = site.database.name().to_owned();
    let read_only = |on: &str| {
        let set = format!(
            "SET default_transaction_read_only = off; ALTER DATABASE {name} SET default_transaction_read_only = {on}; {CUT}"
        );
        site.sql(&set);
    };
    read_only("on");
    says(&client, "can be read but not written").await;
    for _ in 0..2 {
        client.post(PAGES_PATH, &[], &page("p2", "x")).await.assert_error(503, "DATABASE_READ_ONLY");
        assert_eq!(client.get(&format!("{PAGES_PATH}/p1")).await.status, 200);
        assert_eq!(client.read_all(PAGES_PATH, "-1").await.0.len(), 1);
        // A server that starts now serves what there is.
        server.kill().await;
        server.begin_again().await;
        says(&client, "can be read but not written").await;
    }
    // Somebody can write all the same.
    site.sql("SET default_transaction_read_only = off; INSERT INTO pages (id) VALUES ('p3')");
    read_only("off");
    site.assert_agrees(&server, "pages").await;
    client.make_page("p4", "t4").await;

    let empty = Site::bare(Cluster::shared(), "", PAGE);
    let name = empty.database.name();
    empty.sql(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    let refused = empty.refused().await;
    assert!(refused.contains("can be read but not written"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_writes_are_refused_reads_go_on_and_nothing_is_missing_afterwards() {
    let disk = SmallDisk::mount("220m");
    let cluster = Cluster::options().within(disk.path()).setting("max_wal_size", "64MB").start();
    let site = Site::on(&cluster, PAGES, PAGE).await.eager();
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    site.assert_agrees(&server, "pages").await;
    let filler = disk.path().join("filler");
    let mut size = 0_usize;
    let mut fill = || {
        // All that is left, but for a little.
        while std::fs::write(&filler, vec![0; size + (1 << 20)]).is_ok() {
            size += 1 << 20;
        }
    };
    fill();
    let content = "0123456789abcdef".repeat(5_000);
    let mut acknowledged = vec!["p1".to_owned()];
    let mut answers = Vec::new();
    eventually("a write is refused", async || {
        let id = format!("full{}", answers.len());
        let headers = [("x-transaction-id", &*id)];
        let answer = client
            .post(
                PAGES_PATH,
                &headers,
                &json!({ "id": id, "content": content, "name": format!("{:?}", answers) }),
            )
            .await;
        answers.push(answer.status);
        if answer.status == 201 {
            acknowledged.push(id);
        } else {
            assert_eq!(answer.status, 503, "{}", answer.text());
        }
        answer.status == 503
    })
    .await;
    assert_eq!(client.get("/health").await.status, 200);
    std::fs::remove_file(&filler).unwrap();
    // The database may have had to recover.
    is_ready(&client).await;
    eventually("a write is done again", async || {
        client.post(PAGES_PATH, &[("x-transaction-id", "room")], &page("room", "x")).await.status == 201
    })
    .await;
    site.assert_agrees(&server, "pages").await;
    let table = site.table("pages", "id");
    assert!(acknowledged.iter().all(|id| table.contains_key(id)), "what was acknowledged is there");
}
