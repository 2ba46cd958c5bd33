//! What must hold when everything is quiet, and the story of what does not.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::journal::{Journal, shown};
use crate::readers::{Reader, text};
use crate::schema::{SCOPES, Table};
use crate::support::Client;
use crate::world::{Row, World};

/// Columns whose old name may stay in a reader's row, for StreamDB merges.
const RENAMED: [&str; 2] = ["renamed_a", "renamed_b"];

/// A row that differs.
#[derive(Debug)]
pub struct Difference {
    pub key: String,
    pub what: String,
}

/// The first row in which a reader's state differs from the table.
pub fn difference<W: World>(
    held: &BTreeMap<String, Row>,
    told: &BTreeMap<String, Value>,
) -> Option<Difference> {
    for (key, row) in held {
        let Some(value) = told.get(key) else {
            return Some(Difference {
                key: key.clone(),
                what: "is in the table and not with the reader".into(),
            });
        };
        if let Some(what) = differs::<W>(&row.value, value) {
            return Some(Difference { key: key.clone(), what });
        }
    }
    let surplus = told.keys().find(|key| !held.contains_key(*key))?;
    Some(Difference { key: surplus.clone(), what: "is with the reader and not in the table".into() })
}

/// How two rows differ. A column that was added or dropped without a value is no change of a row.
fn differs<W: World>(held: &Value, told: &Value) -> Option<String> {
    let none = Value::Null;
    let (held, told) = (held.as_object()?, told.as_object()?);
    for (name, value) in held {
        let got = told.get(name).unwrap_or(&none);
        if !W::same(value, got) {
            return Some(format!(
                "column {name:?} is {} in the table and {} with the reader",
                shown(&value.to_string()),
                shown(&got.to_string())
            ));
        }
    }
    let more = told.iter().find(|(name, value)| {
        !held.contains_key(*name) && !value.is_null() && !RENAMED.contains(&name.as_str())
    });
    more.map(|(name, value)| format!("column {name:?} is not in the table and {value} with the reader"))
}

/// The part of a table that a stream shows.
pub fn part(rows: &BTreeMap<String, Row>, scope: Option<&str>) -> BTreeMap<String, Row> {
    let shows = |row: &Row| scope.is_none_or(|scope| row.scope.as_deref() == Some(scope));
    rows.iter().filter(|(_, row)| shows(row)).map(|(key, row)| (key.clone(), row.clone())).collect()
}

/// The streams of a table: all of it, and some of its scopes.
pub fn streams(table: &Table) -> Vec<(Option<&'static str>, String)> {
    let mut streams = vec![(None, table.path())];
    if table.scope.is_some() {
        streams.extend(SCOPES[..2].iter().map(|scope| {
            (Some(*scope), format!("{}?organizationId={}", table.path(), crate::names::in_url(scope)))
        }));
    }
    streams
}

/// The whole list, page by page.
pub async fn list(client: &Client, table: &Table) -> Result<BTreeMap<String, Value>, String> {
    let answer = client.get(&format!("{}?limit=10000", table.path())).await;
    if answer.status != 200 {
        return Err(format!(
            "GET {}: {} {}",
            table.path(),
            answer.status,
            shown(&String::from_utf8_lossy(&answer.body))
        ));
    }
    let Value::Array(rows) = answer.json() else { return Err("a list is no array".into()) };
    Ok(rows.into_iter().map(|row| (text(&row[&table.key]), row)).collect())
}

/// The story of a row that differs.
pub fn story<W: World>(
    world: &W,
    table: &Table,
    difference: &Difference,
    reader: Option<&Reader>,
    journal: &Journal,
) -> String {
    let key = &difference.key;
    let who = reader.map_or("the list".into(), |reader| format!("{} {:?}", reader.stream, reader.way));
    let told = reader.map_or(String::new(), |reader| {
        reader.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).story(key)
    });
    let words: Vec<String> = vec![crate::names::quoted(&table.name)];
    format!(
        "{who} ({}, {}): row {key:?} {}\n the reader was told:\n{told}\n the log has:\n{}\n last transactions on the table:\n{}\n trouble:\n{}",
        table.entity,
        table.identity,
        difference.what,
        world.logged(table, key),
        journal.about(&words, 8),
        journal.troubles()
    )
}
