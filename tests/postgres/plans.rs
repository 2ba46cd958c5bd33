//! The log is read by its indexes, whatever the planner has come to think of it.

use serde_json::json;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, is_ready, state};
use crate::support::eventually;

const COUNTERS: &str = "CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL);";
const COUNTER: &str = "[[entity]]\ntype = 'counter'\ntable = 'counters'\n";
const COUNTERS_PATH: &str = "/v1/entities/counters";
/// Changes of one row: many for the log, and each walk along them shows.
const CHANGES: usize = 20_000;
const ROWS: usize = 500;

/// Waits for the sessions of a server that is killed: each counts what it read when it ends.
async fn all_is_counted(site: &Site) {
    let connected = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                     AND backend_type IN ('client backend', 'walsender')";
    eventually("the database has counted what was read", async || site.sql(connected) == "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_tells_mostly_of_one_row_is_not_searched_from_end_to_end_for_others() {
    let site = Site::new(&[PAGES, COUNTERS].concat(), &[PAGE, COUNTER].concat()).await.eager();
    let mut server = site.server().await;
    // The log is asked for what a row was.
    site.sql("ALTER TABLE counters REPLICA IDENTITY DEFAULT");
    is_ready(&server.client()).await;
    let client = server.client();
    let count = format!(
        "DO $$ BEGIN FOR i IN 1..{CHANGES} LOOP UPDATE counters SET n = i WHERE id = 0; END LOOP; END $$"
    );
    site.sql("ALTER TABLE bourn.activities SET (autovacuum_enabled = false)");
    client.make_page("p1", "t1").await;
    site.sql("INSERT INTO counters VALUES (0, 0)");
    // Statements that are planned while the log is short are planned again when it is long.
    for i in 1..=20 {
        site.sql(&format!("UPDATE counters SET n = -{i}"));
        site.captured().await;
    }
    site.sql(&count);
    site.captured().await;
    // From here on the planner expects any row and any type within a few places.
    site.sql("ANALYZE bourn.activities");
    site.sql(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series(1, {ROWS}) i"));
    site.sql(&count);
    site.captured().await;

    site.sql("UPDATE counters SET n = -1 WHERE id > 0");
    site.captured().await;
    let changes = json!({ "name": "changed" });
    let answer = client.patch(&format!("{PAGES_PATH}/p1"), &[("x-transaction-id", "t2")], &changes).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    site.captured().await;
    assert_eq!(state(&client, PAGES_PATH).await, site.table("pages", "id"));
    assert!(client.get("/v1/activities?entityType=page&entityId=none").await.json() == json!([]));
    assert_eq!(state(&client, COUNTERS_PATH).await, site.table("counters", "id"));
    server.kill().await;
    all_is_counted(&site).await;
    let read = "SELECT seq_tup_read + (SELECT sum(i.idx_tup_read) FROM pg_stat_user_indexes i WHERE i.relid = t.relid) \
                FROM pg_stat_user_tables t WHERE relname = 'activities'";
    let read: usize = site.sql(read).parse().unwrap();
    // Some are read for the streams.
    assert!(read < 3 * CHANGES, "{read} of the log's activities were read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_of_large_rows_reads_no_more_of_them_than_it_has_room_for() {
    const LARGE: usize = 64;
    let site = Site::new(PAGES, PAGE).await.eager();
    let mut server = site.server().await;
    site.sql(&format!(
        "INSERT INTO pages (id, content) SELECT 'p' || i, (SELECT string_agg(md5(random()::text || j || i), '') FROM generate_series(1, 32768) j) \
         FROM generate_series(1, {LARGE}) i"
    ));
    site.captured().await;
    drop(server);
    // Another server has nothing of them in memory.
    server = site.server().await;
    let client = server.client();
    let (mut offset, mut answers) = ("-1".to_owned(), 0);
    loop {
        let answer = client.get(&format!("{PAGES_PATH}?offset={offset}")).await;
        assert_eq!(answer.status, 200);
        if answer.next_offset() == offset || answer.json() == json!([]) {
            break;
        }
        (offset, answers) = (answer.next_offset(), answers + 1);
    }
    assert!(answers >= 5, "{answers} answers have all rows");
    server.kill().await;
    all_is_counted(&site).await;
    let packed = "SELECT sum(i.idx_tup_read) FROM pg_stat_all_indexes i \
                  JOIN pg_class c ON c.reltoastrelid = i.relid WHERE c.oid = 'bourn.activities'::regclass";
    let read: usize = site.sql(packed).parse().unwrap();
    let pieces: usize = site
        .sql("SELECT sum(ceil(pg_column_size(value) / 1996.0)::int) FROM bourn.activities")
        .parse()
        .unwrap();
    assert!(pieces > 10 * LARGE, "the rows are not large: {pieces} pieces");
    assert!(read < 2 * pieces, "{read} pieces of rows were read, of {pieces}");
}
