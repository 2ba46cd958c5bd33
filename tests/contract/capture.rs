//! Foreign writers: anybody with a connection.

use crate::backend::Backend;

pub async fn a_foreign_transaction_has_one_number_and_one_end<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql("BEGIN; INSERT INTO pages (id, organization_id) VALUES ('a', 'acme'), ('b', 'beta'), ('c', 'acme'); INSERT INTO notes (id) VALUES ('n'); COMMIT");
    let log = db.log(4).await;
    db.sql("INSERT INTO notes (id) VALUES ('m')");
    let more = db.log(5).await;
    assert!(log.iter().all(|activity| activity.commit_id == log[0].commit_id));
    assert_ne!(more[4].commit_id, log[0].commit_id);
    // Its end is marked for each type, and for each type and scope.
    let ends = |pick: fn(&bourn_protocol::Last) -> bool| {
        more.iter().map(|activity| pick(&activity.last)).collect::<Vec<_>>()
    };
    assert_eq!(ends(|last| last.of_type), [false, false, true, true, true]);
    assert_eq!(ends(|last| last.of_scope), [false, true, true, true, true]);
}

pub async fn what_is_rolled_back_is_never_seen<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql("BEGIN; INSERT INTO notes (id) VALUES ('no'); ROLLBACK");
    db.sql("BEGIN; INSERT INTO notes (id) VALUES ('a'); SAVEPOINT s; INSERT INTO notes (id) VALUES ('no'); ROLLBACK TO s; INSERT INTO notes (id) VALUES ('b'); COMMIT");
    assert_eq!(db.told(2).await, ["create a - -", "create b - -"]);
}

pub async fn a_writer_that_knows_nothing_passes_no_ids_on<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql(r#"INSERT INTO pages (id, name, transactions, last_client_id) VALUES ('p', 'a', '{"insert":"t1","update":null,"delete":null}', 'c1')"#);
    db.sql("UPDATE pages SET name = 'b'");
    db.sql(r#"UPDATE pages SET name = 'c', transactions = '{"insert":"t1","update":"t2","delete":null}'"#);
    db.sql("UPDATE pages SET name = 'd'");
    db.sql("UPDATE pages SET name = 'e', last_client_id = 'c2'");
    db.sql(&format!("UPDATE pages SET name = 'f', transactions = '{}'", B::NO_IDS));
    db.sql("DELETE FROM pages");
    let told = db.told(7).await;
    assert_eq!(
        told,
        [
            "create p - t1",
            "update p - -",
            "update p - t2",
            "update p - -",
            "update p - -",
            "update p - -",
            "delete p - -"
        ]
    );
    let log = db.log(7).await;
    let clients: Vec<_> = log.iter().map(|activity| activity.client_id.as_deref()).collect();
    assert_eq!(clients, [Some("c1"), None, Some("c1"), None, Some("c2"), None, None]);
}

pub async fn a_delete_may_be_announced<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql("INSERT INTO notes (id, body) VALUES ('n', 'x')");
    db.sql(
        r#"BEGIN; UPDATE notes SET transactions = '{"insert":null,"update":null,"delete":"t9"}', last_client_id = 'c9' WHERE id = 'n';
           DELETE FROM notes WHERE id = 'n'; COMMIT"#,
    );
    assert_eq!(db.told(2).await, ["create n - -", "delete n - t9"]);
    assert_eq!(db.log(2).await[1].client_id.as_deref(), Some("c9"));
}

pub async fn a_row_that_moves_leaves_one_scope_and_enters_the_other<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql("INSERT INTO pages (id, organization_id) VALUES ('p', 'acme')");
    db.sql(r#"UPDATE pages SET organization_id = 'beta', transactions = '{"update":"t1"}'"#);
    db.sql("UPDATE pages SET id = 'q'");
    db.sql("UPDATE pages SET organization_id = NULL");
    assert_eq!(
        db.told(7).await,
        [
            "create p acme -",
            "delete p acme t1",
            "create p beta t1",
            "delete p beta -",
            "create q beta -",
            "delete q beta -",
            "create q - -"
        ]
    );
}

pub async fn soft_deletion_is_deletion<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql("INSERT INTO pages (id, organization_id) VALUES ('p', 'acme')");
    db.sql(r#"UPDATE pages SET deleted_at = '2026-01-15', transactions = '{"delete":"t1"}'"#);
    db.sql("UPDATE pages SET name = 'nobody sees this'");
    assert!(db.rows("pages").await.is_empty());
    db.sql(r#"UPDATE pages SET deleted_at = NULL, transactions = '{"update":"t2"}'"#);
    assert_eq!(db.rows("pages").await.len(), 1);
    db.sql("UPDATE pages SET deleted_at = '2026-01-16'");
    db.sql("DELETE FROM pages");
    assert_eq!(
        db.told(4).await,
        ["create p acme -", "delete p acme t1", "create p acme t2", "delete p acme -"]
    );
}

pub async fn an_update_that_changes_nothing_is_nothing<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql("INSERT INTO notes (id, body) VALUES ('n', 'x')");
    db.sql("UPDATE notes SET body = body, id = id");
    db.sql("UPDATE notes SET body = 'y'");
    assert_eq!(db.told(2).await, ["create n - -", "update n - -"]);
}

pub async fn a_stamp_counts_once<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql("INSERT INTO pages (id) VALUES ('p')");
    db.sql(r#"UPDATE pages SET deleted_at = '2026-01-15', transactions = '{"delete":"t1"}'"#);
    db.sql("UPDATE pages SET deleted_at = NULL");
    db.sql("DELETE FROM pages");
    assert_eq!(db.told(4).await, ["create p - -", "delete p - t1", "create p - -", "delete p - -"]);
}
