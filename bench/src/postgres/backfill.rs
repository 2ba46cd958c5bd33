//! A large table that was there before Bourn: the time until it is all in the log, and the memory that took, beside
//! what PostgreSQL needs to read the same rows, and to copy them.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use bourn_testkit::Database;
use tokio::time::Instant;

use super::site::{PATIENCE, Site, head};
use crate::report::{self, Table, number, ratio, time};

pub(super) async fn run(site: &Site<'_>) -> Result<()> {
    let rows = site.options.table;
    report::progress("a large table");
    let database = site.database();
    site.fill(&database, rows);
    database.psql("VACUUM (ANALYZE) tasks; CHECKPOINT;");
    report::progress("what PostgreSQL needs by itself");
    let read = timed(&database, "COPY (SELECT row_to_json(t) FROM tasks t) TO STDOUT")?;
    let copied =
        timed(&database, "CREATE TABLE copied AS SELECT id, row_to_json(t)::text AS value FROM tasks t")?;
    database.psql("DROP TABLE copied; CHECKPOINT;");

    let title = format!("Backfill of {} rows", number(rows as f64));
    let mut table = Table::new(&title, &["", "time", "rows/s", "CPU µs/row", "peak memory", "time / copy"]);
    let mut row = |name: &str, elapsed: Duration, cpu: String, peak: String| {
        let rate = number(rows as f64 / elapsed.as_secs_f64().max(1e-9));
        let against = ratio(elapsed.as_secs_f64(), copied.as_secs_f64());
        table.row([name.to_owned(), time(elapsed), rate, cpu, peak, against]);
    };
    row("psql reads them as JSON", read, "–".into(), "–".into());
    row("PostgreSQL copies them as JSON", copied, "–".into(), "–".into());
    if !site.options.without_bourn {
        report::progress("Bourn's backfill");
        site.prepare(&database).await?;
        let begun = Instant::now();
        let server = site.start(&database).await?;
        server.ready(PATIENCE).await?;
        let elapsed = begun.elapsed();
        let seen = head(&server).await?;
        ensure!(seen >= rows, "Bourn is ready with {seen} of {rows} rows in the log");
        let cpu = number(server.cpu_seconds()? * 1e6 / rows as f64);
        row(
            "Bourn, from its start until it is ready",
            elapsed,
            cpu,
            report::mib(server.peak_bytes()? as f64),
        );
        server.end().await?;
    }
    table.print();
    Ok(())
}

/// How long one statement takes whose rows nobody keeps.
fn timed(database: &Database, sql: &str) -> Result<Duration> {
    let begun = Instant::now();
    let status = database.psql_command().args(["-c", sql]).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "psql: {sql}");
    Ok(begun.elapsed())
}
