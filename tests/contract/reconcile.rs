//! A table that the log does not have as it is.

use crate::backend::Backend;

pub async fn existing_rows_become_the_beginning_of_the_log<B: Backend>() {
    let many: String = (0..1_200).map(|i| format!("INSERT INTO old VALUES ('o{i:04}', 'x');")).collect();
    let db = B::open(&[&format!("CREATE TABLE old (id TEXT PRIMARY KEY, body TEXT); {many}")]).await;
    let log = db.log(1_200).await;
    assert!(
        log.iter().all(|activity| activity.action.as_str() == "create" && activity.transaction_id.is_none())
    );
    assert_eq!(db.rows("old").await.len(), 1_200);
    // Once is enough.
    let db = db.reopen("").await;
    db.log(1_200).await;
}

pub async fn what_was_missed_is_made_good<B: Backend>() {
    let db = B::open(&[]).await;
    db.sql("INSERT INTO pages (id, organization_id, name) VALUES ('same', 'acme', 'a'), ('changed', 'acme', 'a'), ('moved', 'acme', 'a'), ('gone', 'acme', 'a'), ('hidden', 'acme', 'a')");
    db.log(5).await;
    // The table changes unseen.
    let blindfold = db.blindfold();
    let db = db
        .reopen(&format!(
            "{blindfold}
             UPDATE pages SET name = 'b' WHERE id = 'changed'; UPDATE pages SET organization_id = 'beta' WHERE id = 'moved';
             DELETE FROM pages WHERE id = 'gone'; UPDATE pages SET deleted_at = '2026-01-15' WHERE id = 'hidden';
             INSERT INTO pages (id, organization_id) VALUES ('new', 'acme'); ALTER TABLE pages ADD COLUMN colour TEXT;",
        ))
        .await;
    let mut told = db.told(11).await.split_off(5);
    told.sort();
    assert_eq!(
        told,
        [
            "create moved beta -",
            "create new acme -",
            "delete gone acme -",
            "delete hidden acme -",
            "delete moved acme -",
            "update changed acme -"
        ]
    );
}
