//! `postgres`: what capture from PostgreSQL gives and costs, beside a bare consumer of the same replication stream
//! that only decodes it. Each part has databases of its own in one cluster, and one consumer runs at a time.

mod backfill;
mod backlog;
mod bare;
mod decode;
mod follower;
mod latency;
mod site;
mod writers;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::process::Bench;
use crate::report;
use site::Site;

#[derive(Args)]
pub(crate) struct Options {
    /// Only these parts [default: all].
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Only the bare consumer and what PostgreSQL does by itself.
    #[arg(long)]
    without_bourn: bool,
    /// Commits per second, where latency is measured.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Seconds for which latency is measured.
    #[arg(long, default_value_t = 15)]
    seconds: u32,
    /// Bytes of a row's content.
    #[arg(long, default_value_t = 200)]
    content: usize,
    /// Transactions of one row each that wait to be captured.
    #[arg(long, default_value_t = 60_000)]
    transactions: u64,
    /// Rows of the one large transaction that waits to be captured.
    #[arg(long, default_value_t = 500_000)]
    rows: u64,
    /// Connections of pgbench.
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Transactions per second of pgbench, where it does not go as fast as it can.
    #[arg(long, default_value_t = 1_000)]
    paced: u32,
    /// Seconds of one run of pgbench.
    #[arg(long, default_value_t = 10)]
    round: u32,
    /// Runs of pgbench in each condition, in turn with the others.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Rows that are there before Bourn.
    #[arg(long, default_value_t = 1_000_000)]
    table: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From a commit to its event.
    Latency,
    /// How fast waiting changes are captured.
    Backlog,
    /// What the writers notice.
    Writers,
    /// A large table that was there first.
    Backfill,
    /// A second server on the same database.
    Follower,
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    report::progress("a PostgreSQL cluster");
    let site = Site::new(bench, options)?;
    report::line(&format!("\n{}", site.description()));
    for part in Part::value_variants() {
        if !options.only.is_empty() && !options.only.contains(part) {
            continue;
        }
        match part {
            Part::Latency => latency::run(&site).await?,
            Part::Backlog => backlog::run(&site).await?,
            Part::Writers => writers::run(&site).await?,
            Part::Backfill => backfill::run(&site).await?,
            Part::Follower => follower::run(&site).await?,
        }
    }
    Ok(())
}
