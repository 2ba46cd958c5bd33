//! The kinds of value a setting may have: durations, sizes, the database's URL, the form of the logs. A few lines of our own read
//! and print durations and sizes by one rule: a number, whose fraction must come out even, and one unit.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The address of a listener: `127.0.0.1:4437`, `[::1]:4437`, `localhost:4437`; or `:4437` or `4437`, which is a port of
/// this machine's own loopback address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddress(SocketAddr);

impl ListenAddress {
    /// The address.
    #[must_use]
    pub const fn get(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for ListenAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let address = port.parse().map(loopback).or_else(|_| text.parse());
        address.map(ListenAddress).map_err(|_| {
            format!(
                "`{text}` is not an address to listen on; write `127.0.0.1:4437`, `0.0.0.0:4437`, `[::1]:4437`, \
                 `localhost:4437` or a port alone, `4437`"
            )
        })
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> String {
        address.to_string()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A duration such as `250ms`, `1.5s`, `5m`, `12h` or `365d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

impl Span {
    /// A span of this length.
    #[must_use]
    pub const fn of(duration: Duration) -> Span {
        Span(duration)
    }

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
            format!("`{text}` is not a duration; write it as `250ms`, `1.5s`, `5m`, `12h` or `365d`")
        })
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX) {
            0 => f.write_str("0s"),
            millis => display_scaled(f, millis, &SPAN_UNITS),
        }
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

/// A number with a unit, as a whole number of the smallest unit; a fraction must come out even.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let parts = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = fraction.parse::<u64>().ok()?.checked_mul(*scale)?;
    if !part.is_multiple_of(parts) {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(*scale)?.checked_add(part / parts)
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
    /// The same database, without what only its owner may know.
    #[must_use]
    pub fn without_password(&self) -> DatabaseUrl {
        let DatabaseUrl::Postgres(text) = self else { return self.clone() };
        let Ok(mut url) = url::Url::parse(text) else { return DatabaseUrl::Postgres(without_password(text)) };
        // Neither can fail for a URL that has a host, and others have no password.
        let _ = url.set_password(None);
        let kept: Vec<(String, String)> =
            url.query_pairs().into_owned().filter(|(name, _)| !name.contains("password")).collect();
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        DatabaseUrl::Postgres(url.into())
    }

    /// The database as it may be shown: without the password.
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
pub(super) use from_string;
from_string!(ListenAddress, Span, Size, DatabaseUrl, LogFormat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_a_port_alone() {
        for (text, read) in [
            ("127.0.0.1:4000", "127.0.0.1:4000"),
            ("[::1]:4000", "[::1]:4000"),
            ("0.0.0.0:4000", "0.0.0.0:4000"),
            ("localhost:4000", "127.0.0.1:4000"),
            (":4000", "127.0.0.1:4000"),
            ("4000", "127.0.0.1:4000"),
        ] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), read);
        }
        for bad in ["", ":", "localhost", "example.com:80", "127.0.0.1", "70000", "::1:4000x"] {
            assert!(bad.parse::<ListenAddress>().unwrap_err().contains("`127.0.0.1:4437`"), "{bad}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = |url: &str| url.parse::<DatabaseUrl>().unwrap().shown();
        assert_eq!(shown("postgres://app:se@cret@db:5432/app?password=x"), "postgres://app@db:5432/app");
        assert_eq!(shown("postgres://db/app"), "postgres://db/app");
        assert_eq!(shown("sqlite:a.db"), "a.db");
        let without = |url: &str| url.parse::<DatabaseUrl>().unwrap().without_password().to_string();
        assert_eq!(
            without("postgres://app:secret@db:5432/app?sslmode=require&password=x"),
            "postgres://app@db:5432/app?sslmode=require"
        );
        assert_eq!(without("postgres://db/app"), "postgres://db/app");
    }

    #[test]
    fn durations_and_sizes_read_back_as_they_are_printed() {
        for (text, read) in [("0ms", "0s"), ("1.5s", "1500ms"), ("0.5d", "12h"), ("2.0s", "2s")] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), read);
        }
        for text in ["0s", "250ms", "2s", "90s", "5m", "365d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["0B", "512B", "64KiB", "8MiB", "3GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for bad in ["", "s", "2", "-1s", "1.0005s", ".5s", "1.s", "1.2.3s", "2 s", "99999999999999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
