//! `commit-to-event`: how long a committed change takes to reach a reader, for the server's own writes and for
//! those of a process that knows nothing of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::measure::{Latencies, now_nanos};
use crate::process::{self, Bench};
use crate::publish::{Publisher, Stamps};
use crate::readers;
use crate::report::{self, Table, time};
use crate::wire::{self, Connection, SMALL};

/// Where Bourn's reader reads.
const FOLLOW: &str = "/v1/entities/pages?offset=now&live=sse";
/// How long an event may take.
pub(crate) const ARRIVAL: Duration = Duration::from_secs(10);
/// Events that may wait to be looked at.
pub(crate) const QUEUE: usize = 4096;

#[derive(Args)]
pub(crate) struct Options {
    /// Writes of each kind.
    #[arg(long, default_value_t = 500)]
    count: u32,
    /// Milliseconds between two writes.
    #[arg(long, default_value_t = 10)]
    gap: u64,
    /// Bytes of a row's content.
    #[arg(long, default_value_t = 200)]
    content: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { count: 300, gap: 10, content: 200 }
    }
}

/// When each stamp was received.
pub(crate) type Arrivals = mpsc::Receiver<(u64, u64)>;

/// Latencies to the event, from two beginnings.
struct Figures {
    /// From sending the write; empty for another process's.
    sent: Latencies,
    /// From the commit's return; zero for an event that was there before.
    committed: Latencies,
    /// Events that were there before.
    before: u32,
    count: u32,
}

impl Figures {
    fn new() -> Result<Figures> {
        Ok(Figures { sent: Latencies::new()?, committed: Latencies::new()?, before: 0, count: 0 })
    }

    fn committed(&mut self, returned: u64, received: u64) {
        self.committed.record(received.saturating_sub(returned));
        self.before += u32::from(received < returned);
        self.count += 1;
    }
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    report::progress("own writes to their events");
    let scratch = bench.scratch()?;
    let server = bench.bourn(scratch.path(), &[("BOURN_SSE_LIFETIME", "600s")]).await?;
    let own = own(options, FOLLOW, Publisher::pages(server.address, options.content)).await?;
    report::progress("another process's writes to their events");
    let foreign = foreign(options, server.address, scratch.path()).await?;
    server.end().await?;
    report::progress("the baseline");
    let server = bench.baseline(&["baseline-sse"]).await?;
    let bare = self::own(options, "/events", Publisher::bare(server.address, 2 * options.content)).await?;
    server.end().await?;

    let title = format!("From a write to its event, one reader, a write every {} ms", options.gap);
    let mut table = Table::new(
        &title,
        &["", "sending → event p50", "p99", "commit's return → event p50", "p99", "event before the answer"],
    );
    for (name, figures) in [
        ("Bourn, own write", &own),
        ("Bourn, another process's", &foreign),
        ("bare hyper (nothing stored)", &bare),
    ] {
        let when = |latencies: &Latencies, share| match latencies.is_empty() {
            true => "–".to_owned(),
            false => time(latencies.quantile(share)),
        };
        table.row([
            name.to_owned(),
            when(&figures.sent, 0.5),
            when(&figures.sent, 0.99),
            when(&figures.committed, 0.5),
            when(&figures.committed, 0.99),
            format!("{} of {}", figures.before, figures.count),
        ]);
    }
    table.print();
    Ok(())
}

/// One write after the other, each awaited at the reader's end.
async fn own(options: &Options, path: &str, publisher: Publisher) -> Result<Figures> {
    let mut tasks = JoinSet::new();
    let mut arrivals = follow(&mut tasks, publisher.address(), path).await?;
    let mut writer = Connection::open(publisher.address(), SMALL).await?;
    let mut figures = Figures::new()?;
    for _ in 0..options.count {
        let request = publisher.request();
        writer.expect(&request).await?;
        let returned = now_nanos();
        let arrived = tokio::time::timeout(ARRIVAL, arrivals.recv()).await.context("an event is missing")?;
        let (stamp, received) = arrived.context("the stream ended")?;
        figures.sent.record(received.saturating_sub(stamp));
        figures.committed(returned, received);
        tokio::time::sleep(Duration::from_millis(options.gap)).await;
    }
    Ok(figures)
}

async fn foreign(options: &Options, address: SocketAddr, scratch: &Path) -> Result<Figures> {
    let mut tasks = JoinSet::new();
    let mut arrivals = follow(&mut tasks, address, FOLLOW).await?;
    let mut writer = Command::new(std::env::current_exe()?)
        .arg("foreign-writer")
        .arg("--database")
        .arg(process::database(scratch))
        .args(["--count", &options.count.to_string(), "--gap", &options.gap.to_string()])
        .args(["--content", &options.content.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(writer.stdout.take().context("no output")?).lines();
    let mut commits = HashMap::new();
    while let Some(line) = lines.next_line().await? {
        let (stamp, returned) = line.split_once(' ').context("the writer's line has no two parts")?;
        commits.insert(stamp.parse::<u64>()?, returned.parse::<u64>()?);
    }
    writer.wait().await?;
    let mut figures = Figures::new()?;
    while !commits.is_empty() {
        let arrived = tokio::time::timeout(ARRIVAL, arrivals.recv()).await.context("an event is missing")?;
        let (stamp, received) = arrived.context("the stream ended")?;
        if let Some(returned) = commits.remove(&stamp) {
            figures.committed(returned, received);
        }
    }
    Ok(figures)
}

/// Follows a stream in a task of its own, for as long as `tasks` lives.
pub(crate) async fn follow(tasks: &mut JoinSet<()>, address: SocketAddr, path: &str) -> Result<Arrivals> {
    let request = wire::get(address, path, None);
    let mut stream = readers::open(address, &request).await?;
    let (sender, arrivals) = mpsc::channel(QUEUE);
    let sender = Arc::new(sender);
    tasks.spawn(async move {
        let (mut buffer, mut stamps) = (vec![0; 64 * 1024], Stamps::default());
        while let Ok(n) = stream.read(&mut buffer).await {
            let received = now_nanos();
            let mut gone = n == 0;
            stamps.scan(buffer.get(..n).unwrap_or_default(), |stamp| {
                gone |= sender.try_send((stamp, received)).is_err();
            });
            if gone {
                return;
            }
        }
    });
    Ok(arrivals)
}
