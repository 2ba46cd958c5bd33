//! What other sessions and the network do to ours: a lock that is held, a role's settings, a database that stops answering.
//! The others' reads and writes go on, and nothing waits without end.

use std::time::{Duration, Instant};

use bourn_testkit::{Cluster, Proxy, Way};
use serde_json::{Value, json};

use tokio::task::JoinHandle;

use crate::holder::Holder;
use crate::site::{PAGE, PAGES, PAGES_PATH, Site};
use crate::support::{Answer, Client, eventually, page};

const NOTES: &str =
    "CREATE TABLE notes (id text PRIMARY KEY, body text); ALTER TABLE notes REPLICA IDENTITY FULL;";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\n";

/// Fires these requests at once; gives the answers.
fn at_once<F: Future<Output = Answer> + Send + 'static>(
    requests: impl Iterator<Item = F>,
) -> JoinHandle<Vec<Answer>> {
    let tasks: Vec<_> = requests.map(tokio::spawn).collect();
    tokio::spawn(async move {
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        answers
    })
}

fn patch(client: &Client, path: &str, name: &str) -> impl Future<Output = Answer> + Send + 'static + use<> {
    let (client, path, name) = (client.clone(), path.to_owned(), name.to_owned());
    async move { client.patch(&path, &[], &json!({ "name": name })).await }
}

async fn took(request: impl Future<Output = Answer>) -> (Answer, Duration) {
    let began = Instant::now();
    let answer = request.await;
    (answer, began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_session_locks_holds_up_the_writers_of_that_row_alone() {
    let site = Site::new(PAGES, PAGE).await.eager();
    site.sql("INSERT INTO pages (id) VALUES ('held'), ('free')");
    let server = site.server().await;
    let client = server.client();
    let holder = Holder::new(&site, "SELECT * FROM pages WHERE id = 'held' FOR UPDATE").await;
    let waiting = at_once((0..20).map(|i| patch(&client, &format!("{PAGES_PATH}/held"), &format!("n{i}"))));
    eventually("the writers wait", async || {
        site.sql("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()") == "t"
    })
    .await;
    let limit = Duration::from_millis(1_500);
    for path in [PAGES_PATH.to_owned(), format!("{PAGES_PATH}/held"), "/ready".into()] {
        let (answer, time) = took(client.get(&path)).await;
        assert!(answer.status == 200 && time < limit, "{path}: {} after {time:?}", answer.text());
    }
    let (other, time) = took(patch(&client, &format!("{PAGES_PATH}/free"), "x")).await;
    assert!(other.status == 200 && time < limit, "{} after {time:?}", other.text());
    assert!(site.time_to_capture("captured").await < limit, "capture goes on");
    for answer in waiting.await.unwrap() {
        answer.assert_error(503, "DATABASE_LOCKED");
        assert_eq!(answer.header("retry-after"), "1");
    }
    holder.commit();
    assert_eq!(patch(&client, &format!("{PAGES_PATH}/held"), "y").await.status, 200);
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_locked_whole_holds_up_no_other_table() {
    let site = Site::new(&[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).await.eager();
    let server = site.server().await;
    let client = server.client();
    let holder = Holder::new(&site, "LOCK TABLE pages IN ACCESS EXCLUSIVE MODE").await;
    let lists = (0..40).map(|_| {
        let client = client.clone();
        async move { client.get(PAGES_PATH).await }
    });
    let lists = at_once(lists);
    eventually("they wait", async || {
        site.sql("SELECT count(*) > 3 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()") == "t"
    })
    .await;
    for i in 0..5 {
        let (made, time) =
            took(client.post("/v1/entities/notes", &[], &json!({ "id": format!("n{i}") }))).await;
        assert!(made.status == 201 && time < Duration::from_secs(1), "{} after {time:?}", made.text());
        assert_eq!(client.get("/v1/entities/notes").await.json().as_array().unwrap().len(), i + 1);
    }
    for answer in lists.await.unwrap() {
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    holder.commit();
    site.assert_agrees(&server, "pages").await;
    site.assert_agrees(&server, "notes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_for_requests_is_enough() {
    let mut site = Site::new(PAGES, &format!("{PAGE}previous_values = true\n")).await.eager();
    site.set("database_connections", "1");
    let server = site.server().await;
    let client = server.client();
    let made = at_once((0..19).map(|i| {
        let client = client.clone();
        async move { client.make_page(&format!("p{i}"), &format!("t{i}")).await }
    }));
    assert!(made.await.unwrap().iter().all(|answer| answer.status == 201));
    let undone = at_once((0..19).map(|i| {
        let client = client.clone();
        async move { client.post(&format!("/v1/transactions/t{i}/rollback"), &[], &json!({})).await }
    }));
    for answer in undone.await.unwrap() {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(client.get(PAGES_PATH).await.json(), json!([]));
    let text = [("content-type", "text/plain"), ("stream-ttl", "1")];
    for i in 0..5 {
        let path = format!("/v1/stream/s{i}");
        let put = client.send(http::Method::PUT, &path, &text, "x").await;
        assert_eq!(put.status, 201, "{}", put.text());
        assert_eq!(client.send(http::Method::POST, &path, &text[..1], "y").await.status, 204);
    }
    eventually("what has expired is removed", async || site.sql("SELECT count(*) FROM bourn.streams") == "0")
        .await;
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_is_set_to_changes_nothing() {
    let mut site = Site::new(PAGES, PAGE).await.eager();
    let role = format!("set_{}", site.database.name());
    site.sql(&format!(
        "CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'x'; ALTER TABLE pages ADD COLUMN made timestamptz, ADD COLUMN took interval, \
         ADD COLUMN bytes bytea, ADD COLUMN ratio float8"
    ));
    for setting in [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "idle_session_timeout = '500ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "statement_timeout = '50ms'",
        "lock_timeout = '1ms'",
        "datestyle = 'German'",
        "timezone = 'Asia/Kolkata'",
        "intervalstyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "extra_float_digits = -15",
        "standard_conforming_strings = off",
        "client_encoding = 'LATIN1'",
    ] {
        site.sql(&format!("ALTER ROLE {role} SET {setting}"));
    }
    site.reach_by(&site.database.url_as(&role, "x"));
    let server = site.server().await;
    let client = server.client();
    site.sql(
        "INSERT INTO pages (id, made, took, bytes, ratio) VALUES ('p1', '2026-01-15 10:30:00+00', '1 day 2 hours', '\\x00ff', 0.1 + 0.2::float8)",
    );
    let path = format!("{PAGES_PATH}/p1");
    for round in 0..3 {
        let patches = (0..30).map(|i| patch(&client, &path, &format!("ü{round} {i}")));
        for answer in at_once(patches).await.unwrap() {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let repeats = (0..8).map(|_| {
            let (client, id) = (client.clone(), format!("same{round}"));
            async move { client.make_page(&id, &id).await }
        });
        assert!(at_once(repeats).await.unwrap().iter().all(|answer| answer.status == 201));
        // Longer than a session of this role may idle.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let row = client.get(&path).await;
        assert_eq!(row.status, 200, "{}", row.text());
        assert_eq!(row.json()["made"], "2026-01-15T10:30:00+00:00");
        assert_eq!(row.json()["took"], "1 day 02:00:00");
        assert_eq!(row.json()["bytes"], "\\x00ff");
    }
    site.assert_agrees(&server, "pages").await;
    drop(server);
    eventually("the role can go", async || site.try_sql(&format!("DROP ROLE {role}")).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_answering_is_answered_for_in_time() {
    let cluster = Cluster::shared();
    let mut site = Site::new(PAGES, PAGE).await.eager();
    for (name, value) in [
        ("statement_timeout", "1s"),
        ("acquire_timeout", "1s"),
        ("connect_timeout", "1s"),
        ("lock_timeout", "500ms"),
    ] {
        site.set(name, value);
    }
    let proxy = Proxy::to_port(cluster.port());
    site.reach_by(&proxy.url(&site.database.url()));
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    client.send(http::Method::PUT, "/v1/stream/s", &[("content-type", "text/plain")], "x").await;
    let limit = Duration::from_secs(7);
    for trouble in [|proxy: &Proxy| proxy.stall(Way::Both), |proxy: &Proxy| proxy.swallow(Way::Both)] {
        trouble(&proxy);
        let requests = (0..12).map(|i| {
            let client = client.clone();
            async move {
                let began = Instant::now();
                let answer = match i % 4 {
                    0 => client.get(PAGES_PATH).await,
                    1 => client.get(&format!("{PAGES_PATH}/p1")).await,
                    2 => client.post(PAGES_PATH, &[], &page(&format!("lost{i}"), "x")).await,
                    _ => {
                        let text = [("content-type", "text/plain")];
                        client.send(http::Method::POST, "/v1/stream/s", &text, "y").await
                    }
                };
                assert!(began.elapsed() < limit, "{} after {:?}", answer.text(), began.elapsed());
                answer
            }
        });
        let requests = at_once(requests);
        for path in ["/health", "/metrics", "/ready"] {
            let (answer, time) = took(client.get(path)).await;
            assert!(time < Duration::from_secs(1), "{path} takes {time:?}");
            assert_eq!(answer.status, if path == "/ready" { 503 } else { 200 });
        }
        for answer in requests.await.unwrap() {
            assert_eq!(answer.status, 503, "{}", answer.text());
        }
        proxy.heal();
        eventually("it answers again", async || client.get(PAGES_PATH).await.status == 200).await;
        let text = [("content-type", "text/plain")];
        let (append, time) = took(client.send(http::Method::POST, "/v1/stream/s", &text, "z")).await;
        assert!(append.status == 204 && time < limit, "{} after {time:?}", append.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_answers_late_is_waited_for() {
    let cluster = Cluster::shared();
    let mut site = Site::new(PAGES, PAGE).await.eager();
    let proxy = Proxy::to_port(cluster.port());
    site.reach_by(&proxy.url(&site.database.url()));
    let server = site.server().await;
    let client = server.client();
    client.make_page("p1", "t1").await;
    proxy.delay(Way::Down, Duration::from_millis(500));
    for path in [PAGES_PATH.to_owned(), format!("{PAGES_PATH}/p1")] {
        let (answer, time) = took(client.get(&path)).await;
        assert!(
            matches!(answer.status, 200 | 503) && time < Duration::from_secs(20),
            "{path}: {} after {time:?}",
            answer.text()
        );
    }
    let (ready, time) = took(client.get("/ready")).await;
    assert!(time < Duration::from_secs(1), "{} after {time:?}", ready.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_is_tried_again() {
    // Each write of a page writes the other page, too.
    let trigger = "CREATE TABLE tallies (id text PRIMARY KEY, n int DEFAULT 0); INSERT INTO tallies VALUES ('a'), ('b'); \
         CREATE FUNCTION tally() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         UPDATE tallies SET n = n + 1 WHERE id = NEW.id; PERFORM pg_sleep(0.05); \
         UPDATE tallies SET n = n + 1 WHERE id <> NEW.id; RETURN NEW; END $$; \
         CREATE TRIGGER tally BEFORE UPDATE ON pages FOR EACH ROW EXECUTE FUNCTION tally();";
    let mut site = Site::new(&[PAGES, trigger].concat(), PAGE).await.eager();
    site.set("lock_timeout", "10s");
    site.sql(&format!(
        "INSERT INTO pages (id) VALUES ('a'), ('b'); ALTER DATABASE {} SET deadlock_timeout = '100ms'",
        site.database.name()
    ));
    let server = site.server().await;
    let client = server.client();
    for round in 0..3 {
        let both = ["a", "b"]
            .into_iter()
            .map(|id| patch(&client, &format!("{PAGES_PATH}/{id}"), &format!("r{round}")));
        for answer in at_once(both).await.unwrap() {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    let deadlocks = site.sql("SELECT n FROM tallies ORDER BY id");
    assert_eq!(deadlocks, "6\n6", "each write was done once: {deadlocks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_rows_a_policy_hides_is_not_served_as_if_they_were_gone() {
    let mut site = Site::bare(Cluster::shared(), &[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).eager();
    let role = format!("rls_{}", site.database.name());
    site.sql(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; GRANT CREATE ON DATABASE {} TO {role}; GRANT ALL ON pages, notes TO {role}; \
         INSERT INTO pages (id) VALUES ('p1'); CREATE PUBLICATION bourn FOR TABLE pages, notes WITH (publish_via_partition_root = true)",
        site.database.name()
    ));
    site.reach_by(&site.database.url_as(&role, "x"));
    let server = site.server().await;
    let client = server.client();
    assert_eq!(client.get(PAGES_PATH).await.json()[0]["id"], "p1");
    site.sql("ALTER TABLE pages ENABLE ROW LEVEL SECURITY");
    let words = format!("row-level security hides rows of table public.pages from role `{role}`");
    eventually("it is told", async || client.get("/ready").await.text().contains(&words)).await;
    client.get(PAGES_PATH).await.assert_error(503, "ENTITY_UNAVAILABLE");
    let checked = crate::site::said(&site.run(&["check"]).await);
    assert!(checked.contains(&format!("FAIL page: {words}: ALTER ROLE \"{role}\" BYPASSRLS")), "{checked}");
    assert_eq!(client.get("/v1/entities/notes").await.status, 200);
    site.sql(&format!("ALTER ROLE {role} BYPASSRLS"));
    eventually("it is served again", async || client.get(PAGES_PATH).await.status == 200).await;
    site.captured().await;
    let (messages, _) = client.read_all(PAGES_PATH, "-1").await;
    let operations: Vec<&Value> = messages.iter().map(|message| &message["headers"]["operation"]).collect();
    assert_eq!(operations, ["insert"], "nothing was taken for deleted");
    // A revoked right is reported, too.
    site.sql(&format!("REVOKE SELECT ON pages FROM {role}"));
    let words = format!("page: role `{role}` may not read it: GRANT SELECT ON public.pages TO");
    eventually("it is told", async || {
        crate::site::problems(&client).await.contains(&words.replace('"', "\\\""))
    })
    .await;
    drop(server);
    eventually("the role can go", async || {
        site.try_sql(&format!("DROP SCHEMA IF EXISTS bourn CASCADE; DROP OWNED BY {role}; DROP ROLE {role}"))
            .is_ok()
    })
    .await;
}
