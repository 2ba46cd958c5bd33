//! SQLite's affinities, and values of every storage class in each of them.

use crate::schema::{Dialect, KeyKind, Kind, Palette};

pub const PALETTE: Palette = Palette {
    dialect: Dialect::Sqlite,
    kinds: KINDS,
    keys: KEYS,
    time: "datetime",
    json: "json",
    preamble: "",
};

const KEYS: &[KeyKind] = &[
    KeyKind {
        sql: "text",
        make: |n| format!("'key {n}'"),
        odd: &["'a/b%20c'", "'ä\"ö'", "'$1'", "' '", "'😀'", "'..'"],
        feature: "",
    },
    KeyKind {
        sql: "text",
        make: |n| format!("'key {n}'"),
        odd: &["''", "'tab' || char(9) || 'here'", "printf('%.*c', 3000, 'x')"],
        feature: "odd-keys",
    },
    KeyKind {
        sql: "text",
        make: |n| format!("'key {n}'"),
        odd: &["x'00ff'", "x'6b657920'"],
        feature: "blob-keys",
    },
    KeyKind {
        sql: "integer",
        make: |n| n.to_string(),
        odd: &["9223372036854775807", "-9223372036854775808", "9007199254740993"],
        feature: "",
    },
    KeyKind { sql: "int", make: |n| n.to_string(), odd: &["-1"], feature: "" },
    KeyKind { sql: "varchar(40)", make: |n| format!("'v{n}'"), odd: &["'0012'", "'1e5'"], feature: "" },
    KeyKind { sql: "uuid", make: |n| format!("'a0eebc99-9c0b-4ef8-bb6d-{n:012}'"), odd: &[], feature: "" },
    KeyKind {
        sql: "real",
        make: |n| format!("{n}.5"),
        odd: &["1e20", "0.1 + 0.2", "0.3"],
        feature: "real-keys",
    },
];

const fn kind(sql: &'static str, values: &'static [&'static str]) -> Kind {
    Kind { sql, values, feature: "" }
}

/// Values of every storage class; an affinity makes of them what it makes of them.
const ANYTHING: &[&str] = &[
    "0",
    "1",
    "-9223372036854775808",
    "9223372036854775807",
    "0.1",
    "1e308",
    "-1e308",
    "5e-324",
    "9e999",
    "-9e999",
    "-0.0",
    "123456789012345678",
    "1.0",
    "''",
    "'text'",
    "'12'",
    "'1.50'",
    "'1e3'",
    "'tab' || char(9) || char(1) || char(10) || '\"quotes\" '' \\ é😀' || char(8232)",
    "x''",
    "x'00ff'",
    "x'74657874'",
    "printf('%.*c', 20000, 'l')",
];

const KINDS: &[Kind] = &[
    kind("text", ANYTHING),
    kind("varchar(10)", ANYTHING),
    kind("integer", ANYTHING),
    kind("bigint", ANYTHING),
    kind("real", ANYTHING),
    kind("double precision", ANYTHING),
    kind("numeric", ANYTHING),
    kind("decimal(10,2)", ANYTHING),
    kind("blob", ANYTHING),
    kind("", ANYTHING),
    kind("boolean", &["1", "0", "2", "'true'", "x'01'"]),
    kind(
        "json",
        &[
            "'{\"b\": 1.50, \"a\": [1, \"x  y\", null]}'",
            "'[]'",
            "'null'",
            "'12'",
            "'\"t\"'",
            "'no json'",
            "7",
        ],
    ),
    kind("datetime", &["'2026-01-15T10:30:00.123Z'", "'2026-01-15 10:30:00'", "1768473000", "'never'"]),
    kind("date", &["'2026-01-15'", "20260115"]),
    Kind { sql: "text", values: &["'nul' || char(0) || 'inside'"], feature: "nul-text" },
    Kind { sql: "text", values: &["CAST(x'ff6162' AS TEXT)"], feature: "invalid-utf8" },
];
