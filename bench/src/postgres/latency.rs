//! From a commit's return to its event: one writer at a steady rate, and one or more readers whose clock is the
//! writer's.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bourn_testkit::Database;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::bare::{self, Bare};
use super::site::{PATIENCE, Site};
use crate::commit_to_event::{ARRIVAL, Arrivals, follow};
use crate::measure::{Latencies, now_nanos};
use crate::publish::stamped;
use crate::report::{self, Table, number, time};

/// Where a reader reads.
pub(super) const FOLLOW: &str = "/v1/entities/tasks?offset=now&live=sse";
/// Commits before those that count: connections, plans and caches get warm.
const WARM_UP: u32 = 200;

/// What the writer has done: when each stamp's commit returned, and how long it took.
struct Written {
    returned: HashMap<u64, u64>,
    commits: Latencies,
    per_second: f64,
}

/// What one reader has seen of it.
pub(super) struct Seen {
    /// From sending the write.
    sent: Latencies,
    /// From the commit's return.
    latencies: Latencies,
    /// Events that were there before the commit had returned to the writer; they count as zero.
    before: usize,
}

/// One measurement: the writer, and its readers in their order.
pub(super) struct Figures {
    written: Written,
    pub(super) seen: Vec<Seen>,
}

pub(super) async fn run(site: &Site<'_>) -> Result<()> {
    let title = format!("From a commit to its event, one writer, {} commits/s", site.options.rate);
    let mut table = table(&title);
    let database = site.database();
    report::progress("the bare consumer's latency");
    bare::prepare(&database);
    let (bare, arrivals) = Bare::start(&database).await?;
    let figures = measure(site, &database, vec![arrivals]).await?;
    bare.end(&database).await?;
    figures.row(&mut table, &["bare consumer, commit decoded"]);
    if !site.options.without_bourn {
        report::progress("Bourn's latency");
        let database = site.database();
        site.prepare(&database).await?;
        let server = site.ready(&database).await?;
        let mut tasks = JoinSet::new();
        let arrivals = follow(&mut tasks, server.address, FOLLOW).await?;
        let figures = measure(site, &database, vec![arrivals]).await?;
        server.end().await?;
        figures.row(&mut table, &["Bourn, server-sent event"]);
    }
    table.print();
    Ok(())
}

pub(super) fn table(title: &str) -> Table {
    Table::new(
        title,
        &[
            "",
            "sending → event p50",
            "p99",
            "commit's return → event p50",
            "p99",
            "longest",
            "event before the return",
            "commits/s",
            "commit p50",
            "commit p99",
        ],
    )
}

impl Figures {
    /// A row for each reader.
    pub(super) fn row(&self, table: &mut Table, names: &[&str]) {
        for (name, seen) in names.iter().zip(&self.seen) {
            table.row([
                (*name).to_owned(),
                time(seen.sent.p50()),
                time(seen.sent.p99()),
                time(seen.latencies.p50()),
                time(seen.latencies.p99()),
                time(seen.latencies.most()),
                format!("{} of {}", seen.before, self.written.returned.len()),
                number(self.written.per_second),
                time(self.written.commits.p50()),
                time(self.written.commits.p99()),
            ]);
        }
    }
}

/// Writes at the rate while the readers read.
pub(super) async fn measure(site: &Site<'_>, database: &Database, readers: Vec<Arrivals>) -> Result<Figures> {
    let (rate, count) = (site.options.rate.max(1), site.options.rate * site.options.seconds);
    let expected = usize::try_from(WARM_UP + count)?;
    let readers: Vec<JoinHandle<_>> =
        readers.into_iter().map(|arrivals| tokio::spawn(collect(arrivals, expected))).collect();
    let writer = write(database.url(), rate, count, site.options.content);
    // In a task of its own: this thread is not one of the runtime's.
    let written =
        tokio::time::timeout(PATIENCE, tokio::spawn(writer)).await.context("the writer hangs")???;
    let mut seen = Vec::new();
    for reader in readers {
        let (mut sent, mut latencies) = (Latencies::new()?, Latencies::new()?);
        let (mut before, mut counted) = (0, 0);
        for (stamp, received) in reader.await?? {
            // Those of the warm-up are not among them.
            let Some(&returned) = written.returned.get(&stamp) else { continue };
            sent.record(received.saturating_sub(stamp));
            latencies.record(received.saturating_sub(returned));
            before += usize::from(received < returned);
            counted += 1;
        }
        ensure!(counted == written.returned.len(), "{counted} of {count} events arrived");
        seen.push(Seen { sent, latencies, before });
    }
    Ok(Figures { written, seen })
}

async fn write(url: String, rate: u32, count: u32, content: usize) -> Result<Written> {
    let mut connection = PgConnection::connect(&url).await?;
    let mut written = Written { returned: HashMap::new(), commits: Latencies::new()?, per_second: 0.0 };
    let gap = Duration::from_secs(1) / rate;
    let mut next = Instant::now();
    let mut begun = next;
    for serial in 0..WARM_UP + count {
        tokio::time::sleep_until(next).await;
        next += gap;
        if serial == WARM_UP {
            begun = Instant::now();
        }
        let content = stamped(content);
        let stamp: u64 = content.get(1..20).unwrap_or_default().parse()?;
        let sent = now_nanos();
        sqlx::query("INSERT INTO tasks (name, content) VALUES ('Bench', $1)")
            .bind(content)
            .execute(&mut connection)
            .await?;
        let returned = now_nanos();
        if serial >= WARM_UP {
            written.returned.insert(stamp, returned);
            written.commits.record(returned.saturating_sub(sent));
        }
    }
    written.per_second = f64::from(count) / begun.elapsed().as_secs_f64().max(1e-9);
    connection.close().await?;
    Ok(written)
}

/// Takes what arrives until all is there.
async fn collect(mut arrivals: Arrivals, expected: usize) -> Result<Vec<(u64, u64)>> {
    let mut all = Vec::with_capacity(expected);
    while all.len() < expected {
        let arrived = tokio::time::timeout(ARRIVAL, arrivals.recv()).await;
        let missing = || format!("{} of {expected} events arrived", all.len());
        all.push(arrived.with_context(missing)?.context("the stream ended")?);
    }
    Ok(all)
}
