//! Lists that are read while the log does not have the table yet: a reader that follows from there on ends with the table.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};

use serde_json::Value;

use crate::holder::Holder;
use crate::site::{Site, says};
use crate::support::{Bourn, Client, eventually};

const NOTES: &str = "CREATE TABLE notes (id text PRIMARY KEY, room text NOT NULL DEFAULT 'a', body text, deleted_at timestamptz, UNIQUE (id, room));";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\nscope = 'room'\n";
const PATH: &str = "/v1/entities/notes";
const ROWS: &str = "INSERT INTO notes (id, room) SELECT k, 'a' FROM unnest(ARRAY['stays', 'goes', 'hides', 'moves', 'renamed', 'changes', 'comes back']) k";
/// Everything by which a row can leave its place.
const LEAVE: &str = "DELETE FROM notes WHERE id = 'goes'; UPDATE notes SET deleted_at = now() WHERE id = 'hides'; \
     UPDATE notes SET room = 'b' WHERE id = 'moves'; UPDATE notes SET id = 'new name' WHERE id = 'renamed'; \
     UPDATE notes SET body = 'x' WHERE id = 'changes'; DELETE FROM notes WHERE id = 'comes back'; \
     INSERT INTO notes (id, body) VALUES ('comes back', 'again'), ('passes', 'by'); DELETE FROM notes WHERE id = 'passes'";

/// A transaction that stays open.
struct Open(Child, ChildStdin);

impl Open {
    async fn begin(site: &Site) -> Open {
        let mut psql =
            site.database.psql_command().stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut input = psql.stdin.take().unwrap();
        input.write_all(b"BEGIN; SELECT pg_current_xact_id();\n").unwrap();
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' AND backend_xid IS NOT NULL";
        eventually("the transaction is open", async || site.sql(open) == "1").await;
        Open(psql, input)
    }

    fn end(self) {
        let Open(mut psql, mut input) = self;
        input.write_all(b"COMMIT;\n").unwrap();
        drop(input);
        psql.wait().unwrap();
    }
}

/// A server that captures, and cannot compare the notes before the transaction ends.
async fn waiting(identity: &str) -> (Site, Bourn, Open) {
    let site = Site::new(NOTES, NOTE).await.eager();
    site.sql(&format!(
        "{ROWS}; ALTER TABLE notes REPLICA IDENTITY {identity}; ALTER PUBLICATION bourn DROP TABLE notes"
    ));
    let server = site.begin_server().await;
    eventually("it captures", async || site.sender().is_some()).await;
    says(&server.client(), "does not name table").await;
    let open = Open::begin(&site).await;
    site.sql("ALTER PUBLICATION bourn ADD TABLE notes");
    eventually("it is to be compared", async || {
        site.sql("SELECT count(*) FROM bourn.entities WHERE NOT reconciled AND signature <> ''") == "1"
    })
    .await;
    (site, server, open)
}

/// The rows of a list, and the place behind it.
async fn list(client: &Client, path: &str) -> (BTreeMap<String, Value>, String) {
    let answer = client.get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let rows = answer.json().as_array().unwrap().clone();
    let rows = rows.into_iter().map(|row| (row["id"].as_str().unwrap().to_owned(), row));
    (rows.collect(), answer.next_offset())
}

/// What a list adds up to with what follows it, as StreamDB takes it.
async fn followed(
    client: &Client,
    path: &str,
    listed: (BTreeMap<String, Value>, String),
) -> BTreeMap<String, Value> {
    let (mut rows, offset) = listed;
    for message in client.read_all(path, &offset).await.0 {
        let key = message["key"].as_str().unwrap().to_owned();
        match message.get("value") {
            Some(value) => rows.insert(key, value.clone()),
            None => rows.remove(&key),
        };
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_leave_before_the_first_comparison_leave_those_who_had_them_in_a_list() {
    for (identity, scoped) in [("FULL", true), ("USING INDEX notes_id_room_key", true), ("DEFAULT", false)] {
        let (site, server, open) = waiting(identity).await;
        let client = server.client();
        let room = format!("{PATH}?organizationId=a");
        let (all, of_room) = (list(&client, PATH).await, client.get(&room).await);
        assert_eq!(all.0.len(), 7, "{identity}: {all:?}");
        let of_room = match scoped {
            true => Some(list(&client, &room).await),
            false => {
                assert_eq!(of_room.status, 503, "{identity}: {}", of_room.text());
                assert!(of_room.text().contains("REPLICA IDENTITY FULL"), "{}", of_room.text());
                None
            }
        };
        site.sql(LEAVE);
        site.captured().await;
        open.end();
        server.ready().await;
        site.captured().await;
        let now = list(&client, PATH).await.0;
        assert_eq!(now.keys().collect::<Vec<_>>(), ["changes", "comes back", "moves", "new name", "stays"]);
        assert_eq!(followed(&client, PATH, all).await, now, "{identity}");
        if let Some(of_room) = of_room {
            let now = list(&client, &room).await.0;
            assert_eq!(now.len(), 4);
            assert_eq!(followed(&client, &room, of_room).await, now, "{identity}, one room");
        }
        if identity == "FULL" {
            // A reader from the start is given nothing that it has no insert for.
            site.assert_log_is_sound();
            let told = client.read_all(PATH, "-1").await.0;
            assert_eq!(crate::support::materialize(&told), now);
        }
        list(&client, &room).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_truncated_before_the_log_has_it_sends_its_readers_back_to_the_list() {
    let (site, server, open) = waiting("FULL").await;
    let client = server.client();
    let (_, offset) = list(&client, PATH).await;
    site.sql("TRUNCATE notes; INSERT INTO notes (id) VALUES ('new')");
    site.captured().await;
    open.end();
    server.ready().await;
    let gone = client.get(&format!("{PATH}?offset={offset}")).await;
    assert_eq!(gone.status, 410, "{}", gone.text());
    let listed = list(&client, PATH).await;
    assert_eq!(listed.0.keys().collect::<Vec<_>>(), ["new"]);
    // From here on the log has the table, and another truncation is streamed.
    site.sql("TRUNCATE notes");
    site.captured().await;
    assert_eq!(followed(&client, PATH, listed).await, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_list_is_given_out_before_changes_are_captured() {
    let site = Site::new(NOTES, NOTE).await.eager();
    site.sql(ROWS);
    let open = Open::begin(&site).await;
    let server = site.begin_server().await;
    says(&server.client(), "waits for transactions that are open").await;
    let client = server.client();
    let answer = client.get(PATH).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(client.get(&format!("{PATH}/stays")).await.status, 200);
    open.end();
    server.ready().await;
    assert_eq!(list(&client, PATH).await.0.len(), 7);
}

/// Changes can be lost before the log has them, when the database restarts. The end of a row whose scope is in the log alone could
/// then not reach readers of that scope.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_one_scope_waits_for_the_log_where_the_database_does_not_tell_the_scope_of_rows_that_go() {
    let site = Site::new(NOTES, NOTE).await.eager();
    site.sql("ALTER TABLE notes REPLICA IDENTITY DEFAULT");
    let server = site.server().await;
    let client = server.client();
    let room = format!("{PATH}?organizationId=a");
    site.sql("INSERT INTO notes (id) VALUES ('known')");
    site.captured().await;
    assert_eq!(list(&client, &room).await.0.len(), 1);

    let held = Holder::new(&site, "LOCK TABLE bourn.activities IN SHARE MODE").await;
    site.sql("INSERT INTO notes (id, room) VALUES ('new', 'a'), ('elsewhere', 'c')");
    let refused = client.get(&room).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("not in the log yet"), "{}", refused.text());
    assert_eq!(list(&client, PATH).await.0.len(), 3, "all scopes: a deletion is told with its key");
    assert_eq!(list(&client, &format!("{PATH}?organizationId=b")).await.0.len(), 0);

    let waits = tokio::spawn({
        let client = server.client();
        async move { client.get(&room).await }
    });
    held.commit();
    let answer = waits.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json().as_array().unwrap().len(), 2);

    // A row that came from another scope.
    let held = Holder::new(&site, "LOCK TABLE bourn.activities IN SHARE MODE").await;
    site.sql("UPDATE notes SET room = 'b' WHERE id = 'new'");
    assert_eq!(client.get(&format!("{PATH}?organizationId=b")).await.status, 503);
    held.commit();
    site.captured().await;
    assert_eq!(list(&client, &format!("{PATH}?organizationId=b")).await.0.len(), 1);
}
