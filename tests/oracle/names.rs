//! Names of tables and columns: plain ones, and those that need quoting or look like something else.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::features::on;

/// Names, with the feature each belongs to.
const HOSTILE: &[(&str, &str)] = &[
    ("plain", ""),
    ("Two Words", ""),
    ("select", ""),
    ("quoted \"\" name", ""),
    ("apostrophe's", ""),
    ("größe_表_🦀", ""),
    ("percent %41", ""),
    ("back\\slash", ""),
    ("value $1", "dollar-names"),
    ("id$2", "dollar-names"),
    ("{brace}", ""),
    ("colon::text", ""),
    ("-- comment", ""),
    ("question?", ""),
];

/// The longest name that PostgreSQL takes, in bytes.
const LONGEST: usize = 63;

/// A name that is unique, because it contains this number.
pub fn name(number: usize, random: &mut StdRng) -> String {
    if random.random_bool(0.4) {
        return format!("plain_{number}");
    }
    let usable: Vec<&str> =
        HOSTILE.iter().filter(|(_, feature)| on(feature)).map(|(name, _)| *name).collect();
    let mut name = format!("{}{number}", usable.choose(random).unwrap());
    if random.random_bool(0.2) {
        while name.len() < LONGEST {
            name.push('x');
        }
    }
    name
}

/// A name inside SQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text inside SQL.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A text inside a URL.
pub fn in_url(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
