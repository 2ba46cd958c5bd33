//! `writes`: durable single rows over REST, beside what the disk and the transport alone allow.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::fsync;
use crate::load;
use crate::process::Bench;
use crate::publish::Publisher;
use crate::report::{self, Table, number, ratio, time};

/// Before a figure is taken, the server writes for this long.
const WARM_UP: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct Options {
    /// Numbers of clients, one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    clients: Vec<usize>,
    /// Seconds of each run.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Bytes of a row's content.
    #[arg(long, default_value_t = 200)]
    content: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { clients: vec![1, 16, 64], seconds: 3.0, content: 200 }
    }
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let duration = Duration::from_secs_f64(options.seconds);
    let scratch = bench.scratch()?;
    let path = scratch.path().to_owned();
    let sync = tokio::task::spawn_blocking(move || fsync::measure(&path)).await??;
    let mut table = Table::new(
        "Durable writes of one row",
        &[
            "clients",
            "Bourn writes/s",
            "Bourn p50",
            "Bourn p99",
            "CPU µs/write",
            "refused",
            "writes per sync time",
            "bare POSTs/s (nothing stored)",
            "bare p50",
            "Bourn / bare",
        ],
    );
    for &clients in &options.clients {
        report::progress(&format!("{clients} clients write"));
        let scratch = bench.scratch()?;
        let server = bench.bourn(scratch.path(), &[]).await?;
        let publisher = Arc::new(Publisher::pages(server.address, options.content));
        load::closed_loop(&publisher, clients, WARM_UP, None).await?;
        let cpu = server.cpu_seconds()?;
        let bourn = load::closed_loop(&publisher, clients, duration, None).await?;
        let cpu = (server.cpu_seconds()? - cpu) * 1e6 / (bourn.sent as f64).max(1.0);
        server.end().await?;
        let server = bench.baseline(&["baseline-static", "--bytes", "600"]).await?;
        let publisher = Arc::new(Publisher::bare(server.address, options.content + 100));
        let bare = load::closed_loop(&publisher, clients, duration.min(Duration::from_secs(2)), None).await?;
        server.end().await?;
        table.row([
            number(clients as f64),
            number(bourn.per_second()),
            time(bourn.latencies.p50()),
            time(bourn.latencies.p99()),
            number(cpu),
            bourn.failed.to_string(),
            // How many writes share a sync, if the disk did nothing but sync.
            ratio(bourn.per_second(), 1.0 / sync.growing.p50().as_secs_f64().max(1e-9)),
            number(bare.per_second()),
            time(bare.latencies.p50()),
            ratio(bourn.per_second(), bare.per_second()),
        ]);
    }
    table.note(format!(
        "fdatasync after 4 KiB in the same directory: preallocated file p50 {}, p99 {}; growing file p50 {}, p99 {}.",
        time(sync.preallocated.p50()),
        time(sync.preallocated.p99()),
        time(sync.growing.p50()),
        time(sync.growing.p99()),
    ));
    table.print();
    Ok(())
}
