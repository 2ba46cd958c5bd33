//! How long a stored stream lives: for ever, until it was idle for so many seconds, or until a point in time
//! (Durable Streams protocol, section 5.1).

use jiff::Timestamp;

use super::Refused;
use crate::limits::STREAM_TTL_MAX_SECS;

/// When a stream expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lifetime {
    /// Never.
    #[default]
    Endless,
    /// When it was neither read nor written for so many seconds.
    Idle(u64),
    /// At this time, in Unix milliseconds.
    Until(i64),
}

impl Lifetime {
    /// Reads the two headers; at most one of them may be there.
    ///
    /// # Errors
    /// With the rule that they break.
    pub fn parse(ttl: Option<&str>, expires_at: Option<&str>) -> Result<Lifetime, Refused> {
        match (ttl, expires_at) {
            (None, None) => Ok(Lifetime::Endless),
            (Some(_), Some(_)) => Err(Refused("send Stream-TTL or Stream-Expires-At, not both")),
            (Some(text), None) => whole_number(text, STREAM_TTL_MAX_SECS).map(Lifetime::Idle).ok_or(Refused(
                "Stream-TTL must be a whole number of seconds, at most a hundred years, without sign or zeros before it",
            )),
            (None, Some(text)) => time(text)
                .map(Lifetime::Until)
                .ok_or(Refused("Stream-Expires-At must be a time by RFC 3339, such as 2030-01-15T10:30:00Z")),
        }
    }

    /// When it is over, if it is last used at `now`, both in Unix milliseconds.
    #[must_use]
    pub fn deadline(self, now: i64) -> Option<i64> {
        match self {
            Lifetime::Endless => None,
            Lifetime::Idle(secs) => {
                let millis = i64::try_from(secs.saturating_mul(1_000)).unwrap_or(i64::MAX);
                Some(now.saturating_add(millis))
            }
            Lifetime::Until(time) => Some(time),
        }
    }
}

/// A number in plain decimal: no sign, no zeros before it, nothing else.
#[must_use]
pub fn whole_number(text: &str, most: u64) -> Option<u64> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    plain.then(|| text.parse().ok()).flatten().filter(|number| *number <= most)
}

/// The last millisecond of RFC 3339's years.
const LAST_MILLIS: i64 = 253_402_300_799_999;
/// The library's times end a day before that. The last days are read and written as days of a month that it knows, this
/// many days earlier.
const LAST_DAYS: i64 = 10;
const DAY_MILLIS: i64 = 86_400_000;

/// The time that a text by RFC 3339 names, in Unix milliseconds.
fn time(text: &str) -> Option<i64> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.as_millisecond());
    }
    let (day, rest) = text.strip_prefix("9999-12-")?.split_at_checked(2)?;
    let day = day.parse::<i64>().ok().filter(|day| (30..=31).contains(day))?;
    let earlier: Timestamp = format!("9999-12-{}{rest}", day - LAST_DAYS).parse().ok()?;
    Some((earlier.as_millisecond() + LAST_DAYS * DAY_MILLIS).min(LAST_MILLIS))
}

/// A time as RFC 3339 has it.
#[must_use]
pub fn rfc3339(unix_millis: i64) -> String {
    let text = |millis| Timestamp::from_millisecond(millis).map(|time| format!("{time:.3}")).ok();
    let last_days = || {
        let earlier = text(unix_millis.min(LAST_MILLIS) - LAST_DAYS * DAY_MILLIS)?;
        let (day, rest) = earlier.strip_prefix("9999-12-")?.split_at_checked(2)?;
        Some(format!("9999-12-{}{rest}", day.parse::<i64>().ok()? + LAST_DAYS))
    };
    text(unix_millis).or_else(last_days).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_a_plain_number_and_a_time_is_rfc_3339() {
        let ttl = |text| Lifetime::parse(Some(text), None);
        assert_eq!(ttl("0"), Ok(Lifetime::Idle(0)));
        assert_eq!(ttl("3600"), Ok(Lifetime::Idle(3_600)));
        for bad in ["", "+5", "05", "5.0", "5e3", "-1", " 5", "99999999999999999999"] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
        let until = |text| Lifetime::parse(None, Some(text));
        assert_eq!(until("1970-01-01T01:00:01.5+01:00"), Ok(Lifetime::Until(1_500)));
        assert_eq!(rfc3339(1_500), "1970-01-01T00:00:01.500Z");
        for (last, shown) in [
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000Z"),
            ("9999-12-31T23:59:59.999-01:00", "9999-12-31T23:59:59.999Z"),
            ("9999-12-30T22:30:00Z", "9999-12-30T22:30:00.000Z"),
        ] {
            let Ok(Lifetime::Until(millis)) = until(last) else { panic!("{last}") };
            assert_eq!(rfc3339(millis), shown);
        }
        for bad in [
            "",
            "tomorrow",
            "2030-01-15",
            "2030-01-15T10:30:00",
            "9999-12-32T00:00:00Z",
            "9999-12-31T25:00:00Z",
        ] {
            assert!(until(bad).is_err(), "{bad}");
        }
        assert!(Lifetime::parse(Some("1"), Some("2030-01-15T10:30:00Z")).is_err());
    }
}
