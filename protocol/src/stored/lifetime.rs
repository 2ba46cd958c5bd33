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
            (None, Some(text)) => text.parse().map(|time: Timestamp| Lifetime::Until(time.as_millisecond())).map_err(
                |_| Refused("Stream-Expires-At must be a time by RFC 3339, such as 2030-01-15T10:30:00Z"),
            ),
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

/// A time as RFC 3339 has it.
#[must_use]
pub fn rfc3339(unix_millis: i64) -> String {
    Timestamp::from_millisecond(unix_millis).map(|time| format!("{time:.3}")).unwrap_or_default()
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
        for bad in ["", "tomorrow", "2030-01-15", "2030-01-15T10:30:00"] {
            assert!(until(bad).is_err(), "{bad}");
        }
        assert!(Lifetime::parse(Some("1"), Some("2030-01-15T10:30:00Z")).is_err());
    }
}
