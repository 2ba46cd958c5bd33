//! Transactions of every shape: over several tables, taken back in part, emptying tables, very large, and with a
//! writer's word on whose they are.

use serde_json::{Value, json};

use bourn_testkit::Cluster;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, is_ready};
use crate::support::Bourn;

const NOTES: &str =
    "CREATE TABLE notes (id bigint PRIMARY KEY, body text); ALTER TABLE notes REPLICA IDENTITY FULL;";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\n";
const NOTES_PATH: &str = "/v1/entities/notes";
const MIB: u64 = 1 << 20;

async fn pages_and_notes() -> (Site, Bourn) {
    let site = Site::new(&[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).await.eager();
    let server = site.server().await;
    (site, server)
}

async fn agrees(site: &Site, server: &Bourn) {
    site.assert_agrees(server, "pages").await;
    site.assert_agrees(server, "notes").await;
}

async fn read(server: &Bourn, stream: &str, from: &str) -> Vec<Value> {
    server.client().read_all(stream, from).await.0
}

/// The headers' field of all messages.
fn all(messages: &[Value], field: &str) -> Vec<Value> {
    messages.iter().map(|message| message["headers"][field].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_over_several_tables_is_whole_in_each_of_their_streams() {
    let (site, server) = pages_and_notes().await;
    site.sql(
        "BEGIN; INSERT INTO pages (id, organization_id) VALUES ('p1', 'a'), ('p2', 'b'); INSERT INTO notes VALUES (1, 'x'); \
         UPDATE pages SET name = 'n' WHERE id = 'p1'; INSERT INTO notes VALUES (2, 'y'); COMMIT",
    );
    agrees(&site, &server).await;
    let (pages, notes) = (read(&server, PAGES_PATH, "-1").await, read(&server, NOTES_PATH, "-1").await);
    let scoped = read(&server, &format!("{PAGES_PATH}?organizationId=a"), "-1").await;
    for (messages, count) in [(&pages, 3), (&notes, 2), (&scoped, 2)] {
        assert_eq!(messages.len(), count);
        let last: Vec<bool> = all(messages, "last").iter().map(|last| last == true).collect();
        assert_eq!(last.iter().filter(|last| **last).count(), 1, "{messages:?}");
        assert!(last[count - 1], "{messages:?}");
    }
    let ids: Vec<Value> = [all(&pages, "txid"), all(&notes, "txid")].concat();
    assert!(ids.iter().all(|id| id.is_string() && *id == ids[0]), "one transaction: {ids:?}");
    assert_eq!(site.sql("SELECT count(DISTINCT commit_id) FROM bourn.activities"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_never_was() {
    let (site, server) = pages_and_notes().await;
    site.sql(
        "BEGIN; INSERT INTO notes VALUES (1, 'stays'); SAVEPOINT a; INSERT INTO notes VALUES (2, 'goes'); \
         SAVEPOINT b; UPDATE notes SET body = 'goes' WHERE id = 1; ROLLBACK TO b; INSERT INTO notes VALUES (3, 'goes'); ROLLBACK TO a; \
         SAVEPOINT c; INSERT INTO notes VALUES (4, 'stays'); RELEASE c; COMMIT",
    );
    site.sql("BEGIN; INSERT INTO notes SELECT i, 'goes' FROM generate_series(10, 30000) i; TRUNCATE pages; ROLLBACK");
    site.sql("BEGIN; SAVEPOINT a; TRUNCATE notes; ROLLBACK TO a; UPDATE notes SET body = 'stays still' WHERE id = 4; COMMIT");
    agrees(&site, &server).await;
    assert_eq!(read(&server, NOTES_PATH, "-1").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_in_two_phases_is_told_whole_when_it_is_committed() {
    let cluster = Cluster::options().setting("max_prepared_transactions", "4").start();
    let site = Site::on(&cluster, &[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).await.eager();
    let mut server = site.server().await;
    for (i, name) in ["kept", "lost"].iter().enumerate() {
        site.sql(&format!(
            "BEGIN; INSERT INTO notes VALUES ({i}, '{name}'); INSERT INTO pages (id, organization_id) VALUES ('{name}', 'o'); \
             PREPARE TRANSACTION '{name}'"
        ));
    }
    site.sql("INSERT INTO notes VALUES (7, 'meanwhile')");
    site.captured().await;
    assert_eq!(read(&server, NOTES_PATH, "-1").await.len(), 1, "what is only prepared is not told");
    server.kill().await;
    cluster.restart();
    server.restart().await;
    site.sql("COMMIT PREPARED 'kept'");
    site.sql("ROLLBACK PREPARED 'lost'");
    agrees(&site, &server).await;
    let (pages, notes) = (read(&server, PAGES_PATH, "-1").await, read(&server, NOTES_PATH, "-1").await);
    assert_eq!((pages.len(), notes.len()), (1, 2));
    assert_eq!(pages[0]["headers"]["txid"], notes[1]["headers"]["txid"], "one transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_tables_are_told_row_by_row_and_whole() {
    let (site, server) = pages_and_notes().await;
    site.sql("INSERT INTO notes SELECT i, 'x' FROM generate_series(1, 3000) i; INSERT INTO pages (id, organization_id) SELECT 'p' || i, 'o' || i % 3 FROM generate_series(1, 10) i");
    site.assert_agrees(&server, "notes").await;
    let (_, offset) = server.client().read_all(NOTES_PATH, "-1").await;
    site.sql("TRUNCATE notes");
    agrees(&site, &server).await;
    let told = read(&server, NOTES_PATH, &offset).await;
    assert_eq!(
        (told.len(), told.iter().filter(|message| message["headers"]["last"] == true).count()),
        (3000, 1)
    );

    site.sql(
        "BEGIN; INSERT INTO notes VALUES (1, 'before'); UPDATE pages SET name = 'before'; TRUNCATE notes, pages; \
         INSERT INTO notes VALUES (2, 'between'); INSERT INTO pages (id) VALUES ('p1'); TRUNCATE notes; \
         INSERT INTO notes VALUES (1, 'after'); UPDATE notes SET body = 'at last'; COMMIT",
    );
    agrees(&site, &server).await;
    site.sql(
        "TRUNCATE notes; TRUNCATE notes; INSERT INTO notes VALUES (1, 'x'); TRUNCATE pages, notes CASCADE",
    );
    agrees(&site, &server).await;
    assert!(site.table("notes", "id").is_empty());
    // An emptying has its writer's ids as well.
    site.sql(
        "INSERT INTO notes VALUES (1, 'x'); BEGIN; SELECT pg_logical_emit_message(true, 'bourn', '{\"transactionId\":\"empty\"}'); \
         TRUNCATE notes; COMMIT",
    );
    agrees(&site, &server).await;
    assert_eq!(read(&server, NOTES_PATH, "-1").await.last().unwrap()["headers"]["txid"], "empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_say_by_a_message_whose_a_transaction_is() {
    let (site, server) = pages_and_notes().await;
    let message = |json: &str| format!("SELECT pg_logical_emit_message(true, 'bourn', '{json}');");
    let ids = message(r#"{"transactionId":"t1","clientId":"c1"}"#);
    site.sql(&format!(
        "BEGIN; {ids} INSERT INTO notes VALUES (1, 'x'); INSERT INTO pages (id) VALUES ('p1'); COMMIT"
    ));
    let after = message(r#"{"transactionId":"t2"}"#);
    site.sql(&format!(
        "BEGIN; INSERT INTO notes VALUES (2, 'x'); UPDATE notes SET body = 'y' WHERE id = 1; {after} COMMIT"
    ));
    // Nobody's: no word, a word that was taken back, one that is not understood, one of another program.
    site.sql("INSERT INTO notes VALUES (3, 'x')");
    site.sql(&format!(
        "BEGIN; SAVEPOINT a; {after} ROLLBACK TO a; INSERT INTO notes VALUES (4, 'x'); COMMIT"
    ));
    site.sql(&format!("BEGIN; {} INSERT INTO notes VALUES (5, 'x'); COMMIT", message("nonsense")));
    site.sql("BEGIN; SELECT pg_logical_emit_message(true, 'other', '{\"transactionId\":\"t3\"}'); INSERT INTO notes VALUES (6, 'x'); COMMIT");
    // Its own word in the row wins.
    site.sql(&format!(
        "BEGIN; {ids} INSERT INTO pages (id, transactions) VALUES ('p2', '{{\"insert\":\"own\"}}'); COMMIT"
    ));
    agrees(&site, &server).await;
    let notes = read(&server, NOTES_PATH, "-1").await;
    let txids = all(&notes, "txid");
    assert_eq!(txids[..3], [json!("t1"), json!("t2"), json!("t2")]);
    for (message, txid) in notes[3..].iter().zip(&txids[3..]) {
        let number = txid.as_str().is_some_and(|txid| txid.parse::<u64>().is_ok());
        assert!(number, "the database's own number: {message}");
    }
    assert_eq!(
        (&notes[0]["headers"]["client_id"], &notes[1]["headers"]["client_id"]),
        (&json!("c1"), &Value::Null)
    );
    assert_eq!(all(&read(&server, PAGES_PATH, "-1").await, "txid"), [json!("t1"), json!("own")]);
    let client = server.client();
    for (id, count) in [("t1", 2), ("t2", 2)] {
        assert_eq!(client.get(&format!("/v1/transactions/{id}")).await.json()["state"], "confirmed");
        let found = client.get(&format!("/v1/activities?transactionId={id}")).await.json();
        assert_eq!(found.as_array().unwrap().len(), count, "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_rows_in_one_transaction_are_seen_whole_in_bounded_memory() {
    const ROWS: usize = 100_000;
    let (site, server) = pages_and_notes().await;
    site.sql("INSERT INTO notes VALUES (0, 'first')");
    site.assert_agrees(&server, "notes").await;
    let client = server.client();
    let (_, mut offset) = client.read_all(NOTES_PATH, "-1").await;
    for (sql, operation) in [
        ("INSERT INTO notes SELECT i, repeat('x', 100) FROM generate_series(1, 100000) i", "insert"),
        ("UPDATE notes SET body = body || 'y' WHERE id > 0", "update"),
        ("DELETE FROM notes WHERE id > 0", "delete"),
    ] {
        site.sql(&format!("BEGIN; {sql}; COMMIT"));
        site.captured().await;
        let (messages, next) = client.read_all(NOTES_PATH, &offset).await;
        assert_eq!(messages.len(), ROWS, "{operation}");
        let last = messages.iter().position(|message| message["headers"]["last"] == true);
        assert_eq!(last, Some(ROWS - 1), "{operation}: only the last change ends the transaction");
        assert!(all(&messages, "operation").iter().all(|told| told == operation));
        offset = next;
    }
    assert_eq!(site.sql("SELECT count(DISTINCT commit_id), count(*) FROM bourn.activities"), "4|300001");
    site.assert_log_is_sound();
    is_ready(&client).await;
    let peak = server.peak();
    println!("a hundred thousand rows took {} MiB at most", peak / MIB);
    assert!(peak < 200 * MIB, "{} MiB", peak / MIB);
}
