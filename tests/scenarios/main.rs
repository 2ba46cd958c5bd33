//! Scenarios: the built server as its users meet it, over real sockets, on real files, with other processes
//! writing and signals arriving.

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

mod support;

mod bad_input;
mod browser;
mod catch_up;
mod clients;
mod commands;
mod conformance;
mod crashes;
mod database_faults;
mod live;
mod nginx;
mod operations;
mod retention;
mod stored_streams;
mod subscriptions;
mod transactions;
mod writes;
