//! pgbouncer in transaction mode before the database: everything but replication and LISTEN goes through it.

use bourn_testkit::{Cluster, PgBouncer};
use http::Method;

use crate::load::{Load, on_pages};
use crate::reader::Witnesses;
use crate::site::{PAGE, PAGES, PAGES_PATH, Site};
use crate::support::{Bourn, Client, page};

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_behind_a_pooler_in_transaction_mode() {
    let cluster = Cluster::shared();
    let pooler = PgBouncer::start(cluster);
    let mut site = Site::new(PAGES, PAGE).await.eager();
    site.set("direct_database", &site.database.url());
    let database = site.database.name().to_owned();
    site.reach_by(&pooler.url(&database));
    // Settings that a pooled session could have left behind.
    site.sql(&format!("ALTER DATABASE {database} SET timezone = 'Asia/Kolkata'; ALTER DATABASE {database} SET datestyle = 'German'"));
    site.sql("ALTER TABLE pages ADD COLUMN made timestamptz DEFAULT now()");
    let mut servers = [site.server().await, site.server().await];
    let clients: Vec<Client> = servers.iter().map(Bourn::client).collect();
    let witnesses = Witnesses::start(&clients, 7);
    let load = Load::start(&site.database.url(), 4, 800, &on_pages());
    for round in 0..6 {
        load.more(30).await;
        let (client, id) = (&clients[round % 2], format!("rest{round}"));
        client.make_page(&id, &format!("t{round}")).await;
        let again = clients[1 - round % 2]
            .post(PAGES_PATH, &[("x-transaction-id", &*format!("t{round}"))], &page(&id, &id))
            .await;
        assert_eq!((again.status, again.header("x-idempotent-hit")), (201, "true"));
        let row = client.get(&format!("{PAGES_PATH}/{id}")).await;
        assert!(row.json()["made"].as_str().unwrap().ends_with("+00:00"), "{}", row.text());
        assert_eq!(client.get(&format!("{PAGES_PATH}?limit=10000")).await.status, 200);
        if round == 2 {
            servers[0].kill().await;
            servers[0].begin_again().await;
        }
        if round == 4 {
            // The pool's connections are cut; the next requests take others.
            site.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
            );
            crate::support::eventually("it answers again", async || {
                let answer = client.try_send(Method::GET, PAGES_PATH, &[], bytes::Bytes::new()).await;
                answer.is_ok_and(|answer| answer.status == 200)
            })
            .await;
        }
    }
    load.end().await;
    witnesses.agree(&site, &clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_is_set_to_changes_nothing_behind_a_pooler() {
    let pooler = PgBouncer::start(Cluster::shared());
    let mut site = Site::new(PAGES, PAGE).await.eager();
    site.set("direct_database", &site.database.url());
    let database = site.database.name().to_owned();
    site.reach_by(&pooler.url(&database));
    for setting in [
        "default_transaction_isolation = 'serializable'",
        "lock_timeout = '1ms'",
        "intervalstyle = 'iso_8601'",
    ] {
        site.sql(&format!("ALTER DATABASE {database} SET {setting}"));
    }
    site.sql(
        "ALTER TABLE pages ADD COLUMN took interval DEFAULT '1 day'; INSERT INTO pages (id) VALUES ('p1')",
    );
    let server = site.server().await;
    let client = server.client();
    let path = format!("{PAGES_PATH}/p1");
    let patches = (0..30).map(|i| {
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move {
            client.patch(&path, &[], &serde_json::json!({ "name": format!("n{i}") })).await
        })
    });
    for patch in patches.collect::<Vec<_>>() {
        let answer = patch.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["took"], "1 day");
    }
    site.captured().await;
    assert_eq!(client.read_all(PAGES_PATH, "-1").await.0.last().unwrap()["value"]["took"], "1 day");
}
