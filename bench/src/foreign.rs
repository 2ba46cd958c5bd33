//! A process that knows nothing of the server and writes rows into its database, one commit each. It prints a
//! line per commit: the row's stamp, and when the commit returned; `locked` for one that failed with a lock.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use rusqlite::{Connection, ErrorCode};

use crate::measure::now_nanos;
use crate::publish::stamped;
use crate::report;

/// How long a commit waits for the server's own.
const BUSY: Duration = Duration::from_secs(10);

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
    /// Milliseconds between reading a row and updating it, in one transaction; without it each row is a new one.
    #[arg(long)]
    think: Option<u64>,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let connection = Connection::open(&options.database)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "full")?;
    if let Some(think) = options.think {
        return read_and_update(&connection, options, Duration::from_millis(think)).await;
    }
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

async fn read_and_update(connection: &Connection, options: &Options, think: Duration) -> Result<()> {
    let insert =
        "INSERT OR IGNORE INTO pages (id, organization_id, name) VALUES ('deferred', 'bench', 'Bench')";
    connection.execute(insert, [])?;
    for _ in 0..options.count {
        connection.execute_batch("BEGIN")?;
        let read = "SELECT name FROM pages WHERE id = 'deferred'";
        let _: String = connection.query_row(read, [], |row| row.get(0))?;
        tokio::time::sleep(think).await;
        let content = stamped(options.content);
        let done = connection
            .execute("UPDATE pages SET content = ?1 WHERE id = 'deferred'", [&content])
            .and_then(|_| connection.execute_batch("COMMIT"));
        match done {
            Ok(()) => {
                let stamp = content.get(1..20).unwrap_or_default();
                report::line(&format!("{stamp} {}", now_nanos()));
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                connection.execute_batch("ROLLBACK")?;
                report::line("locked");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(options.gap)).await;
    }
    Ok(())
}
