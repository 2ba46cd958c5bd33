//! How fast changes are captured that were committed while nobody looked: many transactions of one row, and one of
//! very many.

use anyhow::Result;
use bourn_testkit::Database;
use tokio::time::Instant;

use super::bare::{self, Bare};
use super::site::{Course, Site, head, released};
use crate::measure;
use crate::report::{self, Table, number, ratio, time};

/// What waits to be captured.
#[derive(Clone, Copy)]
enum Backlog {
    Single(u64),
    Large(u64),
}

impl Backlog {
    fn name(self) -> String {
        match self {
            Backlog::Single(n) => format!("{} transactions of one row", number(n as f64)),
            Backlog::Large(n) => format!("one transaction of {} rows", number(n as f64)),
        }
    }

    fn rows(self) -> u64 {
        let (Backlog::Single(rows) | Backlog::Large(rows)) = self;
        rows
    }

    fn write(self, site: &Site<'_>, database: &Database) {
        match self {
            Backlog::Large(rows) => site.fill(database, rows),
            // Within the server and without a wait for the disk: only what is written counts here.
            Backlog::Single(transactions) => {
                let content = site.options.content;
                database.psql(&format!(
                    "SET synchronous_commit = off;
                     DO $$ BEGIN
                         FOR i IN 1..{transactions} LOOP
                             INSERT INTO tasks (name, content) VALUES ('Bench', repeat('x', {content}));
                             COMMIT;
                         END LOOP;
                     END $$;
                     SET synchronous_commit = on;
                     SELECT pg_logical_emit_message(true, 'bench', 'this commit is synced');"
                ));
            }
        }
    }
}

pub(super) async fn run(site: &Site<'_>) -> Result<()> {
    let mut table = Table::new(
        "Capture of what waits",
        &[
            "",
            "first row after",
            "all after",
            "rows/s from start",
            "rows/s once under way",
            "CPU µs/row",
            "peak memory",
            "rows/s / bare",
        ],
    );
    for backlog in [Backlog::Single(site.options.transactions), Backlog::Large(site.options.rows)] {
        report::progress(&format!("{}: the bare consumer", backlog.name()));
        let (bare, used) = bare(site, backlog).await?;
        row(&mut table, &format!("bare consumer, {}", backlog.name()), &bare, &used, &bare);
        if !site.options.without_bourn {
            report::progress(&format!("{}: Bourn", backlog.name()));
            let (course, used) = bourn(site, backlog).await?;
            row(&mut table, &format!("Bourn, {}", backlog.name()), &course, &used, &bare);
        }
    }
    table.note("Times run from the consumer's start; Bourn's with its process.".to_owned());
    table.print();
    Ok(())
}

/// What the consumer has used; PostgreSQL's part is not in it.
struct Used {
    cpu_seconds: f64,
    /// Not of the bare consumer, which lives in this program.
    peak_bytes: Option<u64>,
}

fn row(table: &mut Table, name: &str, course: &Course, used: &Used, bare: &Course) {
    let moving = course.moving_per_second();
    table.row([
        name.to_owned(),
        time(course.first.0),
        time(course.all),
        number(course.per_second()),
        moving.map_or_else(|| "–".to_owned(), number),
        number(used.cpu_seconds * 1e6 / course.goal as f64),
        used.peak_bytes.map_or_else(|| "–".to_owned(), |peak| report::mib(peak as f64)),
        ratio(course.per_second(), bare.per_second()),
    ]);
}

async fn bare(site: &Site<'_>, backlog: Backlog) -> Result<(Course, Used)> {
    let database = site.database();
    bare::prepare(&database);
    backlog.write(site, &database);
    let own = || measure::cpu_seconds(std::process::id());
    let (cpu, begun) = (own()?, Instant::now());
    let (bare, _arrivals) = Bare::start(&database).await?;
    let course = Course::follow(begun, backlog.rows(), async || bare.rows()).await?;
    let used = Used { cpu_seconds: own()? - cpu, peak_bytes: None };
    bare.end(&database).await?;
    Ok((course, used))
}

async fn bourn(site: &Site<'_>, backlog: Backlog) -> Result<(Course, Used)> {
    let database = site.database();
    site.prepare(&database).await?;
    // Once, so that there is a slot which keeps what comes now.
    let server = site.ready(&database).await?;
    let before = head(&server).await?;
    server.end().await?;
    released(&database).await?;
    backlog.write(site, &database);
    let begun = Instant::now();
    let server = site.start(&database).await?;
    let course = Course::follow(begun, backlog.rows(), async || {
        Ok(server.head().await?.unwrap_or(before).saturating_sub(before))
    })
    .await?;
    let used = Used { cpu_seconds: server.cpu_seconds()?, peak_bytes: Some(server.peak_bytes()?) };
    server.end().await?;
    Ok((course, used))
}
