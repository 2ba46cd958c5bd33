//! Rows of a SQLite file that change between the making of the triggers and the comparison of their table with the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Bourn, Client, sqlite_url, sqlite3};

const NOTES: &str = "/v1/entities/notes";

struct Site {
    _directory: tempfile::TempDir,
    database: PathBuf,
    config: PathBuf,
}

impl Site {
    fn new() -> Site {
        let directory = tempfile::tempdir().unwrap();
        let (database, config) = (directory.path().join("a.db"), directory.path().join("bourn.toml"));
        sqlite3(
            &database,
            "CREATE TABLE notes (id TEXT PRIMARY KEY, text TEXT, team TEXT, deleted_at TEXT);
             INSERT INTO notes (id, text, team) VALUES ('a', '1', 'red'), ('b', '1', 'red'), ('c', '1', 'red'), ('d', '1', 'red')",
        );
        let entity = "[[entity]]\ntype = 'note'\ntable = 'notes'\nscope = 'team'\nprevious_values = true\n";
        std::fs::write(&config, entity).unwrap();
        Site { _directory: directory, database, config }
    }

    fn sql(&self, sql: &str) {
        sqlite3(&self.database, sql);
    }

    /// Makes the triggers, as an operator does it; the table is not compared.
    async fn prepare(&self) {
        let (config, url) = (self.config.to_str().unwrap(), sqlite_url(&self.database));
        let output =
            Bourn::output(&["prepare", "--apply", "--config", config, "--database", &url], &[]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn serve(&self) -> Bourn {
        Bourn::start_on(&sqlite_url(&self.database), &[("config", self.config.to_str().unwrap())]).await
    }
}

/// What happened to each row, and what is left, in a stream that is read from its start.
async fn history(client: &Client, stream: &str) -> (BTreeMap<String, Vec<String>>, BTreeMap<String, Value>) {
    let (mut happened, mut rows) = (BTreeMap::<_, Vec<String>>::new(), BTreeMap::new());
    for message in client.read_all(stream, "-1").await.0 {
        let (key, operation) = (message["key"].as_str().unwrap(), &message["headers"]["operation"]);
        happened.entry(key.to_owned()).or_default().push(operation.as_str().unwrap().to_owned());
        let known = match operation.as_str().unwrap() {
            "delete" => rows.remove(key).is_some(),
            "update" => rows.insert(key.to_owned(), message["value"].clone()).is_some(),
            _ => rows.insert(key.to_owned(), message["value"].clone()).is_none(),
        };
        assert!(known, "{stream}: {message}");
    }
    (happened, rows)
}

/// The keys of a list and of its stream, which must be the same.
async fn keys(client: &Client, team: &str) -> Vec<String> {
    let list = client.get(&format!("{NOTES}?organizationId={team}")).await.json();
    let listed: Vec<String> =
        list.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    let (_, rows) = history(client, &format!("{NOTES}?organizationId={team}")).await;
    assert_eq!(rows.into_keys().collect::<Vec<_>>(), listed, "{team}");
    listed
}

fn wrote(database: &Path) {
    sqlite3(
        database,
        "UPDATE notes SET text = '2' WHERE id = 'a';
         DELETE FROM notes WHERE id = 'b';
         UPDATE notes SET team = 'blue' WHERE id = 'c';
         UPDATE notes SET id = 'e' WHERE id = 'd'",
    );
}

#[tokio::test]
async fn a_row_that_is_changed_before_it_was_compared_is_told_from_its_beginning() {
    let site = Site::new();
    site.prepare().await;
    wrote(&site.database);
    let bourn = site.serve().await;
    let client = bourn.client();
    let (happened, rows) = history(&client, NOTES).await;
    for (key, expected) in [
        ("a", &["insert", "update"][..]),
        ("b", &["insert", "delete"]),
        ("c", &["insert", "delete", "insert"]),
        ("d", &["insert", "delete"]),
        ("e", &["insert"]),
    ] {
        assert_eq!(happened[key], expected, "{key}");
    }
    assert_eq!(rows["a"]["text"], "2");
    assert_eq!(keys(&client, "red").await, ["a", "e"]);
    assert_eq!(keys(&client, "blue").await, ["c"]);
    // Once it is compared, a change is one message again.
    bourn.sql("UPDATE notes SET text = '3' WHERE id = 'a'");
    crate::support::eventually("it is told", async || history(&client, NOTES).await.1["a"]["text"] == "3")
        .await;
    assert_eq!(history(&client, NOTES).await.0["a"], ["insert", "update", "update"]);
}

#[tokio::test]
async fn a_log_that_missed_changes_leaves_no_ghosts_of_rows_that_change_before_they_are_compared() {
    let site = Site::new();
    drop(site.serve().await);
    // The table is made again without triggers, with other contents.
    site.sql(
        "CREATE TABLE copy (id TEXT PRIMARY KEY, text TEXT, team TEXT, deleted_at TEXT);
         INSERT INTO copy VALUES ('a', '1', 'blue', NULL), ('b', '1', 'blue', NULL), ('c', '1', 'red', NULL), ('f', '1', 'red', NULL);
         DROP TABLE notes; ALTER TABLE copy RENAME TO notes",
    );
    site.prepare().await;
    site.sql(
        "UPDATE notes SET text = '2' WHERE id = 'a';
         DELETE FROM notes WHERE id = 'b';
         UPDATE notes SET id = 'd' WHERE id = 'c';
         UPDATE OR IGNORE notes SET id = 'd' WHERE id = 'f'",
    );
    let bourn = site.serve().await;
    let client = bourn.client();
    history(&client, NOTES).await;
    assert_eq!(keys(&client, "red").await, ["d", "f"]);
    assert_eq!(keys(&client, "blue").await, ["a"]);
}
