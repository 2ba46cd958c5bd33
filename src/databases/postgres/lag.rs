//! How far the log is behind the database: in bytes of the write-ahead log, and in seconds since the oldest of those bytes
//! was seen. The seconds are as exact as the database is looked at often.

use std::collections::VecDeque;

use pgwire_replication::Lsn;
use tokio::time::Instant;

/// Most looks that are remembered. Beyond that every other one is forgotten, except the oldest.
const LOOKS_MAX: usize = 1_024;

/// How far the two logs reached at each look.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// What was committed before this place is in the log, or has nothing for it.
    position: Option<Lsn>,
    /// How far the write-ahead log reached, and when that was seen; only what is not in the log yet, oldest first.
    looks: VecDeque<(Instant, Lsn)>,
    written: Option<Lsn>,
}

impl Lag {
    /// Takes how far the log and the write-ahead log reach now; `None` where that cannot be known.
    pub(super) fn saw(&mut self, position: Option<Lsn>, written: Option<Lsn>, now: Instant) {
        self.written = written;
        self.position = match (position, self.position) {
            // If the database went back in time, what the stream had nothing of does not count any more.
            (Some(position), Some(known)) if written.is_some_and(|written| known <= written) => {
                Some(position.max(known))
            }
            (position, _) => position,
        };
        if let Some(written) = written {
            self.looks.push_back((now, written));
        }
        self.forget();
        if self.looks.len() > LOOKS_MAX {
            let mut at = 0;
            self.looks.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
    }

    /// Nothing that was written before this place is for the log.
    pub(super) fn nothing_before(&mut self, place: Lsn) {
        self.position = self.position.map(|position| position.max(place));
        self.forget();
    }

    fn forget(&mut self) {
        while self
            .looks
            .front()
            .is_some_and(|(_, seen)| self.position.is_none_or(|position| *seen <= position))
        {
            self.looks.pop_front();
        }
    }

    /// Bytes of the write-ahead log that are not in the log.
    pub(super) fn bytes(&self) -> Option<u64> {
        Some(self.written?.as_u64().saturating_sub(self.position?.as_u64()))
    }

    /// How long ago the oldest of these bytes was seen; zero where there are none.
    pub(super) fn seconds(&self, now: Instant) -> Option<f64> {
        self.position.filter(|_| self.written.is_some())?;
        Some(self.looks.front().map_or(0.0, |(since, _)| now.duration_since(*since).as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lsn(place: u64) -> Option<Lsn> {
        Some(Lsn::from(place))
    }

    #[test]
    fn the_lag_is_the_age_of_the_oldest_bytes_that_are_not_in_the_log() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut lag = Lag::default();
        assert_eq!((lag.bytes(), lag.seconds(begin)), (None, None));
        lag.saw(lsn(100), lsn(100), at(0));
        assert_eq!((lag.bytes(), lag.seconds(at(5))), (Some(0), Some(0.0)));
        lag.saw(lsn(100), lsn(200), at(10));
        lag.saw(lsn(100), lsn(300), at(20));
        assert_eq!((lag.bytes(), lag.seconds(at(30))), (Some(200), Some(20.0)));
        lag.saw(lsn(200), lsn(300), at(30));
        assert_eq!((lag.bytes(), lag.seconds(at(30))), (Some(100), Some(10.0)));
        lag.nothing_before(Lsn::from(300));
        assert_eq!((lag.bytes(), lag.seconds(at(40))), (Some(0), Some(0.0)));
        // A restored database has written less than it had before.
        lag.saw(lsn(50), lsn(60), at(50));
        assert_eq!((lag.bytes(), lag.seconds(at(51))), (Some(10), Some(1.0)));
    }

    #[test]
    fn a_lag_of_days_is_remembered_in_bounded_memory_with_its_beginning() {
        let begin = Instant::now();
        let mut lag = Lag::default();
        for second in 0..100_000 {
            lag.saw(lsn(1), lsn(2 + second), begin + Duration::from_secs(second));
        }
        assert!(lag.looks.len() <= LOOKS_MAX);
        assert_eq!(lag.seconds(begin + Duration::from_secs(100_000)), Some(100_000.0));
    }
}
