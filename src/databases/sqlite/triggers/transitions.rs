//! Tests of capture's triggers against the shared rules of settling: every transition of a row, made by SQL, and what the
//! triggers log of it.

use rusqlite::Connection;

use super::{all, installed};
use crate::capture::settle::{RowPlace, Transition};
use crate::databases::sqlite::connect;
use crate::databases::sqlite::tables::introspect;
use crate::feed::entity::Catalog;

/// A row of the table, or its absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RowState {
    key: &'static str,
    scope: &'static str,
    name: &'static str,
    deleted: bool,
}

impl RowState {
    fn place(&self) -> Option<RowPlace<'static>> {
        (!self.deleted).then_some(RowPlace { key: self.key, scope: Some(self.scope) })
    }

    fn assignments(&self) -> String {
        let deleted_at = if self.deleted { "'2026-01-01T00:00:00Z'" } else { "NULL" };
        format!(
            "id = '{}', org = '{}', name = '{}', deleted_at = {deleted_at}",
            self.key, self.scope, self.name
        )
    }
}

/// The versions that a row may have, and `None` for a row that is not there.
fn versions() -> Vec<Option<RowState>> {
    let mut versions = vec![None];
    for key in ["k", "j"] {
        for scope in ["a", "b"] {
            for name in ["x", "y"] {
                versions.extend([false, true].map(|deleted| Some(RowState { key, scope, name, deleted })));
            }
        }
    }
    versions
}

fn database() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    connect::migrate(&mut connection).unwrap();
    connection
        .execute_batch("CREATE TABLE rows (id TEXT PRIMARY KEY, org TEXT, name TEXT, deleted_at TEXT)")
        .unwrap();
    let config = toml::from_str("type = 'row'\ntable = 'rows'\nscope = 'org'").unwrap();
    let entity = Catalog::new(&[config]).by_name("row").unwrap().clone();
    let schema = introspect::table(&connection, &entity).unwrap().unwrap();
    installed::install(&connection, &entity, &all(&entity, &schema)).unwrap();
    connection
}

fn insert(connection: &Connection, row: RowState) {
    let deleted_at = row.deleted.then_some("2026-01-01T00:00:00Z");
    let values = rusqlite::params![row.key, row.scope, row.name, deleted_at];
    connection.execute("INSERT INTO rows VALUES (?1, ?2, ?3, ?4)", values).unwrap();
}

/// What the rules say of a change: actions with the keys and scopes that readers get them in.
fn expected(before: Option<RowState>, after: Option<RowState>) -> Vec<(String, String, String)> {
    let activity = |action: &str, place: Option<RowPlace<'_>>| {
        let place = place.unwrap();
        (action.to_owned(), place.key.to_owned(), place.scope.unwrap_or_default().to_owned())
    };
    let (was, is) = (before.and_then(|row| row.place()), after.and_then(|row| row.place()));
    match Transition::between(was, is) {
        Transition::Hidden => vec![],
        Transition::Enters => vec![activity("create", is)],
        Transition::Leaves => vec![activity("delete", was)],
        Transition::Moves => vec![activity("delete", was), activity("create", is)],
        Transition::Stays if before == after => vec![],
        Transition::Stays => vec![activity("update", is)],
    }
}

#[test]
fn triggers_log_every_transition_as_the_shared_rules_say() {
    let connection = database();
    let mut transitions = 0;
    for before in versions() {
        for after in versions() {
            connection.execute_batch("DELETE FROM rows").unwrap();
            if let Some(row) = before {
                insert(&connection, row);
            }
            let head: i64 = connection
                .query_row("SELECT coalesce(max(seq), 0) FROM activities", [], |row| row.get(0))
                .unwrap();
            match (before, after) {
                (_, None) => connection.execute_batch("DELETE FROM rows").unwrap(),
                (Some(_), Some(row)) => {
                    connection.execute_batch(&format!("UPDATE rows SET {}", row.assignments())).unwrap();
                }
                (None, Some(row)) => insert(&connection, row),
            }
            let logged: Vec<(String, String, String)> = connection
                .prepare(
                    "SELECT action, entity_id, organization_id FROM activities WHERE seq > ?1 ORDER BY seq",
                )
                .unwrap()
                .query_map([head], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            assert_eq!(logged, expected(before, after), "{before:?} to {after:?}");
            transitions += 1;
        }
    }
    assert_eq!(transitions, 17 * 17);
}
