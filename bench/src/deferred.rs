//! `deferred-writers`: what another process that reads before it writes notices of the server, and how soon its commits are heard
//! of: `BEGIN; SELECT; …; UPDATE; COMMIT`, with the same file and triggers with and without a server on it. A commit of
//! the server's between the two statements fails such a transaction at once, whatever its busy timeout.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::commit_to_event::{ARRIVAL, Arrivals, follow};
use crate::measure::Latencies;
use crate::process::{self, Bench, Server};
use crate::report::{self, Table, time};

/// Where the reader reads; the writer works on one row.
const FOLLOW: &str = "/v1/entities/pages?offset=now&live=sse";

#[derive(Args)]
pub(crate) struct Options {
    /// Transactions, with the server and without it.
    #[arg(long, default_value_t = 2_000)]
    count: u32,
    /// Milliseconds between a transaction's reading and its writing.
    #[arg(long, default_value_t = 20)]
    think: u64,
    /// Milliseconds between two transactions.
    #[arg(long, default_value_t = 0)]
    gap: u64,
    /// Seconds for which the server is watched while nothing happens.
    #[arg(long, default_value_t = 60)]
    idle: u64,
}

/// What the writer met.
struct Met {
    done: u32,
    failed: u32,
    /// From the commit's return to the event; empty without a server.
    heard: Latencies,
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let scratch = bench.scratch()?;
    let start = async || bench.bourn(scratch.path(), &[("BOURN_SSE_LIFETIME", "3600s")]).await;
    // The tables and triggers are the same in both runs.
    start().await?.end().await?;
    report::progress("transactions without the server");
    let alone = transactions(options, scratch.path(), None).await?;
    let server = start().await?;
    let mut tasks = JoinSet::new();
    let arrivals = follow(&mut tasks, server.address, FOLLOW).await?;
    report::progress("transactions with the server");
    let beside = transactions(options, scratch.path(), Some(arrivals)).await?;
    report::progress("nothing");
    let idle = idle(&server, Duration::from_secs(options.idle)).await?;
    server.end().await?;

    let title =
        format!("Another process: BEGIN; SELECT; {} ms; UPDATE; COMMIT, one after the other", options.think);
    let mut table = Table::new(
        &title,
        &[
            "",
            "transactions",
            "failed with a lock",
            "of 1 000",
            "commit's return → event p50",
            "p99",
            "longest",
        ],
    );
    for (name, met) in [("without the server", &alone), ("with the server and a reader", &beside)] {
        let all = met.done + met.failed;
        let when = |duration: Duration| if met.heard.is_empty() { "–".to_owned() } else { time(duration) };
        table.row([
            name.to_owned(),
            all.to_string(),
            met.failed.to_string(),
            format!("{:.1}", 1_000.0 * f64::from(met.failed) / f64::from(all.max(1))),
            when(met.heard.p50()),
            when(met.heard.p99()),
            when(met.heard.most()),
        ]);
    }
    table.note(format!(
        "Afterwards, with nothing to do but to keep one reader's connection, the server used {:.3} % of a core over {} s.",
        100.0 * idle,
        options.idle
    ));
    table.print();
    Ok(())
}

/// Runs the writer to its end.
async fn transactions(options: &Options, scratch: &Path, arrivals: Option<Arrivals>) -> Result<Met> {
    let mut writer = Command::new(std::env::current_exe()?)
        .arg("foreign-writer")
        .arg("--database")
        .arg(process::database(scratch))
        .args(["--count", &options.count.to_string(), "--gap", &options.gap.to_string()])
        .args(["--think", &options.think.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(writer.stdout.take().context("no output")?).lines();
    let mut met = Met { done: 0, failed: 0, heard: Latencies::new()? };
    let (mut returned, mut received) = (HashMap::new(), HashMap::new());
    let mut arrivals = arrivals;
    loop {
        tokio::select! {
            line = lines.next_line() => match line?.as_deref() {
                None => break,
                Some("locked") => met.failed += 1,
                Some(line) => {
                    let (stamp, at) = line.split_once(' ').context("the writer's line has no two parts")?;
                    returned.insert(stamp.parse::<u64>()?, at.parse::<u64>()?);
                }
            },
            // An event has the row's old content, too.
            Some((stamp, at)) = next(&mut arrivals) => {
                received.entry(stamp).or_insert(at);
            }
        }
    }
    anyhow::ensure!(writer.wait().await?.success(), "the writer failed");
    met.done = u32::try_from(returned.len())?;
    while arrivals.is_some() && !returned.keys().all(|stamp| received.contains_key(stamp)) {
        let arrived =
            tokio::time::timeout(ARRIVAL, next(&mut arrivals)).await.context("an event is missing")?;
        let (stamp, at) = arrived.context("the stream ended")?;
        received.entry(stamp).or_insert(at);
    }
    for (stamp, at) in received {
        if let Some(returned) = returned.get(&stamp) {
            met.heard.record(at.saturating_sub(*returned));
        }
    }
    Ok(met)
}

/// The next event's stamp, and when it came; never without a reader.
async fn next(arrivals: &mut Option<Arrivals>) -> Option<(u64, u64)> {
    match arrivals {
        Some(arrivals) => arrivals.recv().await,
        None => std::future::pending().await,
    }
}

/// The part of a core that the server uses while nothing happens.
async fn idle(server: &Server, time: Duration) -> Result<f64> {
    let before = server.cpu_seconds()?;
    tokio::time::sleep(time).await;
    Ok((server.cpu_seconds()? - before) / time.as_secs_f64())
}
