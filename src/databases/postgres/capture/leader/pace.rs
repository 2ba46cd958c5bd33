//! How fast transactions come. Each batch costs the database as much as dozens of changes, which its writers would
//! notice while there are many; so the leader lets changes gather then, and only then.

use std::time::Duration;

use tokio::time::Instant;

/// How often the pace is measured.
const WINDOW: Duration = Duration::from_millis(100);
/// Transactions a second above which they gather.
const BUSY: f64 = 750.0;

/// The pace of the last [`WINDOW`].
#[derive(Debug)]
pub(in super::super) struct Pace {
    since: Instant,
    ended: u32,
    busy: bool,
    /// No batch leaves before this time, unless it is full.
    pub(in super::super) gathers_until: Instant,
}

impl Pace {
    pub(in super::super) fn new() -> Pace {
        let now = Instant::now();
        Pace { since: now, ended: 0, busy: false, gathers_until: now }
    }

    /// Counts transactions that have ended; if they come so fast that they should gather, those that follow do, for a
    /// while.
    pub(in super::super) fn ended(&mut self, transactions: usize, gather: Duration) {
        self.ended = self.ended.saturating_add(u32::try_from(transactions).unwrap_or(u32::MAX));
        let elapsed = self.since.elapsed();
        if elapsed >= WINDOW {
            let busy = f64::from(self.ended) > BUSY * elapsed.as_secs_f64();
            *self = Pace { busy, gathers_until: self.gathers_until, ..Pace::new() };
        }
        if self.busy {
            self.gathers_until = Instant::now() + gather;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATHER: Duration = Duration::from_millis(2);

    /// Whether transactions gather after a while at so many a second.
    async fn gathers(pace: &mut Pace, per_second: u32) -> bool {
        for _ in 0..per_second {
            tokio::time::advance(Duration::from_secs(1) / per_second).await;
            pace.ended(1, GATHER);
        }
        pace.gathers_until > Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn transactions_gather_while_many_come() {
        let mut pace = Pace::new();
        assert!(!gathers(&mut pace, 500).await);
        assert!(gathers(&mut pace, 1_000).await);
        assert!(!gathers(&mut pace, 500).await);
        assert!(gathers(&mut pace, 5_000).await);
        tokio::time::advance(Duration::from_secs(1)).await;
        pace.ended(1, GATHER);
        assert!(pace.gathers_until < Instant::now(), "after a pause the first one leaves at once");
    }
}
