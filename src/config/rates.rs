//! How much one caller, or one address, may ask of the server.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::from_string;

/// The table `[limits]`. What is left out is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateConfig {
    /// Requests of one subject; of requests without a token, of one address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Rate>,
    /// How many requests may come at once before the rate holds; as many as the rate has if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU32>,
    /// Live reads of one subject at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live_per_subject: Option<usize>,
    /// Live reads of one address at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live_per_ip: Option<usize>,
    /// Tokens of one address that are not accepted; with more, it is not listened to for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_failures: Option<Rate>,
}

impl RateConfig {
    /// The table as it is written in a file.
    pub(super) fn to_toml(&self) -> String {
        #[derive(Serialize)]
        struct RateTable<'a> {
            limits: &'a RateConfig,
        }
        if *self == RateConfig::default() {
            return String::new();
        }
        match toml::to_string(&RateTable { limits: self }) {
            Ok(text) => format!("\n{text}"),
            Err(error) => unreachable!("what was read as TOML can be written as TOML: {error}"),
        }
    }
}

/// So many in a second, a minute or an hour: `50/s`, `10/m`, `100/h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

const UNITS: [(&str, Unit); 3] = [("s", Unit::Second), ("m", Unit::Minute), ("h", Unit::Hour)];

impl Rate {
    /// The time in which so many may come.
    #[must_use]
    pub const fn period(self) -> Duration {
        Duration::from_secs(match self.unit {
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 3_600,
        })
    }
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (count, unit) = text.split_once('/')?;
            let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
            Some(Rate { count: count.parse().ok()?, unit: *unit })
        };
        read().ok_or_else(|| format!("`{text}` is not a rate; write it as `50/s`, `10/m` or `100/h`"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = UNITS.iter().find(|(_, unit)| *unit == self.unit).map_or("s", |(name, _)| name);
        write!(f, "{}/{name}", self.count)
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> String {
        rate.to_string()
    }
}

from_string!(Rate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_count_in_a_time() {
        for (text, count, secs) in [("50/s", 50, 1), ("10/m", 10, 60), ("1/h", 1, 3_600)] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(
                (rate.count.get(), rate.period().as_secs(), rate.to_string()),
                (count, secs, text.to_owned())
            );
        }
        for bad in ["", "50", "0/s", "-1/s", "5/d", "1.5/s", "/s", "5/"] {
            assert!(bad.parse::<Rate>().unwrap_err().contains("`10/m`"), "{bad}");
        }
    }
}
