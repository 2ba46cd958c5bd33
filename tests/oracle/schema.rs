//! Tables made up from a seed: their names, keys, scopes, columns, and the options of their entity types.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::features::{on, wanted};
use crate::names::{literal, name, quoted};

/// Distinct keys of a table.
const KEYS: usize = 24;
/// Columns of a table beside those with a role.
const COLUMNS: usize = 7;

/// A type of columns, and values for it as SQL; named by a feature if some of it is known to fail.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub sql: &'static str,
    pub values: &'static [&'static str],
    pub feature: &'static str,
}

/// Which database's SQL is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Postgres,
    Sqlite,
}

/// What a dialect has to choose from.
#[derive(Debug, Clone, Copy)]
pub struct Palette {
    pub dialect: Dialect,
    pub kinds: &'static [Kind],
    /// Types of keys; each makes the key of a number, and has some odd ones.
    pub keys: &'static [KeyKind],
    /// The types of `deleted_at` and `transactions`.
    pub time: &'static str,
    pub json: &'static str,
    /// What has to be there before the tables.
    pub preamble: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub struct KeyKind {
    pub sql: &'static str,
    pub make: fn(usize) -> String,
    pub odd: &'static [&'static str],
    pub feature: &'static str,
}

#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub struct Table {
    pub dialect: Dialect,
    pub name: String,
    pub entity: String,
    pub key: String,
    key_type: &'static str,
    /// Keys as SQL.
    pub keys: Vec<String>,
    pub scope: Option<String>,
    pub soft: bool,
    pub stamped: bool,
    pub previous_values: bool,
    pub identity: &'static str,
    pub columns: Vec<Column>,
    time: &'static str,
    json: &'static str,
}

/// Values of a scope; the streams of the first two are read.
pub const SCOPES: [&str; 4] = ["s one", "größe/2", "s3", ""];

impl Table {
    pub fn make_up(number: usize, palette: &Palette, random: &mut StdRng) -> Table {
        let usable: Vec<Kind> = palette.kinds.iter().copied().filter(|kind| on(kind.feature)).collect();
        let kinds: Vec<Kind> = usable.choose_multiple(random, COLUMNS).copied().collect();
        let key_kinds: Vec<&KeyKind> = palette.keys.iter().filter(|kind| on(kind.feature)).collect();
        let asked: Vec<&KeyKind> = key_kinds.iter().copied().filter(|kind| wanted(kind.feature)).collect();
        let key_kinds = if asked.is_empty() || random.random_bool(0.3) { key_kinds } else { asked };
        let key = **key_kinds.choose(random).unwrap();
        let mut keys: Vec<String> = key.odd.iter().map(|key| (*key).to_owned()).collect();
        keys.extend((0..KEYS - keys.len().min(KEYS)).map(key.make));
        keys.shuffle(random);
        Table {
            dialect: palette.dialect,
            name: name(number, random),
            entity: format!("type-{number}"),
            key: if random.random_bool(0.5) { "id".into() } else { name(0, random) },
            key_type: key.sql,
            keys,
            scope: random.random_bool(0.6).then(|| name(1, random)),
            soft: random.random_bool(0.4),
            stamped: random.random_bool(0.5),
            previous_values: random.random_bool(0.5),
            identity: ["DEFAULT", "FULL", "INDEX"].choose(random).unwrap(),
            columns: kinds
                .into_iter()
                .zip(2..)
                .map(|(kind, i)| Column { name: name(i, random), kind })
                .collect(),
            time: palette.time,
            json: palette.json,
        }
    }

    pub fn create(&self) -> String {
        let mut columns = vec![format!("{} {} NOT NULL PRIMARY KEY", quoted(&self.key), self.key_type)];
        columns.extend(
            self.columns.iter().map(|column| format!("{} {}", quoted(&column.name), column.kind.sql)),
        );
        columns.extend(["large text".into(), "retyped int".into(), "renamed_a int DEFAULT 7".into()]);
        if let Some(scope) = &self.scope {
            columns.push(format!("{} text NOT NULL DEFAULT {}", quoted(scope), literal(SCOPES[0])));
        }
        columns.extend(self.soft.then(|| format!("deleted_at {}", self.time)));
        columns.extend(self.stamped.then(|| format!("transactions {}, last_client_id text", self.json)));
        let mut sql = format!("CREATE TABLE {} ({});\n", quoted(&self.name), columns.join(", "));
        if self.dialect == Dialect::Postgres {
            let scope = self.scope.as_ref().map(|scope| format!(", {}", quoted(scope))).unwrap_or_default();
            sql += &format!(
                "CREATE UNIQUE INDEX {} ON {} ({}{scope});\n",
                self.identity_index(),
                quoted(&self.name),
                quoted(&self.key)
            );
        }
        sql
    }

    fn identity_index(&self) -> String {
        format!("{}_identity", self.entity.replace('-', "_"))
    }

    pub fn identify(&self) -> String {
        let identity = match self.identity {
            "INDEX" => format!("USING INDEX {}", self.identity_index()),
            other => other.to_owned(),
        };
        format!("ALTER TABLE {} REPLICA IDENTITY {identity};\n", quoted(&self.name))
    }

    /// Its part of the configuration.
    pub fn configuration(&self) -> String {
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let scope = self.scope.as_ref().map(|scope| format!("scope = {}\n", text(scope))).unwrap_or_default();
        format!(
            "[[entity]]\ntype = {}\ntable = {}\nkey = {}\nprevious_values = {}\n{scope}",
            text(&self.entity),
            text(&self.name),
            text(&self.key),
            self.previous_values
        )
    }

    /// Its path.
    pub fn path(&self) -> String {
        format!("/v1/entities/{}", crate::names::in_url(&self.name))
    }
}
