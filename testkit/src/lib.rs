//! PostgreSQL clusters for tests and measurements: real ones, each in a directory of its own, gone with the
//! process that started them; and a proxy that stands for a bad network. What cannot be had ends the test with words.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::semicolon_if_nothing_returned,
    reason = "test code"
)]

mod binaries;
mod cluster;
mod database;
mod options;
mod pgbouncer;
mod process;
mod proxy;
mod psql;
mod scratch;
mod tls;
mod travel;

use std::time::{Duration, Instant};

pub use cluster::Cluster;
pub use database::Database;
pub use options::Options;
pub use pgbouncer::PgBouncer;
pub use proxy::{Proxy, Way};
pub use psql::Refused;
pub use travel::{Copy, Standby};

/// How long a server may take to start or to stop.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds, and says whether it did in time.
fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Differs at every call, in every process.
fn token() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}
