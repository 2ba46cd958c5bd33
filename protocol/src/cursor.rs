//! Cursors of live reads (Durable Streams protocol, section 10.1): the number of the twenty-second interval
//! since 9 October 2024, always ahead of the one the client sent, so that no cache answers a waiter twice
//! with the same empty response.

/// Seconds of one interval.
const INTERVAL_SECS: u64 = 20;
/// 2024-10-09T00:00:00Z in Unix seconds.
const ORIGIN_SECS: u64 = 1_728_432_000;
/// Most seconds a cursor is moved ahead of a client that is already at or past the present.
const JITTER_SECS: u64 = 3_600;

/// A place in the sequence of intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(u64);

impl Cursor {
    /// The cursor to answer with at `unix_secs`, given the one the client sent.
    #[must_use]
    pub fn next(unix_secs: u64, sent: Option<Cursor>) -> Cursor {
        let present = unix_secs.saturating_sub(ORIGIN_SECS) / INTERVAL_SECS;
        match sent {
            Some(Cursor(sent)) if sent >= present => {
                let jitter = (rand::random_range(1..=JITTER_SECS) / INTERVAL_SECS).max(1);
                Cursor(sent.saturating_add(jitter))
            }
            _ => Cursor(present),
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads a client's cursor. One that the server did not make counts as none: a cursor is only a cache key.
    #[must_use]
    pub fn parse(text: &str) -> Option<Cursor> {
        text.parse().ok().map(Cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_counts_intervals_and_never_goes_back() {
        let now = ORIGIN_SECS + 1_000 * INTERVAL_SECS;
        assert_eq!(Cursor::next(now, None), Cursor(1_000));
        assert_eq!(Cursor::next(now, Some(Cursor(999))), Cursor(1_000));
        for sent in [1_000, 1_001, 5_000] {
            assert!(Cursor::next(now, Some(Cursor(sent))) > Cursor(sent));
        }
    }
}
