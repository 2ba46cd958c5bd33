//! A process that knows nothing of the server and writes rows into its database, one commit each. It prints a
//! line per commit: the row's stamp, and when the commit returned.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use rusqlite::Connection;

use crate::measure::now_nanos;
use crate::publish::stamped;
use crate::report;

/// How long a commit waits for the server's own.
const BUSY: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Options {
    /// The database file.
    #[arg(long)]
    database: PathBuf,
    /// Rows to write.
    #[arg(long, default_value_t = 500)]
    count: u32,
    /// Milliseconds between two rows.
    #[arg(long, default_value_t = 10)]
    gap: u64,
    /// Bytes of a row's content.
    #[arg(long, default_value_t = 200)]
    content: usize,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let connection = Connection::open(&options.database)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "full")?;
    let run = now_nanos();
    for serial in 0..options.count {
        let content = stamped(options.content);
        let id = format!("f{run:x}-{serial:08}");
        let stamp = content.get(1..20).unwrap_or_default();
        connection
            .prepare_cached(
                "INSERT INTO pages (id, organization_id, name, content) VALUES (?1, 'bench', 'Bench', ?2)",
            )?
            .execute((&id, &content))?;
        report::line(&format!("{stamp} {}", now_nanos()));
        tokio::time::sleep(Duration::from_millis(options.gap)).await;
    }
    Ok(())
}
