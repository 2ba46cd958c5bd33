//! `bourn-bench` puts load on Bourn and on a bare baseline in the same run, so that what is printed is a ratio as
//! well as a figure. Everything that is measured runs as a child process and listens on loopback.

mod baseline;
mod catch_up;
mod commit_to_event;
mod deferred;
mod fan_out;
mod foreign;
mod fsync;
mod layers;
mod load;
mod long_poll;
mod measure;
mod postgres;
mod process;
mod publish;
mod readers;
mod report;
mod stored;
mod wire;
mod writes;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::process::Bench;

/// Measures Bourn beside bare baselines; prints Markdown tables.
#[derive(Parser)]
#[command(name = "bourn-bench", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every measurement needs to know.
#[derive(Args)]
struct Common {
    /// The server to measure [default: `bourn` beside this program, else target/release/bourn].
    #[arg(long, global = true, value_name = "PATH")]
    bourn: Option<PathBuf>,
    /// Where the temporary databases are made [default: the system's temporary directory].
    #[arg(long, global = true, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Events to many readers: rate, latency, CPU per delivery, memory per idle connection.
    FanOut(fan_out::Options),
    /// One write that wakes many long-polls.
    LongPoll(long_poll::Options),
    /// Chunks of the log: from the cache, from the database, and not modified.
    CatchUp(catch_up::Options),
    /// A hot chunk without sockets, with and without layers of `tower-http`.
    Layers(layers::Options),
    /// Durable writes of one row.
    Writes(writes::Options),
    /// From a commit to its event, for the server's own writes and for another process's.
    CommitToEvent(commit_to_event::Options),
    /// Another process whose transactions read before they write: how many the server fails, and how soon their events come.
    DeferredWriters(deferred::Options),
    /// Capture from PostgreSQL: latency, throughput, cost to the writers, backfill, a second server.
    Postgres(postgres::Options),
    /// Stored streams, beside other servers of the protocol.
    Stored(stored::Options),
    /// Everything but `postgres`, `deferred-writers` and `layers`, with modest settings.
    All,
    /// A server with one prebuilt answer (started by the measurements).
    BaselineStatic(baseline::StaticOptions),
    /// A server that sends what is posted to it to every reader (started by the measurements).
    BaselineSse,
    /// A process that writes rows past the server (started by the measurements).
    ForeignWriter(foreign::Options),
}

fn main() -> anyhow::Result<()> {
    let Cli { common, command } = Cli::parse();
    // Children inherit it: the servers need as many descriptors as the load tool.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let bench = Bench::new(common.bourn, common.dir);
        match command {
            Command::FanOut(options) => fan_out::run(&bench, &options).await,
            Command::LongPoll(options) => long_poll::run(&bench, &options).await,
            Command::CatchUp(options) => catch_up::run(&bench, &options).await,
            Command::Layers(options) => layers::run(&bench, &options).await,
            Command::Writes(options) => writes::run(&bench, &options).await,
            Command::CommitToEvent(options) => commit_to_event::run(&bench, &options).await,
            Command::DeferredWriters(options) => deferred::run(&bench, &options).await,
            Command::Postgres(options) => postgres::run(&bench, &options).await,
            Command::Stored(options) => stored::run(&bench, &options).await,
            Command::All => all(&bench).await,
            Command::BaselineStatic(options) => baseline::serve_static(&options).await,
            Command::BaselineSse => baseline::serve_events().await,
            Command::ForeignWriter(options) => foreign::run(&options).await,
        }
    })
}

async fn all(bench: &Bench) -> anyhow::Result<()> {
    writes::run(bench, &writes::Options::default()).await?;
    commit_to_event::run(bench, &commit_to_event::Options::default()).await?;
    stored::run(bench, &stored::Options::default()).await?;
    catch_up::run(bench, &catch_up::Options::default()).await?;
    long_poll::run(bench, &long_poll::Options::default()).await?;
    fan_out::run(bench, &fan_out::Options::modest()).await
}
