//! The oracle: generated schemas with hostile values, generated transactions by many writers, trouble of every kind, and
//! readers of every kind; at the end every reader must have what the table has, have seen every transaction whole and
//! nothing twice.
//!
//! `BOURN_ORACLE_SEED` repeats a run's schemas, statements and trouble (their interleaving is the machine's),
//! `BOURN_ORACLE_SECONDS` says how long each database's run lasts, `BOURN_ORACLE_TROUBLE=all` (or names, between commas) adds
//! what is left out as long as it is known to fail. `scripts/soak` runs the same world for hours.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::semicolon_if_nothing_returned,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod cache;
mod checks;
mod features;
mod journal;
mod names;
mod postgres;
mod postgres_values;
mod readers;
mod rest;
mod run;
mod schema;
mod soak;
mod sqlite;
mod sqlite_values;
mod statements;
mod trouble;
mod world;

use std::time::Duration;

/// How long a run lasts unless the environment says otherwise.
const SECONDS: u64 = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn duration() -> Duration {
    Duration::from_secs(number("BOURN_ORACLE_SECONDS").unwrap_or(SECONDS))
}

fn seed() -> u64 {
    number("BOURN_ORACLE_SEED").unwrap_or_else(rand::random)
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_readers_end_with_the_tables_whatever_happens() {
    run::run::<postgres::Postgres>(seed(), duration()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_readers_end_with_the_tables_whatever_happens() {
    run::run::<sqlite::Sqlite>(seed(), duration()).await;
}

/// Started by `scripts/soak`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "lasts for hours: scripts/soak"]
async fn soak() {
    soak::soak(seed()).await;
}
