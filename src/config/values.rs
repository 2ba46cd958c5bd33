//! The kinds of value a setting may have: durations, sizes, the database's URL, the form of the logs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A duration such as `250ms`, `2s`, `5m`, `12h` or `365d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(Duration);

impl Span {
    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

const SPAN_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        scaled(text, &SPAN_UNITS).map(|millis| Span(Duration::from_millis(millis))).ok_or_else(|| {
            format!("`{text}` is not a duration; write it as `250ms`, `2s`, `5m`, `12h` or `365d`")
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display_scaled(f, u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &SPAN_UNITS)
    }
}

/// A number of bytes such as `512`, `64KiB`, `8MiB` or `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(u64);

impl Size {
    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes, as memory is counted.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const SIZE_UNITS: [(&str, u64); 5] =
    [("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        scaled(text, &SIZE_UNITS)
            .map(Size)
            .ok_or_else(|| format!("`{text}` is not a size; write it as `512B`, `64KiB`, `8MiB` or `1GiB`"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display_scaled(f, self.0, &SIZE_UNITS)
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*scale)
}

/// The largest unit that divides the number evenly.
fn display_scaled(f: &mut fmt::Formatter<'_>, number: u64, units: &[(&str, u64)]) -> fmt::Result {
    let divides = |(_, scale): &&(&str, u64)| number.is_multiple_of(*scale) && number >= *scale;
    let smallest = |(_, scale): &&(&str, u64)| *scale == 1;
    let (unit, scale) =
        units.iter().rfind(divides).or_else(|| units.iter().rfind(smallest)).unwrap_or(&("", 1));
    write!(f, "{}{unit}", number / scale)
}

/// Where the data is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DatabaseUrl {
    /// `sqlite:PATH`: a SQLite file, made when it is missing.
    Sqlite(PathBuf),
    /// `postgres://USER@HOST/DATABASE`: a PostgreSQL database, as libpq's URLs name it.
    Postgres(String),
}

impl DatabaseUrl {
    /// The database as it may be shown to anybody: without the password.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            DatabaseUrl::Sqlite(path) => path.display().to_string(),
            DatabaseUrl::Postgres(url) => without_password(url),
        }
    }
}

/// The URL without what only its owner may know: passwords stand before the host, or among the parameters.
fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or(url);
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}", user.split(':').next().unwrap_or(user)),
        None => url.to_owned(),
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.trim_start_matches("//").is_empty() => {
                Ok(DatabaseUrl::Sqlite(path.strip_prefix("//").unwrap_or(path).into()))
            }
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(DatabaseUrl::Postgres(text.into()))
            }
            _ => Err(format!(
                "`{text}` is not a database this server knows; write `sqlite:PATH` or `postgres://USER@HOST/DATABASE`"
            )),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseUrl::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            DatabaseUrl::Postgres(url) => f.write_str(url),
        }
    }
}

/// The form of the server's own log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("`{text}` is not a log format; write `text` or `json`")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        })
    }
}

macro_rules! from_string {
    ($($name:ident),*) => { $(
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    )* };
}
from_string!(Span, Size, DatabaseUrl, LogFormat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let shown = |url: &str| url.parse::<DatabaseUrl>().unwrap().shown();
        assert_eq!(shown("postgres://app:se@cret@db:5432/app?password=x"), "postgres://app@db:5432/app");
        assert_eq!(shown("postgres://db/app"), "postgres://db/app");
        assert_eq!(shown("sqlite:a.db"), "a.db");
    }

    #[test]
    fn durations_and_sizes_read_back_as_they_are_printed() {
        for text in ["0ms", "250ms", "2s", "90s", "5m", "365d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["0B", "512B", "64KiB", "8MiB", "3GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for bad in ["", "s", "2", "-1s", "1.5s", "2 s", "99999999999999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
