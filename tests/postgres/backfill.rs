//! The first look at a table, and later ones: shown while it goes on, taken up again after a crash, in bounded memory, and
//! without keeping other tables waiting.

use std::io::Write;
use std::process::{Command, Stdio};

use bourn_testkit::Cluster;

use crate::load::{Load, on_pages};
use crate::site::{PAGE, PAGES, PAGES_PATH, Site, is_ready, says, state};
use crate::support::eventually;

const NOTES: &str = "CREATE TABLE notes (id int PRIMARY KEY, body text);";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\n";
const NOTES_PATH: &str = "/v1/entities/notes";
const ROWS: usize = 100_000;
const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_compared_beside_live_capture_and_through_kills() {
    let site = Site::new(&[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).await.eager();
    site.sql(&format!("INSERT INTO notes SELECT i, repeat('x', 100) FROM generate_series(1, {ROWS}) i"));
    let compared = || -> usize {
        let sql = "SELECT coalesce(max(compared), 0) FROM bourn.entities WHERE entity_type = 'note'";
        site.sql(sql).parse().unwrap()
    };
    let mut server = site.begin_server().await;
    let client = server.client();
    let load = Load::start(&site.database.url(), 2, 900, &on_pages());
    let (mut peak, mut beside) = (0, Vec::new());
    for part in 1..=3 {
        eventually("a part is compared", async || compared() >= part * ROWS / 5).await;
        let before = compared();
        if before < ROWS {
            let ready = client.get("/ready").await.json();
            assert_eq!(ready["entities"][1]["state"], "comparing", "{ready}");
            // Rows that were looked at, and rows that were not, change meanwhile.
            site.sql(&format!(
                "UPDATE notes SET body = 'part {part}' WHERE id % 1000 = {part}; DELETE FROM notes WHERE id % 1000 = {}; \
                 UPDATE notes SET id = id + 1000000 WHERE id % 1000 = {}; INSERT INTO notes VALUES (-{part}, 'new')",
                part + 10,
                part + 20
            ));
            let page = format!("beside{part}");
            site.time_to_capture(&page).await;
            beside.push(page);
        }
        peak = peak.max(server.peak());
        server.kill().await;
        server.begin_again().await;
        eventually("it goes on", async || compared() != before || before >= ROWS).await;
        assert!(compared() >= before, "it is not begun anew");
    }
    load.end().await;
    is_ready(&client).await;
    site.assert_agrees(&server, "pages").await;
    site.captured().await;
    assert!(state(&client, NOTES_PATH).await == site.table("notes", "id"), "the stream adds up to the table");
    site.assert_log_is_sound();
    // Pages do not wait for the notes: each is in the log before the last of those.
    for page in beside {
        let before = site.sql(&format!(
            "SELECT (SELECT min(seq) FROM bourn.activities WHERE entity_id = '{page}') \
             < (SELECT min(seq) FROM bourn.activities WHERE entity_type = 'note' AND entity_id = '{}')",
            ROWS - 1
        ));
        assert_eq!(before, "t", "{page}");
    }
    peak = peak.max(server.peak());
    println!("{} MiB at most", peak / MIB);
    assert!(peak < 200 * MIB, "{} MiB", peak / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_whose_statements_are_cancelled_is_gone_on_with() {
    let site = Site::new(&[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).await.eager();
    site.sql(&format!("INSERT INTO notes SELECT i, repeat('x', 100) FROM generate_series(1, {ROWS}) i"));
    let server = site.begin_server().await;
    let load = Load::start(&site.database.url(), 1, 901, &on_pages());
    eventually("notes are in the log", async || {
        site.sql("SELECT count(*) > 0 FROM bourn.activities WHERE entity_type = 'note'") == "t"
    })
    .await;
    // Whatever reads the table is cancelled while it does.
    site.sql(
        "DO $$ DECLARE cancelled int := 0; BEGIN \
           FOR turn IN 1..30000 LOOP \
             PERFORM pg_stat_clear_snapshot(); \
             PERFORM pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name = 'bourn' AND state = 'active' AND query LIKE 'SELECT%FROM%notes% t WHERE%'; \
             IF FOUND THEN cancelled := cancelled + 1; END IF; \
             EXIT WHEN cancelled = 3; \
             PERFORM pg_sleep(0.001); \
           END LOOP; \
           ASSERT cancelled = 3, 'the table is never being read'; \
         END $$",
    );
    site.assert_agrees(&server, "notes").await;
    load.end().await;
    site.assert_agrees(&server, "pages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_configured_later_is_streamed_from_its_first_row() {
    let site = Site::new(&[PAGES, NOTES].concat(), PAGE).await.eager();
    site.sql("INSERT INTO notes VALUES (1, 'x'), (2, 'y'); INSERT INTO pages (id) VALUES ('p1')");
    let mut server = site.server().await;
    site.assert_agrees(&server, "pages").await;
    server.kill().await;
    site.configure(&[PAGE, NOTE].concat());
    site.prepare().await;
    server.restart().await;
    site.assert_agrees(&server, "notes").await;
    site.sql("UPDATE notes SET body = 'z'");
    site.assert_agrees(&server, "notes").await;
    assert_eq!(server.client().read_all(NOTES_PATH, "-1").await.0.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_are_open_when_capture_begins_are_not_lost() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let mut open = site.database.psql_command().stdin(Stdio::piped()).spawn().unwrap();
    let mut input = open.stdin.take().unwrap();
    input.write_all(b"BEGIN; INSERT INTO pages (id) VALUES ('open');\n").unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
    eventually("the transaction is open", async || site.sql(waits) == "1").await;
    let server = site.begin_server().await;
    says(&server.client(), "waits for transactions that are open").await;
    server.client().make_page("p1", "t1").await;
    input.write_all(b"INSERT INTO pages (id) VALUES ('open too'); COMMIT;\n").unwrap();
    drop(input);
    open.wait().unwrap();
    site.assert_agrees(&server, "pages").await;
    assert_eq!(site.table("pages", "id").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_restored_from_a_dump_elsewhere_is_captured_on_under_another_epoch() {
    let old = Cluster::start();
    let site = Site::on(&old, PAGES, PAGE).await.eager();
    // So that places of the write-ahead log and transaction numbers are far ahead of a new cluster's.
    for i in 0..20 {
        site.sql(&format!("INSERT INTO pages (id, name) VALUES ('p{i}', 'first'); SELECT pg_switch_wal()"));
    }
    site.sql("DO $$ BEGIN FOR i IN 1..2000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$");
    let server = site.server().await;
    site.sql("UPDATE pages SET name = 'second' WHERE id = 'p1'");
    site.assert_agrees(&server, "pages").await;
    let (_, offset) = server.client().read_all(PAGES_PATH, "-1").await;
    drop(server);
    let dump = Command::new("pg_dump").arg(site.database.url()).output().unwrap();
    let refused = String::from_utf8_lossy(&dump.stderr);
    if refused.contains("server version mismatch") {
        println!("skipped: the installed pg_dump is older than the server");
        return;
    }
    assert!(dump.status.success(), "{refused}");

    let new = Cluster::start();
    let moved = Site::bare(&new, &String::from_utf8(dump.stdout).unwrap(), PAGE).eager();
    // Before anybody captures, and after.
    moved.sql("UPDATE pages SET name = 'moved' WHERE id IN ('p1', 'p2'); DELETE FROM pages WHERE id = 'p3'");
    let server = moved.server().await;
    moved.sql("UPDATE pages SET name = 'live' WHERE id = 'p4'; INSERT INTO pages (id) VALUES ('new')");
    moved.assert_agrees(&server, "pages").await;
    let answer = server.client().get(&format!("{PAGES_PATH}?offset={offset}")).await;
    answer.assert_error(410, "OFFSET_GONE");
    assert_eq!(state(&server.client(), PAGES_PATH).await, moved.table("pages", "id"));
    let list = server.client().get(PAGES_PATH).await;
    let (after, _) = server.client().read_all(PAGES_PATH, list.header("stream-next-offset")).await;
    assert!(after.is_empty(), "the list's place is the tail: {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_go_while_their_table_is_compared_are_not_brought_back() {
    // A step of the comparing has its snapshot and waits for the table; the rows that it will see go meanwhile.
    const MEANWHILE: &str = "BEGIN; LOCK TABLE notes IN ACCESS EXCLUSIVE MODE; \
         DO $$ BEGIN FOR i IN 1..1000 LOOP PERFORM pg_stat_clear_snapshot(); \
           IF EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bourn' \
             AND wait_event_type = 'Lock') THEN RETURN; END IF; PERFORM pg_sleep(0.01); END LOOP; RAISE 'nobody waits'; END $$; \
         DELETE FROM notes WHERE id % 4 = 0; UPDATE notes SET id = -id WHERE id % 4 = 1; UPDATE notes SET body = 'y' WHERE id % 4 = 2; COMMIT";
    let site = Site::new(NOTES, NOTE).await.eager();
    site.sql(&format!("INSERT INTO notes SELECT i, 'x' FROM generate_series(1, {}) i", ROWS / 2));
    let server = site.begin_server().await;
    eventually("comparing has begun", async || {
        site.try_sql("SELECT 1 FROM bourn.entities WHERE compared > 0").is_ok_and(|found| found == "1")
    })
    .await;
    site.sql(MEANWHILE);
    server.ready().await;
    site.captured().await;
    server.ready().await;
    let (streamed, table) = (state(&server.client(), NOTES_PATH).await, site.table("notes", "id"));
    let phantoms = streamed.keys().filter(|key| !table.contains_key(*key)).count();
    assert_eq!((phantoms, streamed.len()), (0, table.len()), "rows that are in the log and not in the table");
    assert!(streamed == table, "the stream adds up to the table");
    site.assert_log_is_sound();
}
