//! When a browser is to reconnect an event stream.

use crate::config::Limits;

/// The time a browser is to wait before it reconnects, spread so that a restart does not bring all at once.
pub(super) fn retry_millis(limits: &Limits) -> u64 {
    let least = u64::try_from(limits.sse_retry.get().as_millis()).unwrap_or(u64::MAX / 2);
    least + rand::random_range(0..=least)
}
