//! When activities may leave the log, for any database.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::Limits;

/// The longest step by which the bound moves.
const STEP_MAX: Duration = Duration::from_secs(24 * 3600);
/// The bound moves in steps of this fraction of the time that history is kept: a reader from the start begins again
/// when it moves, so it must not move all the time.
const STEP_PART: u32 = 8;

/// How long activities are kept, and how often old ones are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    history: Duration,
    audit: Option<Duration>,
    pub(crate) interval: Duration,
}

impl Retention {
    /// As configured; `None` where everything is kept.
    pub(crate) fn of(limits: &Limits) -> Option<Retention> {
        let set = |span: Duration| Some(span).filter(|span| !span.is_zero());
        Some(Retention {
            history: set(limits.retention_history.get())?,
            audit: set(limits.retention_audit.get()),
            interval: limits.retention_interval.get(),
        })
    }

    /// Activities from before this time, in Unix milliseconds, may leave the streams.
    pub(crate) fn history_bound(&self) -> i64 {
        let step = (self.history / STEP_PART).min(STEP_MAX).as_millis().max(1);
        let bound = now().saturating_sub(self.history).as_millis() / step * step;
        i64::try_from(bound).unwrap_or_default()
    }

    /// Activities from before this time, in Unix milliseconds, may leave the audit trail.
    pub(crate) fn audit_bound(&self) -> Option<i64> {
        self.audit.map(|audit| i64::try_from(now().saturating_sub(audit).as_millis()).unwrap_or_default())
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
