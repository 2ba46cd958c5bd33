//! PostgreSQL's types and their extremes.

use crate::schema::{Dialect, KeyKind, Kind, Palette};

pub const PALETTE: Palette = Palette {
    dialect: Dialect::Postgres,
    kinds: KINDS,
    keys: KEYS,
    time: "timestamptz",
    json: "jsonb",
    preamble: PREAMBLE,
};

const PREAMBLE: &str = r"
    CREATE EXTENSION IF NOT EXISTS hstore;
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy, very', '');
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE DOMAIN tags AS text[];
    CREATE DOMAIN attributes AS hstore;
    CREATE TYPE point3 AS (x int, y numeric, label text);
    CREATE TYPE shape AS (corners point3[], filled bool, since timestamptz);
";

const KEYS: &[KeyKind] = &[
    KeyKind {
        sql: "text",
        make: |n| format!("'key {n}'"),
        odd: &["'a/b%20c'", "'ä\"ö'", "E'tab\\there'", "E'line\\nbreak'", "' '", "'$1'", "'..'", "'😀'"],
        feature: "",
    },
    KeyKind {
        sql: "text",
        make: |n| format!("(SELECT string_agg(md5(({n} + i)::text), '') FROM generate_series(1, 75) i)"),
        odd: &["''", "repeat('x', 2600)", "repeat('é', 300)"],
        feature: "long-keys",
    },
    KeyKind { sql: "varchar(40)", make: |n| format!("'v{n}'"), odd: &[], feature: "" },
    KeyKind { sql: "int", make: |n| n.to_string(), odd: &["2147483647", "-2147483648"], feature: "" },
    KeyKind {
        sql: "bigint",
        make: |n| n.to_string(),
        odd: &["9223372036854775807", "-9223372036854775808", "9007199254740993"],
        feature: "",
    },
    KeyKind { sql: "smallint", make: |n| n.to_string(), odd: &["-32768"], feature: "" },
    KeyKind {
        sql: "uuid",
        make: |n| format!("'a0eebc99-9c0b-4ef8-bb6d-{n:012}'::uuid"),
        odd: &[],
        feature: "",
    },
    KeyKind {
        sql: "numeric",
        make: |n| format!("{n}.50"),
        odd: &["1e30", "'NaN'::numeric"],
        feature: "numeric-keys",
    },
    KeyKind {
        sql: "inet",
        make: |n| format!("'10.0.0.{n}'::inet"),
        odd: &["'::1/64'::inet"],
        feature: "inet-keys",
    },
    KeyKind { sql: "float8", make: |n| format!("{n}.1"), odd: &["1e20", "1e-7"], feature: "float-keys" },
    KeyKind { sql: "positive", make: |n| format!("{}", n + 1), odd: &[], feature: "" },
];

const fn kind(sql: &'static str, values: &'static [&'static str]) -> Kind {
    Kind { sql, values, feature: "" }
}

const fn trouble(sql: &'static str, values: &'static [&'static str], feature: &'static str) -> Kind {
    Kind { sql, values, feature }
}

const KINDS: &[Kind] = &[
    kind(
        "text",
        &["'plain'", r#"E'"quo\'ted"\\ \n\r\t \x01 \u2028 é😀 <tag>'"#, "''", "repeat('long ü ', 3000)"],
    ),
    kind("varchar(20)", &["'short'", "''", "'x  '"]),
    kind("char(5)", &["'ab'", "'abcde'", "''"]),
    kind("\"char\"", &["'x'", "''"]),
    kind("name", &["'a name'", "''"]),
    kind("int2", &["1", "-32768", "32767"]),
    kind("int4", &["2147483647", "-2147483648", "0"]),
    kind("int8", &["9223372036854775807", "-9223372036854775808"]),
    kind(
        "numeric",
        &[
            "12345678901234567890.12345678901234567890",
            "1e-40",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e308",
            "0.00",
        ],
    ),
    kind("numeric(10,3)", &["1.5", "-0.001", "0"]),
    kind("float4", &["1.1", "3.4e38", "'NaN'", "'-Infinity'", "1e-45"]),
    kind(
        "float8",
        &["0.1", "1.7976931348623157e308", "5e-324", "-1e21", "'NaN'", "'Infinity'", "'-0'", "1e308"],
    ),
    kind("bool", &["true", "false"]),
    kind("date", &["'2026-02-28'", "'0044-03-15 BC'", "'infinity'", "'-infinity'", "'5874897-12-31'"]),
    kind("time", &["'10:30:00.123456'", "'24:00'"]),
    kind("timetz", &["'10:30:00+02'", "'00:00:00-15:59'"]),
    kind(
        "timestamp",
        &["'2026-01-15 10:30:00.1'", "'294276-12-31 23:59:59.999999'", "'4713-01-01 BC'", "'-infinity'"],
    ),
    kind(
        "timestamptz",
        &["'2026-01-15 10:30:00.123456+05:30'", "'0001-01-01 00:00:00+00 BC'", "'infinity'", "now()"],
    ),
    kind("interval", &["'1 year 2 mons -3 days 04:05:06.7'", "'0'", "'178000000 years'"]),
    kind("uuid", &["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "'00000000-0000-0000-0000-000000000000'"]),
    kind(
        "json",
        &[
            r#"'{"b": 1.50, "a": [1, "x  y", null]}'"#,
            r#"'"text"'"#,
            "'null'",
            r#"'{"k":1,"k":2}'"#,
            "(repeat('[', 90) || repeat(']', 90))::json",
        ],
    ),
    kind(
        "jsonb",
        &[
            r#"'{"b": 1.50, "a": [1, "x  y", {"c": {}}]}'"#,
            "'12345678901234567890.5'",
            "'null'",
            "(repeat('[', 90) || repeat(']', 90))::jsonb",
            r#"'{"": {"é😀": "\u2028"}}'"#,
        ],
    ),
    kind("bytea", &[r"'\x00ff10'", "''", "decode(repeat('00ff', 2000), 'hex')"]),
    kind("mood", &["'happy, very'", "'sad'", "''"]),
    kind("positive", &["7", "1"]),
    kind("tags", &[r#"ARRAY['a', 'b "c" \d', NULL, 'NULL', '']"#, "'{}'"]),
    kind("int4[]", &["'{1,NULL,-3}'", "'{{1,2},{3,4}}'", "'{}'"]),
    kind("int8[]", &["'{{{1},{2}},{{3},{4}}}'", "'[5:6]={7,8}'"]),
    kind("text[]", &[r#"ARRAY['x,y', '{z}', E'line\nbreak', '"', '\', ' ', 'null', NULL]"#, "'{}'"]),
    kind("numeric[]", &["'{1.50,1e30,NaN}'", "'{}'"]),
    kind("float8[]", &["'{NaN,Infinity,-Infinity,1.5}'", "'{}'"]),
    kind("bool[]", &["'{t,f,NULL}'"]),
    kind("timestamptz[]", &["'{2026-01-15 10:30:00+00,infinity}'"]),
    kind("uuid[]", &["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"]),
    kind("jsonb[]", &[r#"ARRAY['{"a": [1, "x"]}', 'null', '"t"']::jsonb[]"#, "'{}'"]),
    kind("bytea[]", &[r"ARRAY['\x00ff', '']::bytea[]"]),
    kind("mood[]", &["ARRAY['so so', 'happy, very', '']::mood[]"]),
    kind("point3", &[r#"ROW(1, 1.50, 'a "b", (c)')"#, "ROW(NULL, NULL, '')"]),
    kind("point3[]", &["ARRAY[ROW(1, 2.5, 'x y'), ROW(2, NULL, NULL)]::point3[]", "'{}'"]),
    kind(
        "shape",
        &[
            "ROW(ARRAY[ROW(1, 2.5, 'x, y'), NULL]::point3[], true, '2026-01-15 10:30:00+00')",
            "ROW('{}', NULL, 'infinity')",
        ],
    ),
    kind("inet", &["'192.168.0.1'", "'2001:db8::/32'"]),
    kind("cidr", &["'10.0.0.0/8'", "'::/0'"]),
    kind("macaddr", &["'08:00:2b:01:02:03'"]),
    kind("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    kind("int4range", &["'[1,10)'", "'empty'"]),
    kind("numrange", &["'[1.5,)'", "'(,)'"]),
    kind("tstzrange", &["'[2026-01-01 00:00:00+00,2026-02-01 00:00:00+00)'", "'(,infinity)'"]),
    kind("daterange[]", &["ARRAY['[2026-01-01,2026-02-01)']::daterange[]"]),
    kind("int4multirange", &["'{[1,3),[5,7)}'", "'{}'"]),
    kind("datemultirange", &["'{[2026-01-01,2026-02-01)}'"]),
    kind("point", &["'(1.5,-2)'"]),
    kind("polygon", &["'((0,0),(1,1),(2,0))'"]),
    kind("box[]", &["'{(1,1),(0,0);(2,2),(1,1)}'", "'{}'"]),
    kind("bit(3)", &["B'101'", "B'000'"]),
    kind("varbit", &["B'1'", "B''"]),
    kind("money", &["1234.5", "-1"]),
    kind("xml", &["'<a b=\"c\">d</a>'", "'x'"]),
    kind("tsvector", &["'a:1 b:2'", "''"]),
    kind("tsquery", &["'a & b'"]),
    kind("oid", &["4294967295", "0"]),
    kind("pg_lsn", &["'16/B374D848'", "'0/0'"]),
    kind("jsonpath", &["'$.a[*]'"]),
    kind("txid_snapshot", &["'10:20:10,14'"]),
    trouble("hstore", &["'a=>1, b=>NULL'", "''"], "hstore"),
    trouble("attributes", &["'a=>1'"], "hstore"),
    trouble("hstore[]", &["ARRAY['a=>1']::hstore[]"], "hstore"),
    trouble("int2vector", &["'1 2 3'"], "vectors"),
    trouble("oidvector", &["'1 2 3'"], "vectors"),
];
