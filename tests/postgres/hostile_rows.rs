//! Rows and schema changes that are legal and unusual: for each of them the list, the row and the stream agree with each
//! other and with what the database itself makes of the row. All of them are in one database, so each also shows that it
//! does no harm to the others. A new case is one more entry of the table.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::site::Site;
use crate::support::{Bourn, Client, within};

/// How long the cases may take until everything agrees.
const PATIENCE: Duration = Duration::from_secs(40);

/// What is to be seen in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// List, row and stream are what `to_jsonb` makes of the rows.
    Agree,
    /// The same, of `to_json`: `jsonb` cannot hold the value.
    AgreeAsJson,
    /// The type is not served, and `/ready` says so with these words.
    Unavailable(&'static str),
}

struct Case {
    name: &'static str,
    /// Makes the table `t`, and what it needs.
    table: &'static str,
    /// More lines of the entity's configuration; the key is `id` unless one of them names it.
    entity: &'static str,
    /// Statements before and after the server begins; the table is `t`, and not the last word.
    before: &'static str,
    after: &'static str,
    expect: Expect,
}

const USUAL: Case = Case {
    name: "",
    table: "CREATE TABLE t (id text PRIMARY KEY, x text)",
    entity: "",
    before: "",
    after: "",
    expect: Expect::Agree,
};

/// Text that does not compress.
macro_rules! noise {
    ($bytes:literal) => {
        concat!("(SELECT left(string_agg(md5(i::text), ''), ", $bytes, ") FROM generate_series(1, 200) i)")
    };
}

const CASES: &[Case] = &[
    Case { name: "an ordinary row", after: "INSERT INTO t VALUES ('1', 'x')", ..USUAL },
    Case {
        name: "a transaction id that is too long for one",
        table: "CREATE TABLE t (id text PRIMARY KEY, transactions jsonb)",
        after: concat!(
            "INSERT INTO t VALUES ('1', jsonb_build_object('insert', ",
            noise!(3840),
            ")); UPDATE t SET transactions = '{}'"
        ),
        ..USUAL
    },
    Case {
        name: "a client id that is too long for one",
        table: "CREATE TABLE t (id text PRIMARY KEY, last_client_id text)",
        after: concat!("INSERT INTO t VALUES ('1', ", noise!(5000), "), ('2', 'usual')"),
        ..USUAL
    },
    Case {
        name: "a scope that is too long for an index",
        table: "CREATE TABLE t (id text PRIMARY KEY, scope text)",
        entity: "scope = 'scope'",
        before: concat!("INSERT INTO t VALUES ('0', ", noise!(5000), ")"),
        after: concat!(
            "INSERT INTO t VALUES ('1', ",
            noise!(6000),
            "), ('2', 'usual'); DELETE FROM t WHERE id = '0'"
        ),
        ..USUAL
    },
    Case {
        name: "a key as long as an index takes it",
        before: concat!("INSERT INTO t VALUES (", noise!(2680), ", 'x')"),
        after: concat!("INSERT INTO t VALUES ('2' || ", noise!(2679), ", 'x'); UPDATE t SET x = 'y'"),
        ..USUAL
    },
    Case {
        name: "NUL in the text of a json column",
        table: "CREATE TABLE t (id text PRIMARY KEY, x json, transactions json)",
        after: r#"INSERT INTO t VALUES ('1', '"\u0000"', '{"insert": "\u0000"}'), ('2', '{"\u0000": 1}', '7')"#,
        expect: Expect::AgreeAsJson,
        ..USUAL
    },
    Case {
        name: "transactions that are no object",
        table: "CREATE TABLE t (id text PRIMARY KEY, transactions jsonb)",
        after: r#"INSERT INTO t VALUES ('1', '[]'), ('2', '"x"'), ('3', '{"insert": {"a": 1}}'), ('4', 'null'), ('5', '{"insert": 7}')"#,
        ..USUAL
    },
    Case {
        name: "a transaction id that is no visible ASCII",
        table: "CREATE TABLE t (id text PRIMARY KEY, transactions jsonb)",
        after: r#"INSERT INTO t VALUES ('1', '{"insert": "é😀\n"}'), ('2', '{"insert": ""}'), ('3', '{"insert": " "}')"#,
        ..USUAL
    },
    Case {
        name: "a key column whose name looks like a parameter",
        table: r#"CREATE TABLE t ("id$1" text PRIMARY KEY, "$2" text)"#,
        entity: "key = 'id$1'",
        before: "INSERT INTO t VALUES ('0', '$1')",
        after: "INSERT INTO t VALUES ('1', '$1$2'); DELETE FROM t WHERE \"id$1\" = '0'",
        ..USUAL
    },
    Case {
        name: "column names in quotes, of 63 bytes and of all alphabets",
        table: "CREATE TABLE t (id text PRIMARY KEY, \"a \"\"b\"\" 'c' \\d\" int, \"é表🦀\" int, \
                \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\" int, \"select\" int)",
        before: "INSERT INTO t VALUES ('0', 1, 2, 3, 4)",
        after: "INSERT INTO t VALUES ('1', 5, 6, 7, 8)",
        ..USUAL
    },
    Case {
        name: "odd texts as keys",
        before: r"INSERT INTO t VALUES (''), (' '), (E'\t'), (E'\n'), ('..'), ('a/b'), ('%2F'), ('?'), ('#'), ('é😀')",
        after: r"UPDATE t SET x = 'y'; INSERT INTO t VALUES ('\'), ('$1'), ('null'), ('-1')",
        ..USUAL
    },
    Case {
        name: "keys of floating point",
        table: "CREATE TABLE t (id float8 PRIMARY KEY, x text)",
        after: "INSERT INTO t VALUES (1e20), (0.1), (1e-7), (-0.5), (5)",
        ..USUAL
    },
    Case {
        name: "keys of arbitrary precision",
        table: "CREATE TABLE t (id numeric PRIMARY KEY, x text)",
        after: "INSERT INTO t VALUES (1e30), (0.10), (1.0), ('NaN'), ('Infinity')",
        ..USUAL
    },
    Case {
        name: "hstore, and a domain over it",
        table: "CREATE EXTENSION IF NOT EXISTS hstore; CREATE DOMAIN attributes AS hstore; \
                CREATE TABLE t (id text PRIMARY KEY, x hstore, y attributes, z hstore[])",
        before: "INSERT INTO t VALUES ('0', 'a=>1, b=>NULL', 'c=>d', ARRAY['e=>f']::hstore[])",
        after: "INSERT INTO t VALUES ('1', 'a=>1, b=>NULL', 'c=>d', ARRAY['e=>f']::hstore[])",
        ..USUAL
    },
    Case {
        name: "vectors of numbers",
        table: "CREATE TABLE t (id text PRIMARY KEY, x int2vector, y oidvector)",
        before: "INSERT INTO t VALUES ('0', '1 2 3', '4 5')",
        after: "INSERT INTO t VALUES ('1', '', '4 5')",
        ..USUAL
    },
    Case {
        name: "an attribute of a composite type that is renamed and one that is added",
        table: "CREATE TYPE pair AS (a int, b text); CREATE TABLE t (id text PRIMARY KEY, x pair)",
        before: "INSERT INTO t VALUES ('0', ROW(1, 'x'))",
        after: "INSERT INTO t VALUES ('1', ROW(1, 'x')); ALTER TYPE pair RENAME ATTRIBUTE a TO first; \
                ALTER TYPE pair ADD ATTRIBUTE c numeric; INSERT INTO t VALUES ('2', ROW(2, 'y', 1.50))",
        ..USUAL
    },
    Case {
        name: "a new type in a new column",
        after: "INSERT INTO t VALUES ('1', 'x'); CREATE TYPE later AS (a int, b text[]); ALTER TABLE t ADD COLUMN y later; \
                INSERT INTO t VALUES ('2', 'x', ROW(1, '{a}'))",
        ..USUAL
    },
    Case {
        name: "a column added with a value for the rows that are there",
        before: "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 50) i",
        after: "ALTER TABLE t ADD COLUMN y int DEFAULT 7; ALTER TABLE t ADD COLUMN z text DEFAULT gen_random_uuid()",
        ..USUAL
    },
    Case {
        name: "a column that takes another type",
        table: "CREATE TABLE t (id text PRIMARY KEY, x int)",
        before: "INSERT INTO t SELECT i, i FROM generate_series(1, 50) i",
        after: "ALTER TABLE t ALTER COLUMN x TYPE text USING '7 of ' || x",
        ..USUAL
    },
    Case {
        name: "values that are rewritten under the same type",
        table: "CREATE TABLE t (id text PRIMARY KEY, x int)",
        before: "INSERT INTO t SELECT i, i FROM generate_series(1, 50) i",
        after: "ALTER TABLE t ALTER COLUMN x TYPE int USING x * 100",
        ..USUAL
    },
    Case {
        name: "a key that takes another type",
        table: "CREATE TABLE t (id int PRIMARY KEY, x text)",
        before: "INSERT INTO t VALUES (1, 'x'), (2, 'y')",
        after: "ALTER TABLE t ALTER COLUMN id TYPE uuid USING ('00000000-0000-0000-0000-' || lpad(id::text, 12, '0'))::uuid",
        ..USUAL
    },
    Case {
        name: "a label of an enum that is renamed, in a key and in a value",
        table: "CREATE TYPE label AS ENUM ('a', 'b'); CREATE TABLE t (id label PRIMARY KEY, x label)",
        before: "INSERT INTO t VALUES ('a', 'b'), ('b', 'a')",
        after: "ALTER TYPE label RENAME VALUE 'a' TO 'c'",
        ..USUAL
    },
    Case {
        name: "a label that is added to an enum",
        table: "CREATE TYPE label AS ENUM ('a', 'b'); CREATE TABLE t (id text PRIMARY KEY, x label)",
        before: "INSERT INTO t VALUES ('1', 'b')",
        after: "ALTER TYPE label ADD VALUE 'c'; INSERT INTO t VALUES ('2', 'c')",
        ..USUAL
    },
    Case {
        name: "a unique key that may be NULL",
        table: "CREATE TABLE t (id text UNIQUE, x text)",
        before: "INSERT INTO t VALUES (NULL, 'x'), (NULL, 'y'), ('1', 'z')",
        expect: Expect::Unavailable("NOT NULL"),
        ..USUAL
    },
    Case {
        name: "JSON that names a parser's own marks",
        table: "CREATE TABLE t (id text PRIMARY KEY, x jsonb, y json)",
        after: r#"INSERT INTO t VALUES ('1', '{"$serde_json::private::RawValue": "[1,2]"}', '{"$serde_json::private::Number": "1"}')"#,
        expect: Expect::AgreeAsJson,
        ..USUAL
    },
    Case {
        name: "JSON of a hundred levels, with keys twice, and of long numbers",
        table: "CREATE TABLE t (id text PRIMARY KEY, x json, y jsonb)",
        before: "INSERT INTO t VALUES ('0', '{\"a\": 1, \"a\": 2}', '1e400')",
        after: "INSERT INTO t VALUES ('1', (repeat('[', 100) || repeat(']', 100))::json, (repeat('[', 100) || repeat(']', 100))::jsonb), \
                ('2', '123456789012345678901234567890.5', '0.00')",
        ..USUAL
    },
    Case {
        name: "a row that lies outside its table and is changed elsewhere",
        table: "CREATE TABLE t (id text PRIMARY KEY, x text, y int); ALTER TABLE t REPLICA IDENTITY DEFAULT",
        before: "INSERT INTO t VALUES ('0', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3000) i), 1)",
        after: "INSERT INTO t VALUES ('1', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3000) i), 1); UPDATE t SET y = 2",
        ..USUAL
    },
    Case {
        name: "TRUNCATE, and the same keys again",
        before: "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 50) i",
        after: "BEGIN; TRUNCATE t; INSERT INTO t VALUES ('1', 'again'); COMMIT; TRUNCATE t; INSERT INTO t VALUES ('2', 'again')",
        ..USUAL
    },
    Case {
        name: "keys that are exchanged in one transaction",
        before: "INSERT INTO t VALUES ('1', 'one'), ('2', 'two')",
        after: "BEGIN; UPDATE t SET id = '3' WHERE id = '1'; UPDATE t SET id = '1' WHERE id = '2'; UPDATE t SET id = '2' WHERE id = '3'; COMMIT",
        ..USUAL
    },
    Case {
        name: "an insert and a delete in one transaction, and an update that changes nothing",
        before: "INSERT INTO t VALUES ('1', 'x')",
        after: "BEGIN; INSERT INTO t VALUES ('2', 'y'); DELETE FROM t WHERE id = '2'; UPDATE t SET x = x; COMMIT",
        ..USUAL
    },
    Case {
        name: "a table without a row that loses a column",
        table: "CREATE TABLE t (id text PRIMARY KEY, x text, y text)",
        after: "INSERT INTO t VALUES ('1', 'x', 'y'); ALTER TABLE t DROP COLUMN x; INSERT INTO t VALUES ('2', 'y')",
        ..USUAL
    },
    Case {
        name: "a column that is renamed",
        before: "INSERT INTO t VALUES ('1', 'x')",
        after: "ALTER TABLE t RENAME COLUMN x TO y; INSERT INTO t VALUES ('2', 'y')",
        ..USUAL
    },
    Case {
        name: "key, scope and columns of domains",
        table: "CREATE DOMAIN code AS text CHECK (value <> 'never'); CREATE DOMAIN deep AS code; \
                CREATE TABLE t (id deep PRIMARY KEY, scope code, x deep[])",
        entity: "scope = 'scope'",
        before: "INSERT INTO t VALUES ('0', 's', ARRAY['a']::deep[])",
        after: "INSERT INTO t VALUES ('1', 's', '{}'), ('2', NULL, NULL)",
        ..USUAL
    },
];

/// The tables of some cases in one database, by their numbers; the types of each are in a schema of its own.
struct Stage {
    site: Site,
    cases: Vec<(usize, &'static Case)>,
}

impl Stage {
    async fn set(cases: Vec<(usize, &'static Case)>) -> Stage {
        let mut tables = String::new();
        let mut entities = String::new();
        for (number, case) in &cases {
            let table = words(case.table, *number);
            tables += &format!("CREATE SCHEMA s{number}; SET search_path = s{number}, public; {table};\n");
            entities +=
                &format!("[[entity]]\ntype = 'type-{number}'\ntable = 't{number}'\n{}\n", case.entity);
        }
        let stage = Stage { site: Site::new(&tables, &entities).await.eager(), cases };
        stage.play(|case| case.before);
        stage
    }

    fn play(&self, act: fn(&Case) -> &'static str) {
        for (number, case) in &self.cases {
            let act = words(act(case), *number);
            if !act.is_empty() {
                self.site.sql(&format!("SET search_path = s{number}, public; {act}"));
            }
        }
    }

    /// What is wrong with a case; nothing if all is well.
    async fn wrong(&self, server: &Bourn, number: usize, case: &Case) -> Option<String> {
        let client = server.client();
        match case.expect {
            Expect::Unavailable(words) => {
                let ready = client.get("/ready").await;
                (!ready.text().contains(words))
                    .then(|| format!("/ready does not say `{words}`: {}", ready.text()))
            }
            Expect::Agree => self.disagreement(&client, number, case, "to_jsonb(t)").await,
            Expect::AgreeAsJson => self.disagreement(&client, number, case, "to_json(t)").await,
        }
    }

    /// What is still wrong when it was waited for long enough.
    async fn in_the_end(&self, server: &Bourn) -> Vec<String> {
        let mut wrong = vec![];
        within(PATIENCE, async || {
            wrong.clear();
            for (number, case) in &self.cases {
                let found = self.wrong(server, *number, case).await;
                wrong.extend(found.map(|found| format!("{}: {found}", case.name)));
            }
            wrong.is_empty()
        })
        .await;
        wrong
    }

    async fn disagreement(&self, client: &Client, number: usize, case: &Case, truth: &str) -> Option<String> {
        let key =
            case.entity.strip_prefix("key = '").and_then(|rest| rest.split('\'').next()).unwrap_or("id");
        // A key of floating point is the text of its value, which the type's own text need not be.
        let held = self.site.sql(&format!(
            "SET timezone = 'UTC'; SELECT json_build_array(CASE WHEN pg_typeof(\"{key}\")::text IN ('real', 'double precision') \
             THEN to_jsonb(\"{key}\") #>> '{{}}' ELSE \"{key}\"::text END, {truth}) FROM t{number} t"
        ));
        let held: BTreeMap<String, Value> = held
            .lines()
            .map(|line| serde_json::from_str::<(String, Value)>(line).unwrap())
            .map(|(key, row)| (key, without_nulls(row)))
            .collect();
        let path = format!("/v1/entities/t{number}");
        let list = client.get(&path).await;
        if list.status != 200 {
            return Some(format!("the list: {} {}", list.status, String::from_utf8_lossy(&list.body)));
        }
        let listed: Vec<Value> = match serde_json::from_slice(&list.body) {
            Ok(rows) => rows,
            Err(error) => {
                return Some(format!(
                    "the list is no JSON: {error}: {}",
                    String::from_utf8_lossy(&list.body)
                ));
            }
        };
        let mut told = BTreeMap::new();
        let mut offset = "-1".to_owned();
        loop {
            let chunk = client.get(&format!("{path}?offset={offset}")).await;
            if chunk.status != 200 {
                return Some(format!(
                    "the stream: {} {}",
                    chunk.status,
                    String::from_utf8_lossy(&chunk.body)
                ));
            }
            for message in chunk.messages() {
                let key = message["key"].as_str().unwrap().to_owned();
                match message.get("value") {
                    Some(value) => told.insert(key, without_nulls(value.clone())),
                    None => told.remove(&key),
                };
            }
            offset = chunk.next_offset();
            if chunk.up_to_date() {
                break;
            }
        }
        let mut rows: Vec<Value> = listed.into_iter().map(without_nulls).collect();
        for (key, row) in &held {
            if told.get(key) != Some(row) {
                return Some(format!(
                    "{:.60}: the stream has {:.400?} and the table {row:.400}",
                    key,
                    told.get(key)
                ));
            }
            let Some(place) = rows.iter().position(|listed| listed == row) else {
                return Some(format!("{key:.60}: the list has {rows:.600?} and the table {row:.400}"));
            };
            rows.remove(place);
            // A path does not name every key.
            let nameable =
                !key.is_empty() && *key != ".." && key.len() < 256 && !key.contains(char::is_control);
            let named = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
            let one = client.get(&format!("{path}/{named}")).await;
            if nameable && (one.status != 200 || without_nulls(one.json()) != *row) {
                return Some(format!("{key:.60}: the row is {} {:.300}", one.status, one.text()));
            }
        }
        if told.len() != held.len() || !rows.is_empty() {
            return Some(format!(
                "{} rows in the table, {} in the stream, {rows:.300?} more in the list",
                held.len(),
                told.len()
            ));
        }
        None
    }
}

/// Statements about `t`, with the name of the case's table in its place.
fn words(sql: &str, number: usize) -> String {
    let mut sql = sql.replace("EXISTS hstore", "EXISTS hstore SCHEMA public");
    for verb in ["INTO", "TABLE", "UPDATE", "FROM", "TRUNCATE"] {
        for end in [" ", ";"] {
            sql = sql.replace(&format!("{verb} t{end}"), &format!("{verb} public.t{number}{end}"));
        }
    }
    sql
}

/// A column that was added or dropped without a value is no change of a row.
fn without_nulls(row: Value) -> Value {
    match row {
        Value::Object(columns) => columns.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_table_can_hold_is_the_same_in_list_row_and_stream() {
    let stage = Stage::set(CASES.iter().enumerate().collect()).await;
    let server = stage.site.begin_server().await;
    let client = server.client();
    // What was there before is read from the tables, what comes now from the stream.
    let mut wrong = stage.in_the_end(&server).await;
    if wrong.is_empty() {
        stage.play(|case| case.after);
        wrong = stage.in_the_end(&server).await;
    }
    assert!(wrong.is_empty(), "{}\n\n/ready: {}", wrong.join("\n\n"), client.get("/ready").await.text());
}
