//! Scenarios on PostgreSQL: built servers over clusters of the tests' own, with foreign writers, poolers, kills and
//! everything else that befalls a database.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::semicolon_if_nothing_returned,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod holder;
mod load;
mod reader;
mod site;

/// The tests; the name lets `scripts/test` find those that are for PostgreSQL.
#[path = "."]
mod postgres {
    mod backfill;
    mod bodies;
    mod changes;
    mod commands;
    mod crashes;
    mod failover;
    mod faults;
    mod forms;
    mod hostile;
    mod hostile_rows;
    mod identities;
    mod large;
    mod late;
    mod obstacles;
    mod outages;
    mod partitions;
    mod plans;
    mod pooler;
    mod random;
    mod refused;
    mod renewed;
    mod schema;
    mod sessions;
    mod several;
    mod stranded;
    mod time_travel;
    mod tls;
    mod transactions;
    mod undo;
    mod unlogged;
    mod unreadable;
}
