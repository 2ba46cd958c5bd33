//! Transactions made up from a seed, as writers that know nothing of Bourn make them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::features::on;
use crate::names::{literal, quoted};
use crate::schema::{Column, Dialect, SCOPES, Table};

/// Statements of a transaction, at most.
const STATEMENTS: usize = 8;
/// Rows of one insert, at most.
const ROWS: usize = 5;
/// Columns that are added to a table in a run, at most.
const ADDED: usize = 3;

/// A transaction: its statements, `BEGIN` and the end included.
pub fn transaction(tables: &[Table], random: &mut StdRng) -> Vec<String> {
    let dialect = tables[0].dialect;
    let begin = match dialect {
        Dialect::Sqlite if random.random_bool(0.5) => "BEGIN IMMEDIATE",
        _ => "BEGIN",
    };
    let mut script = vec![begin.to_owned()];
    let mut depth = 0;
    for _ in 0..random.random_range(1..=STATEMENTS) {
        match random.random_range(0..14) {
            0 => {
                depth += 1;
                script.push(format!("SAVEPOINT s{depth}"));
            }
            1 if depth > 0 => {
                let to = random.random_range(1..=depth);
                script.push(format!("ROLLBACK TO SAVEPOINT s{to}"));
                depth = to;
            }
            2 if dialect == Dialect::Postgres => {
                let id = random.random::<u32>();
                script.push(format!(
                    "SELECT pg_logical_emit_message(true, 'bourn', '{{\"transactionId\":\"m{id}\",\"clientId\":\"c\"}}')"
                ));
            }
            _ => script.push(statement(tables.choose(random).unwrap(), random)),
        }
    }
    script.push(if random.random_bool(0.12) { "ROLLBACK" } else { "COMMIT" }.to_owned());
    script
}

fn statement(table: &Table, random: &mut StdRng) -> String {
    let (name, id) = (quoted(&table.name), quoted(&table.key));
    let (key, other) = (key(table, random), key(table, random));
    let sets = sets(table, random);
    match random.random_range(0..100) {
        0..25 => format!("INSERT INTO {name} ({id}) VALUES ({key}) ON CONFLICT ({id}) DO UPDATE SET {sets}"),
        25..35 => insert(table, "INSERT", &format!(" ON CONFLICT ({id}) DO NOTHING"), random),
        35..45 if table.dialect == Dialect::Sqlite => insert(table, "INSERT OR REPLACE", "", random),
        35..65 => format!("UPDATE {name} SET {sets} WHERE {id} IN ({key}, {other})"),
        65..73 => format!(
            "UPDATE {name} SET {id} = {other}, {sets} WHERE {id} = {key} AND NOT EXISTS (SELECT 1 FROM {name} WHERE {id} = {other})"
        ),
        73..87 => format!("DELETE FROM {name} WHERE {id} = {key}"),
        87..89 if table.dialect == Dialect::Postgres => truncate(table, &name),
        87..89 => format!("DELETE FROM {name}"),
        89..91 => failing(table, &name, &id, &key),
        _ => format!("UPDATE {name} SET {sets}"),
    }
}

/// Empties the table, if the log has it: before, that ends the log for its readers.
fn truncate(table: &Table, name: &str) -> String {
    format!(
        "DO $$ BEGIN IF (SELECT whole FROM bourn.entities WHERE entity_type = {}) THEN TRUNCATE {name}; END IF; END $$",
        literal(&table.entity)
    )
}

/// A statement that fails: the writer rolls back.
fn failing(table: &Table, name: &str, id: &str, key: &str) -> String {
    match table.dialect {
        Dialect::Postgres => {
            format!("UPDATE {name} SET retyped = 1 / (retyped::text::numeric - retyped::text::numeric)::int")
        }
        Dialect::Sqlite => format!("INSERT INTO {name} ({id}) VALUES ({key}), ({key})"),
    }
}

fn insert(table: &Table, verb: &str, conflict: &str, random: &mut StdRng) -> String {
    let columns: Vec<&Column> = table.columns.iter().filter(|_| random.random_bool(0.7)).collect();
    let mut names = vec![quoted(&table.key)];
    names.extend(columns.iter().map(|column| quoted(&column.name)));
    names.extend(table.scope.as_deref().map(quoted));
    let rows: Vec<String> = (0..random.random_range(1..=ROWS))
        .map(|_| {
            let mut values = vec![key(table, random)];
            values.extend(columns.iter().map(|column| value(column, random)));
            values.extend(table.scope.as_ref().map(|_| literal(SCOPES.choose(random).unwrap())));
            format!("({})", values.join(", "))
        })
        .collect();
    format!("{verb} INTO {} ({}) VALUES {}{conflict}", quoted(&table.name), names.join(", "), rows.join(", "))
}

pub fn key(table: &Table, random: &mut StdRng) -> String {
    table.keys.choose(random).unwrap().clone()
}

fn value(column: &Column, random: &mut StdRng) -> String {
    if random.random_bool(0.12) {
        return "NULL".into();
    }
    (*column.kind.values.choose(random).unwrap()).to_owned()
}

/// `column = value` for some of the columns.
fn sets(table: &Table, random: &mut StdRng) -> String {
    let mut sets = vec![];
    for column in &table.columns {
        if random.random_bool(0.4) {
            sets.push(format!("{} = {}", quoted(&column.name), value(column, random)));
        }
    }
    if random.random_bool(0.15) {
        sets.push(large(table.dialect, random.random_range(0..1_000)));
    }
    if random.random_bool(0.3) {
        // A literal that fits whichever type the column has at the moment.
        sets.push(format!("retyped = '{}'", random.random_range(0..100)));
    }
    if let Some(scope) = table.scope.as_ref().filter(|_| random.random_bool(0.2)) {
        sets.push(format!("{} = {}", quoted(scope), literal(SCOPES.choose(random).unwrap())));
    }
    if table.soft && random.random_bool(0.2) {
        sets.push(format!("deleted_at = {}", ["NULL", "CURRENT_TIMESTAMP"].choose(random).unwrap()));
    }
    if table.stamped && random.random_bool(0.5) {
        sets.push(format!(
            "transactions = '{{\"insert\": \"i\", \"update\": \"t{}\"}}'",
            random.random::<u32>()
        ));
    }
    if sets.is_empty() {
        sets.push("large = large || ''".replace("large ||", &format!("{}.large ||", quoted(&table.name))));
    }
    sets.join(", ")
}

/// Too large to lie in the row.
fn large(dialect: Dialect, seed: u32) -> String {
    match dialect {
        Dialect::Postgres => {
            format!("large = (SELECT string_agg(md5(({seed} + i)::text), '') FROM generate_series(1, 300) i)")
        }
        Dialect::Sqlite => format!("large = printf('%.*c', 9000, 'l') || '{seed}'"),
    }
}

/// Changes of a table's schema, made up from a seed.
#[derive(Debug, Default)]
pub struct Alterations {
    added: Vec<usize>,
    renamed: Vec<bool>,
    typed: Vec<usize>,
}

impl Alterations {
    pub fn of(tables: &[Table]) -> Alterations {
        let none = vec![0; tables.len()];
        Alterations { added: none.clone(), renamed: vec![false; tables.len()], typed: none }
    }

    /// The next change, as one transaction's statements.
    pub fn next(&mut self, tables: &[Table], random: &mut StdRng) -> Option<Vec<String>> {
        const TYPES: [&str; 3] = ["int", "bigint", "text"];
        let place = random.random_range(0..tables.len());
        let table = &tables[place];
        let name = quoted(&table.name);
        let statement = match random.random_range(0..4) {
            0 if on("add-column") && self.added[place] < ADDED => {
                self.added[place] += 1;
                let default = ["", " DEFAULT 'all have it'"].choose(random).unwrap();
                format!("ALTER TABLE {name} ADD COLUMN added_{} text{default}", self.added[place])
            }
            1 if on("rename-column") => {
                let renamed = self.renamed[place];
                self.renamed[place] = !renamed;
                let (from, to) =
                    if renamed { ("renamed_b", "renamed_a") } else { ("renamed_a", "renamed_b") };
                format!("ALTER TABLE {name} RENAME COLUMN {from} TO {to}")
            }
            2 if on("change-type") && table.dialect == Dialect::Postgres => {
                self.typed[place] = (self.typed[place] + 1) % TYPES.len();
                let to = TYPES[self.typed[place]];
                format!("ALTER TABLE {name} ALTER COLUMN retyped TYPE {to} USING retyped::{to}")
            }
            3 if on("rewrite-values") && table.dialect == Dialect::Postgres => {
                let same = TYPES[self.typed[place]];
                format!(
                    "ALTER TABLE {name} ALTER COLUMN retyped TYPE {same} USING (retyped::int + 1)::{same}"
                )
            }
            _ => return None,
        };
        Some(vec!["BEGIN".into(), statement, "COMMIT".into()])
    }
}
