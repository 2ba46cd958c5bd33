//! Large transactions, and the leader killed or hung amid them: each is in the log once and whole, or not yet.

use std::time::Duration;

use crate::site::{PAGE, PAGES, Site, leader, state};
use crate::support::{Bourn, PATIENCE, eventually, within};

const NOTES: &str =
    "CREATE TABLE notes (id int PRIMARY KEY, body text); ALTER TABLE notes REPLICA IDENTITY FULL;";
const NOTE: &str = "[[entity]]\ntype = 'note'\ntable = 'notes'\n";
const NOTES_PATH: &str = "/v1/entities/notes";
/// A part of a large transaction was appended and its end is still to come.
const AMID: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bourn' \
     AND backend_xid IS NOT NULL AND xact_start < now() - interval '50 ms'";

/// Waits until the leader is amid the transaction.
async fn amid(site: &Site, leader: &Bourn) {
    let is_amid = within(PATIENCE, async || site.sql(AMID) != "0").await;
    let sessions = "SELECT state, backend_xid, now() - query_start, wait_event, query FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 'bourn'";
    assert!(
        is_amid,
        "{}\n{}\n{}",
        site.sql(sessions),
        leader.client().get("/ready").await.text(),
        leader.recent_log()
    );
}

async fn agrees(site: &Site, server: &Bourn) {
    server.ready().await;
    site.captured().await;
    site.assert_log_is_sound();
    assert!(
        state(&server.client(), NOTES_PATH).await == site.table("notes", "id"),
        "the stream adds up to the table"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_amid_large_transactions_leaves_nothing_half_done() {
    let site = Site::new(&[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).await.eager();
    let mut servers = [site.server().await, site.server().await];
    for (round, sql) in [
        "INSERT INTO notes SELECT i, 'x' FROM generate_series(1, 60000) i",
        "UPDATE notes SET body = 'y'",
        "BEGIN; TRUNCATE notes; INSERT INTO notes SELECT i, 'z' FROM generate_series(30001, 80000) i; UPDATE notes SET body = 'end'; COMMIT",
    ]
    .iter()
    .enumerate()
    {
        let leads = leader(&servers).await;
        site.sql(sql);
        amid(&site, &servers[leads]).await;
        servers[leads].kill().await;
        let took = site.time_to_capture(&format!("after{round}")).await;
        println!("after a kill it took {took:?}");
        servers[leads].begin_again().await;
        agrees(&site, &servers[0]).await;
    }
    assert_eq!(
        site.sql("SELECT count(*) FROM bourn.activities WHERE entity_type = 'note'"),
        (60_000 * 3 + 50_000 * 2).to_string()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs_amid_a_large_transaction_does_not_keep_the_next_one_waiting() {
    let site = Site::new(&[PAGES, NOTES].concat(), &[PAGE, NOTE].concat()).await.eager();
    let servers = [site.server().await, site.server().await];
    let leads = leader(&servers).await;
    site.sql("INSERT INTO notes SELECT i, 'x' FROM generate_series(1, 60000) i");
    amid(&site, &servers[leads]).await;
    servers[leads].freeze();
    let count = "SELECT count(*) FROM bourn.activities WHERE entity_type = 'note'";
    let began = std::time::Instant::now();
    eventually("another has captured the transaction", async || site.sql(count) == "60000").await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(30), "it took {took:?}, the rows themselves included");
    servers[leads].thaw();
    site.sql("UPDATE notes SET body = 'y' WHERE id < 10");
    for server in &servers {
        agrees(&site, server).await;
    }
    assert_eq!(site.sql(count), "60009");
}
