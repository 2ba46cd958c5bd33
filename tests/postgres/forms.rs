//! Every kind of column: the list, the row and the stream agree to the byte, and with what the database itself makes of
//! the row as JSON; and what was read can be written back as it is.

use bourn_testkit::Cluster;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::site::{Site, is_ready};
use crate::support::{Answer, Bourn};

const TYPES: &str = r"
    CREATE EXTENSION hstore;
    CREATE DOMAIN labels AS hstore;
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy, very');
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE DOMAIN tags AS text[];
    CREATE TYPE point3 AS (x int, y numeric, label text);
    CREATE TYPE shape AS (corners point3[], filled bool, since timestamptz);
";

/// A column's type, and values for it; the second is an odd one.
const COLUMNS: &[(&str, &str, &str)] = &[
    ("text", "'plain'", r#"E'"quo\'ted"\\ \n\r\t \x01 \u2028 é😀 <tag>'"#),
    ("varchar(20)", "'short'", "''"),
    ("char(5)", "'ab'", "'abcde'"),
    ("\"char\"", "'x'", "''"),
    ("name", "'a name'", "''"),
    ("int2", "1", "-32768"),
    ("int4", "2147483647", "-2147483648"),
    ("int8", "9223372036854775807", "-9223372036854775808"),
    ("numeric", "12345678901234567890.12345678901234567890", "1e-40"),
    ("numeric(10,3)", "1.5", "-0.001"),
    ("float4", "1.1", "3.4e38"),
    ("float8", "0.1", "1.7976931348623157e308"),
    ("float8", "5e-324", "-1e21"),
    ("bool", "true", "false"),
    ("date", "'2026-02-28'", "'0044-03-15 BC'"),
    ("time", "'10:30:00.123456'", "'24:00'"),
    ("timetz", "'10:30:00+02'", "'00:00:00-15:59'"),
    ("timestamp", "'2026-01-15 10:30:00.1'", "'294276-12-31 23:59:59.999999'"),
    ("timestamptz", "'2026-01-15 10:30:00.123456+05:30'", "'0001-01-01 00:00:00+00 BC'"),
    ("interval", "'1 year 2 mons -3 days 04:05:06.7'", "'0'"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "'00000000-0000-0000-0000-000000000000'"),
    ("json", r#"'{"b": 1.50, "a": [1, "x  y", null]}'"#, r#"'"text"'"#),
    ("jsonb", r#"'{"b": 1.50, "a": [1, "x  y", {"c": {}}]}'"#, "'12345678901234567890.5'"),
    ("bytea", r"'\x00ff10'", "''"),
    ("mood", "'happy, very'", "'sad'"),
    ("positive", "7", "1"),
    ("tags", r#"ARRAY['a', 'b "c" \d', NULL, 'NULL', '']"#, "'{}'"),
    ("int4[]", "'{1,NULL,-3}'", "'{{1,2},{3,4}}'"),
    ("int8[]", "'{{{1},{2}},{{3},{4}}}'", "'[5:6]={7,8}'"),
    ("text[]", r#"ARRAY['x,y', '{z}', E'line\nbreak', '"', '\', ' ', 'null']"#, "'{}'"),
    ("numeric[]", "'{1.50,1e30,NaN}'", "'{}'"),
    ("float8[]", "'{NaN,Infinity,-Infinity,1.5}'", "'{}'"),
    ("bool[]", "'{t,f,NULL}'", "'{}'"),
    ("timestamptz[]", "'{2026-01-15 10:30:00+00,infinity}'", "'{}'"),
    ("date[]", "'{2026-01-15}'", "'{}'"),
    ("uuid[]", "'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'", "'{}'"),
    ("jsonb[]", r#"ARRAY['{"a": [1, "x"]}', 'null', '"t"']::jsonb[]"#, "'{}'"),
    ("bytea[]", r"ARRAY['\x00ff', '']::bytea[]", "'{}'"),
    ("mood[]", "ARRAY['so so', 'happy, very']::mood[]", "'{}'"),
    ("point3", r#"ROW(1, 1.50, 'a "b", (c)')"#, "ROW(NULL, NULL, '')"),
    ("point3[]", "ARRAY[ROW(1, 2.5, 'x y'), ROW(2, NULL, NULL)]::point3[]", "'{}'"),
    (
        "shape",
        "ROW(ARRAY[ROW(1, 2.5, 'x, y'), NULL]::point3[], true, '2026-01-15 10:30:00+00')",
        "ROW('{}', NULL, 'infinity')",
    ),
    ("inet", "'192.168.0.1'", "'2001:db8::/32'"),
    ("cidr", "'10.0.0.0/8'", "'::/0'"),
    ("macaddr", "'08:00:2b:01:02:03'", "'00:00:00:00:00:00'"),
    ("int4range", "'[1,10)'", "'empty'"),
    ("numrange", "'[1.5,)'", "'(,)'"),
    ("tstzrange", "'[2026-01-01 00:00:00+00,2026-02-01 00:00:00+00)'", "'empty'"),
    ("daterange[]", "ARRAY['[2026-01-01,2026-02-01)']::daterange[]", "'{}'"),
    ("int4multirange", "'{[1,3),[5,7)}'", "'{}'"),
    ("point", "'(1.5,-2)'", "'(0,0)'"),
    ("box[]", "'{(1,1),(0,0);(2,2),(1,1)}'", "'{}'"),
    ("bit(3)", "B'101'", "B'000'"),
    ("varbit", "B'1'", "B''"),
    ("money", "1234.5", "-1"),
    ("xml", "'<a b=\"c\">d</a>'", "'x'"),
    ("tsvector", "'a:1 b:2'", "''"),
    ("oid", "4294967295", "0"),
    ("int2vector", "'1 -2 3'", "''"),
    ("oidvector", "'23 4294967295'", "''"),
    ("hstore", r#"'a=>1, "b c"=>NULL, "d \"e\""=>"\\ , =>"'"#, "''"),
    ("labels", "'z=>1, aa=>2'", "'NULL=>\"NULL\"'"),
    ("labels[]", "ARRAY['a=>\"x, y\"']::labels[]", "'{}'"),
    ("pg_lsn", "'16/B374D848'", "'0/0'"),
];

/// What is no number or no time to JSON: told as strings.
const ODD: &[(&str, &str)] = &[
    ("numeric", "'NaN'"),
    ("numeric", "'-Infinity'"),
    ("float4", "'NaN'"),
    ("float8", "'Infinity'"),
    ("float8", "'-0'"),
    ("date", "'infinity'"),
    ("timestamp", "'-infinity'"),
    ("timestamptz", "'infinity'"),
];

#[derive(serde::Deserialize)]
struct Message {
    key: String,
    value: Option<Box<RawValue>>,
}

#[derive(serde::Deserialize)]
struct Keyed {
    id: String,
}

async fn things() -> (Site, Bourn) {
    let columns = COLUMNS.iter().enumerate().map(|(i, (kind, ..))| format!(", c{i} {kind}"));
    let odd = ODD.iter().enumerate().map(|(i, (kind, _))| format!(", o{i} {kind}"));
    let columns: String = columns.chain(odd).collect();
    let tables = format!(
        "{TYPES} CREATE TABLE things (id text PRIMARY KEY{columns}, twice int GENERATED ALWAYS AS (c6 / 2) STORED)"
    );
    let site = Site::new(&tables, "[[entity]]\ntype = 'thing'\ntable = 'things'\n").await.eager();
    let names: Vec<String> =
        (0..COLUMNS.len()).map(|i| format!("c{i}")).chain((0..ODD.len()).map(|i| format!("o{i}"))).collect();
    let row = |id: &str, pick: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        let values = COLUMNS.iter().map(|column| format!("({})::{}", pick(column), column.0));
        let odd = ODD.iter().map(|(kind, value)| format!("{value}::{kind}"));
        let values: Vec<String> = values.chain(odd).collect();
        format!("INSERT INTO things (id, {}) VALUES ('{id}', {});", names.join(", "), values.join(", "))
    };
    // Some before anybody captures and some after: read from the table the former, from the stream the latter.
    let rows = |when: &str| {
        [
            row(&format!("{when} usual"), |column| column.1),
            row(&format!("{when} odd"), |column| column.2),
            format!("INSERT INTO things (id) VALUES ('{when} null');"),
        ]
        .concat()
    };
    site.sql(&rows("before"));
    let server = site.server().await;
    site.captured().await;
    is_ready(&server.client()).await;
    site.sql(&rows("after"));
    site.captured().await;
    (site, server)
}

/// The rows of a list, by their keys, to the byte.
fn rows(list: &Answer) -> Vec<(String, String)> {
    let rows: Vec<&RawValue> = serde_json::from_slice(&list.body).unwrap();
    let keyed =
        |row: &&RawValue| (serde_json::from_str::<Keyed>(row.get()).unwrap().id, row.get().to_owned());
    rows.iter().map(keyed).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn list_row_stream_and_the_database_itself_agree_on_every_kind_of_column() {
    let (site, server) = things().await;
    let client = server.client();
    let chunk = client.get("/v1/entities/things?offset=-1").await;
    let messages: Vec<Message> = serde_json::from_slice(&chunk.body).unwrap();
    let table = site.table("things", "id");
    let listed = rows(&client.get("/v1/entities/things").await);
    assert_eq!((listed.len(), messages.len()), (6, 6));
    for (id, row) in &listed {
        let path = format!("/v1/entities/things/{}", id.replace(' ', "%20"));
        assert_eq!(client.get(&path).await.text(), row, "the row as the list has it");
        let message = messages.iter().find(|message| message.key == *id).unwrap();
        assert_eq!(message.value.as_ref().unwrap().get(), row, "the stream as the list has it");
        let (told, mut held): (Value, Value) = (serde_json::from_str(row).unwrap(), table[id].clone());
        held.as_object_mut().unwrap().remove("twice");
        for (name, value) in held.as_object().unwrap() {
            let told = told.get(name).unwrap_or_else(|| panic!("{name} is missing in {row}"));
            assert_eq!(told, value, "{name}, {}", kind(name));
        }
        assert_eq!(told.as_object().unwrap().len(), held.as_object().unwrap().len());
    }
}

/// The type of a column.
fn kind(name: &str) -> &'static str {
    match (name.split_at(1), name.get(1..).and_then(|place| place.parse::<usize>().ok())) {
        (("c", _), Some(place)) => COLUMNS[place].0,
        (("o", _), Some(place)) => ODD[place].0,
        _ => "",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_can_be_written_back_as_it_is() {
    let (_site, server) = things().await;
    let client = server.client();
    let mut refused = Vec::new();
    for (id, row) in rows(&client.get("/v1/entities/things").await) {
        let row: Value = serde_json::from_str(&row).unwrap();
        // Column by column, so that what does not go is known by name.
        let made = client.post("/v1/entities/things", &[], &json!({ "id": format!("copy of {id}") })).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let path = format!("/v1/entities/things/{}", format!("copy of {id}").replace(' ', "%20"));
        for (name, value) in row.as_object().unwrap().iter().filter(|(name, _)| *name != "id") {
            let set = client.patch(&path, &[], &json!({ name: value })).await;
            if set.status != 200 || set.json()[name] != *value {
                refused.push(format!("{name} {} {value}: {} {:.200}", kind(name), set.status, set.text()));
            }
        }
        // All at once.
        let mut whole = row.clone();
        whole["id"] = json!(format!("whole {id}"));
        let made = client.post("/v1/entities/things", &[], &whole).await;
        if made.status == 201 {
            assert_eq!(made.json(), whole);
        }
    }
    assert!(refused.is_empty(), "what was read is not taken back:\n{}", refused.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_scopes_may_be_of_any_usual_type() {
    const UUID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    let cases = [
        ("text", "'a/b c'", "a%2Fb%20c"),
        ("int", "42", "42"),
        ("bigint", "-9223372036854775808", "-9223372036854775808"),
        ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", UUID),
    ];
    for (kind, value, path) in cases {
        let table = format!("CREATE TABLE keyed (id {kind} PRIMARY KEY, owner {kind}, name text)");
        let site = Site::on(
            Cluster::shared(),
            &table,
            "[[entity]]\ntype = 'keyed'\ntable = 'keyed'\nscope = 'owner'\n",
        )
        .await
        .eager();
        let server = site.server().await;
        let client = server.client();
        site.sql(&format!("INSERT INTO keyed VALUES ({value}, {value}, 'x'); UPDATE keyed SET name = 'y'"));
        site.captured().await;
        let one = client.get(&format!("/v1/entities/keyed/{path}")).await;
        assert_eq!((one.status, &one.json()["name"]), (200, &json!("y")), "{kind}: {}", one.text());
        for scoped in [format!("/v1/entities/keyed?organizationId={path}"), "/v1/entities/keyed".into()] {
            assert_eq!(client.get(&scoped).await.json(), json!([one.json()]), "{kind}");
            let (messages, _) = client.read_all(&scoped, "-1").await;
            assert_eq!(messages.last().unwrap()["value"], one.json(), "{kind}");
        }
        let changed = client.patch(&format!("/v1/entities/keyed/{path}"), &[], &json!({ "name": "z" })).await;
        assert_eq!((changed.status, &changed.json()["name"]), (200, &json!("z")), "{kind}");
        assert_eq!(client.delete(&format!("/v1/entities/keyed/{path}"), &[]).await.status, 200, "{kind}");
        client.get("/v1/entities/keyed/%20nothing%20").await.assert_error(404, "NOT_FOUND");
        site.assert_agrees(&server, "keyed").await;
    }
}
