//! The database's clock, by which streams expire on every server alike: read now and then, and carried on in between by
//! this machine's steady clock, so that neither machine's jumps matter.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::streams::unix_millis;

/// A reading that took longer than this to arrive is too inexact.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The database's clock.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    /// The database's time at that moment, in Unix milliseconds.
    at_beginning: AtomicI64,
}

impl Clock {
    /// This machine's clock, until the database's is read.
    pub(super) fn new() -> Clock {
        Clock { began: Instant::now(), at_beginning: AtomicI64::new(unix_millis()) }
    }

    /// Now, in Unix milliseconds.
    pub(super) fn now(&self) -> i64 {
        self.at_beginning.load(Ordering::Relaxed).saturating_add(millis(self.began.elapsed()))
    }

    /// Takes a reading of the database's clock, made at some moment between `asked` and now.
    pub(super) fn read(&self, millis_there: i64, asked: Instant) {
        let took = asked.elapsed();
        if took <= ANSWER_MAX {
            let then = asked.duration_since(self.began) + took / 2;
            self.at_beginning.store(millis_there.saturating_sub(millis(then)), Ordering::Relaxed);
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_databases_time_goes_on_from_where_it_was_read() {
        let clock = Clock::new();
        assert!((clock.now() - unix_millis()).abs() < 1_000);
        let year_2000 = 946_684_800_000;
        clock.read(year_2000, Instant::now());
        assert!((0..1_000).contains(&(clock.now() - year_2000)));
    }
}
