//! Partitioned tables are streamed as the one table they are.

use crate::site::Site;
use crate::support::Bourn;

const TABLE: &str = "CREATE TABLE events (id text, region text NOT NULL, body text, PRIMARY KEY (id, region)) PARTITION BY LIST (region); \
     CREATE TABLE events_a PARTITION OF events FOR VALUES IN ('a'); \
     CREATE TABLE events_b PARTITION OF events FOR VALUES IN ('b') PARTITION BY HASH (id); \
     CREATE TABLE events_b0 PARTITION OF events_b FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
     CREATE TABLE events_b1 PARTITION OF events_b FOR VALUES WITH (MODULUS 2, REMAINDER 1);";
const ENTITY: &str = "[[entity]]\ntype = 'event'\ntable = 'events'\nscope = 'region'\n";

async fn events() -> (Site, Bourn) {
    let site = Site::new(TABLE, ENTITY).await.eager();
    site.sql("INSERT INTO events SELECT 'e' || i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'x' FROM generate_series(1, 40) i");
    let server = site.server().await;
    (site, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_all_partitions_are_one_stream_also_when_they_move() {
    let (site, server) = events().await;
    site.assert_agrees(&server, "events").await;
    site.sql("UPDATE events SET body = 'y' WHERE id IN ('e1', 'e2')");
    site.sql("UPDATE events SET region = 'b' WHERE id = 'e2'");
    site.sql("UPDATE events SET region = 'a', body = 'z' WHERE id = 'e1'");
    site.sql("UPDATE events SET id = 'f3' WHERE id = 'e3'");
    site.sql("DELETE FROM events WHERE id IN ('e4', 'e5')");
    site.assert_agrees(&server, "events").await;
    let scoped = server.client().read_all("/v1/entities/events?organizationId=b", "-1").await.0;
    assert_eq!(scoped.last().unwrap()["key"], "e5");
    assert!(scoped.iter().any(|message| message["key"] == "e2"));
    site.sql("TRUNCATE events; INSERT INTO events VALUES ('again', 'a', 'x')");
    site.assert_agrees(&server, "events").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_may_be_added_without_a_restart() {
    let (site, server) = events().await;
    site.sql("CREATE TABLE events_c PARTITION OF events FOR VALUES IN ('c')");
    site.sql("INSERT INTO events VALUES ('c1', 'c', 'x'), ('c2', 'c', 'x')");
    site.sql("UPDATE events SET body = 'y' WHERE id = 'c1'; DELETE FROM events WHERE id = 'c2'");
    site.sql("UPDATE events SET region = 'c' WHERE id = 'e1'");
    site.assert_agrees(&server, "events").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_and_go_with_their_rows_are_compared_with_the_log() {
    let (site, server) = events().await;
    site.sql("ALTER TABLE events DETACH PARTITION events_a");
    site.assert_agrees(&server, "events").await;
    site.sql("DELETE FROM events_a WHERE id = 'e2'; INSERT INTO events_a VALUES ('other', 'a', 'x')");
    site.sql("ALTER TABLE events ATTACH PARTITION events_a FOR VALUES IN ('a')");
    site.assert_agrees(&server, "events").await;
    site.sql("DROP TABLE events_b1");
    site.assert_agrees(&server, "events").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_truncated_by_itself_is_compared_with_the_log() {
    let (site, server) = events().await;
    site.sql("TRUNCATE events_a");
    site.assert_agrees(&server, "events").await;
    site.sql("BEGIN; INSERT INTO events VALUES ('before', 'b', 'x'); TRUNCATE events_b; INSERT INTO events VALUES ('after', 'b', 'x'); COMMIT");
    site.assert_agrees(&server, "events").await;
}
