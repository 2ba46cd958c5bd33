//! What only SQLite's writers can do.
use crate::backend::Backend;
use crate::sqlite::Sqlite;

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_row_is_an_update_whether_or_not_triggers_recurse() {
    let db = Sqlite::open(&[]).await;
    db.sql("INSERT INTO pages (id, organization_id, name, transactions) VALUES ('p1', 'acme', 'a', '{\"insert\":\"t1\"}')");
    db.sql("PRAGMA recursive_triggers = OFF; REPLACE INTO pages (id, organization_id, name, transactions) VALUES ('p1', 'acme', 'b', '{\"insert\":\"t1\"}')");
    db.sql("PRAGMA recursive_triggers = OFF; REPLACE INTO pages (id, organization_id, name, transactions) VALUES ('p1', 'beta', 'c', '{\"insert\":\"t2\"}')");
    db.sql("PRAGMA recursive_triggers = ON; REPLACE INTO pages (id, organization_id, name) VALUES ('p1', 'beta', 'd')");
    let told = db.told(6).await;
    assert_eq!(
        told,
        [
            "create p1 acme t1",
            "update p1 acme -",
            "delete p1 acme t2",
            "create p1 beta t2",
            "delete p1 beta -",
            "create p1 beta -"
        ][..]
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_case_is_a_change_whatever_the_collation() {
    let db =
        Sqlite::open(&["CREATE TABLE tags (id TEXT PRIMARY KEY COLLATE NOCASE, label TEXT COLLATE NOCASE)"])
            .await;
    db.sql("INSERT INTO tags VALUES ('x', 'abc')");
    db.sql("UPDATE tags SET label = 'ABC'");
    db.sql("INSERT OR IGNORE INTO tags VALUES ('x', 'other')");
    assert_eq!(db.told(2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_replaced_by_a_deleted_one_or_put_back_is_told_honestly() {
    let db = Sqlite::open(&[]).await;
    let replace = |scope: &str, deleted: &str, ids: &str| {
        db.sql(&format!(
            "REPLACE INTO pages (id, organization_id, deleted_at, transactions) VALUES ('p', '{scope}', {deleted}, '{ids}')"
        ));
    };
    replace("acme", "NULL", r#"{"insert":"t1","update":"t2"}"#);
    // Put into another scope with everything else as it was: no ids are passed on.
    replace("beta", "NULL", r#"{"insert":"t1","update":"t2"}"#);
    replace("beta", "'2026-01-15'", r#"{"insert":"t1","update":"t2","delete":"t3"}"#);
    replace("beta", "'2026-01-16'", r#"{"insert":"t1","update":"t2","delete":"t4"}"#);
    assert_eq!(
        db.told(4).await,
        ["create p acme t2", "delete p acme -", "create p beta -", "delete p beta t3"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_applications_own_triggers_are_logged_in_the_order_of_events() {
    let touch = "CREATE TABLE items (id TEXT PRIMARY KEY, name TEXT, touched INTEGER, transactions TEXT)";
    let db = Sqlite::open(&[touch]).await;
    db.sql(
        "CREATE TRIGGER touch_new AFTER INSERT ON items BEGIN UPDATE items SET touched = 1 WHERE id = NEW.id; END;
         CREATE TRIGGER touch AFTER UPDATE OF name ON items BEGIN UPDATE items SET touched = touched + 1 WHERE id = NEW.id; END",
    );
    let newest = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'items' ORDER BY rowid DESC LIMIT 1";
    crate::backend::eventually("ours are the newest", || db.query(newest).starts_with("bourn_items__")).await;
    let made = db.write("t1", db.create("items", "i", &serde_json::json!({ "name": "a" }))).await.unwrap();
    assert!(
        std::str::from_utf8(&made.row.unwrap()).unwrap().contains(r#""touched":1"#),
        "the row as it is at the end"
    );
    db.write("t2", db.update("items", "i", &serde_json::json!({ "name": "b" }))).await.unwrap();
    let log = db.log(4).await;
    assert_eq!(
        log.iter().map(|a| a.action.as_str()).collect::<Vec<_>>(),
        ["create", "update", "update", "update"]
    );
    let row = serde_json::from_str::<serde_json::Value>(log[3].value.as_deref().unwrap()).unwrap();
    assert_eq!(db.rows("items").await["i"], row);
    assert_eq!(log[0].commit_id, log[1].commit_id, "one mutation is one transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_key_is_the_applications_own_business() {
    let db = Sqlite::open(&[]).await;
    db.sql("INSERT INTO pages (id, name) VALUES (NULL, 'x')");
    db.sql("UPDATE pages SET name = 'y'");
    db.sql("UPDATE pages SET id = 'p'");
    db.sql("UPDATE pages SET id = NULL");
    db.sql("DELETE FROM pages");
    assert_eq!(db.told(2).await, ["create p - -", "delete p - -"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_text_stops_nothing() {
    let db = Sqlite::open(&[]).await;
    db.sql("INSERT INTO pages (id, name) VALUES ('p', CAST(x'ff42' AS TEXT)), ('q', 'fine')");
    db.log(2).await;
    let db =
        db.reopen("DROP TRIGGER bourn_pages__update; UPDATE pages SET name = 'better' WHERE id = 'q'").await;
    db.log(3).await;
    db.write("t1", db.delete("pages", "p")).await.unwrap();
    assert_eq!(db.rows("pages").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_rolls_everything_back_takes_nobody_with_it() {
    let db = Sqlite::open(&[]).await;
    db.sql(
        "CREATE TRIGGER strict BEFORE INSERT ON notes WHEN NEW.body = 'bad' BEGIN SELECT RAISE(ROLLBACK, 'no'); END;
         CREATE TRIGGER quiet BEFORE INSERT ON notes WHEN NEW.body = 'quiet' BEGIN SELECT RAISE(IGNORE); END",
    );
    let write = |i: usize| {
        let body = match i % 5 {
            0 => "bad",
            1 => "quiet",
            _ => "good",
        };
        let db = &db;
        async move {
            (
                i % 5 > 1,
                db.write(
                    &format!("t{i}"),
                    db.create("notes", &format!("n{i:02}"), &serde_json::json!({ "body": body })),
                )
                .await,
            )
        }
    };
    let mut writes: Vec<_> = (0..30).map(|i| Box::pin(write(i))).collect();
    std::future::poll_fn(|cx| {
        writes.retain_mut(|write| match write.as_mut().poll(cx) {
            std::task::Poll::Ready((good, result)) => {
                assert_eq!(good, result.is_ok(), "{result:?}");
                false
            }
            std::task::Poll::Pending => true,
        });
        if writes.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    db.log(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_begin_alike_do_not_fight_over_triggers() {
    let db = Sqlite::open(&[
        "CREATE TABLE a (id TEXT PRIMARY KEY)",
        "CREATE TABLE a__insert (id TEXT PRIMARY KEY)",
    ])
    .await;
    db.sql("CREATE TABLE unrelated (x)");
    let version = || db.query("PRAGMA schema_version");
    db.sql("INSERT INTO a VALUES ('1'); INSERT INTO a__insert VALUES ('1')");
    db.log(2).await;
    let before = version();
    db.sql("INSERT INTO a VALUES ('2')");
    db.log(3).await;
    assert_eq!(version(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_looked_at_is_looked_at_again() {
    let db = Sqlite::open(&[]).await;
    // The table is recreated, without triggers, and the file is held longer than the server waits.
    db.sql(
        "BEGIN IMMEDIATE; CREATE TABLE new_notes (id TEXT PRIMARY KEY, body TEXT, more TEXT); DROP TABLE notes;
         ALTER TABLE new_notes RENAME TO notes; COMMIT; BEGIN IMMEDIATE",
    );
    crate::backend::eventually("the server has noticed that it cannot", || {
        bourn::feed::Capture::status(db.storage()).stalled.is_some()
    })
    .await;
    db.sql("COMMIT");
    crate::backend::eventually("the server has come back to it", || {
        db.query("SELECT count(*) FROM sqlite_master WHERE name LIKE 'bourn_notes\\_\\_%' ESCAPE '\\'") == "3"
    })
    .await;
    db.sql("INSERT INTO notes (id, more) VALUES ('n', 'x')");
    assert!(db.log(1).await[0].value.as_deref().unwrap().contains(r#""more":"x""#));
    crate::backend::eventually("all is well", || {
        bourn::feed::Capture::status(db.storage()).stalled.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_renewed_by_hand_has_the_same_changes_under_another_epoch() {
    let db = Sqlite::open(&[]).await;
    db.sql("INSERT INTO pages (id) VALUES ('p1'), ('p2')");
    db.log(2).await;
    let before = db.storage().bounds().await.unwrap();
    db.renew();
    let mut head = db.storage().head();
    head.wait_for(|head| head.epoch != before.epoch).await.unwrap();
    let after = db.storage().bounds().await.unwrap();
    assert_eq!((after.epoch != before.epoch, after.seq), (true, before.seq));
    assert_eq!(db.told(2).await, ["create p1 - -", "create p2 - -"]);
    assert_eq!(
        db.query("SELECT id FROM activities WHERE seq = 1"),
        format!("{}_{:016}", after.epoch.as_str(), 1)
    );
    db.write("t1", db.delete("pages", "p1")).await.unwrap();
    db.log(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_another_process_is_whole_however_many_rows_it_has() {
    let db = Sqlite::open(&[]).await;
    db.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 7000)
         INSERT INTO notes (id) SELECT 'n' || i FROM n",
    );
    let before = db.log(7_000).await;
    assert!(before.iter().all(|activity| activity.commit_id == 7_000));
    db.write("t1", db.delete("notes", "n1")).await.unwrap();
    assert_eq!(db.query("SELECT count(*) FROM activities WHERE commit_id = 7000"), "7000", "it is folded");
    assert_eq!(db.log(7_001).await[..7_000], before, "that changes nothing");
    db.sql("INSERT INTO notes (id) VALUES ('last')");
    assert_eq!(db.log(7_002).await.last().unwrap().commit_id, 7_002);
}
