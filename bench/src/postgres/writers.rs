//! What the writers notice of being followed: pgbench without any slot, with the bare consumer, and with Bourn, in
//! turn, so that a machine that gets slower does so for all of them.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use bourn_testkit::Database;
use tokio::time::Instant;

use super::bare::{self, Bare};
use super::site::{Course, Site, confirmed, head, released};
use crate::process::Server;
use crate::report::{self, Table, number, ratio};

/// Rows that the updates are spread over.
const ROWS: u64 = 10_000;
/// One transaction of pgbench, and how many rows it changes.
const SCRIPT: &str = "\\set id random(1, 10000)
BEGIN;
UPDATE tasks SET name = 'Bench ' || :id, changed_at = now() WHERE id = :id;
INSERT INTO edits (task_id, content) VALUES (:id, repeat('x', 100));
COMMIT;
";
const CHANGES: u64 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Consumer {
    None,
    Bare,
    Bourn,
}

enum Running {
    None,
    Bare(Bare),
    Bourn(Box<Server>),
}

/// One condition's database and what pgbench said of it.
struct Condition {
    consumer: Consumer,
    database: Database,
    runs: Vec<Run>,
}

struct Run {
    /// Milliseconds of a transaction, as fast as they go.
    latency: f64,
    /// The same at a steady rate that leaves the machine some air; what a transaction began too late counts.
    paced: f64,
    per_second: f64,
    transactions: u64,
    /// Seconds that the consumer needed to catch up afterwards.
    behind: f64,
}

impl Condition {
    fn mean(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(figure).sum::<f64>() / (self.runs.len() as f64).max(1.0)
    }
}

pub(super) async fn run(site: &Site<'_>) -> Result<()> {
    std::fs::write(site.scratch("pgbench.sql"), SCRIPT)?;
    let mut conditions = Vec::new();
    for consumer in [Consumer::None, Consumer::Bare, Consumer::Bourn] {
        if consumer == Consumer::Bourn && site.options.without_bourn {
            continue;
        }
        let database = site.database();
        site.fill(&database, ROWS);
        match consumer {
            Consumer::None => {}
            Consumer::Bare => bare::prepare(&database),
            Consumer::Bourn => site.prepare(&database).await?,
        }
        conditions.push(Condition { consumer, database, runs: Vec::new() });
    }
    for round in 1..=site.options.rounds {
        for condition in &mut conditions {
            report::progress(&format!("pgbench {}, round {round}", name(condition.consumer)));
            condition.runs.push(once(site, condition.consumer, &condition.database).await?);
        }
    }
    print(site, &conditions);
    Ok(())
}

fn name(consumer: Consumer) -> &'static str {
    match consumer {
        Consumer::None => "without a slot",
        Consumer::Bare => "with the bare consumer",
        Consumer::Bourn => "with Bourn",
    }
}

fn print(site: &Site<'_>, conditions: &[Condition]) {
    let title = format!(
        "What the writers notice: pgbench, {} clients, an update and an insert each time",
        site.options.clients
    );
    let paced = format!("latency at {} transactions/s", number(f64::from(site.options.paced)));
    let mut table = Table::new(
        &title,
        &[
            "",
            &paced,
            "without / it",
            "latency at full speed",
            "without / it",
            "transactions/s",
            "lowest",
            "highest",
            "caught up after",
        ],
    );
    let first = |figure: fn(&Run) -> f64| conditions.first().map_or(0.0, |first| first.mean(figure));
    let (paced_alone, alone) = (first(|run| run.paced), first(|run| run.latency));
    for condition in conditions {
        let rates = || condition.runs.iter().map(|run| run.per_second);
        let (paced, latency) = (condition.mean(|run| run.paced), condition.mean(|run| run.latency));
        table.row([
            name(condition.consumer).to_owned(),
            format!("{paced:.3} ms"),
            ratio(paced_alone, paced),
            format!("{latency:.3} ms"),
            ratio(alone, latency),
            number(condition.mean(|run| run.per_second)),
            number(rates().fold(f64::INFINITY, f64::min)),
            number(rates().fold(0.0, f64::max)),
            match condition.consumer {
                Consumer::None => "–".to_owned(),
                _ => format!("{:.2} s", condition.mean(|run| run.behind)),
            },
        ]);
    }
    table.note(format!("The mean of {} runs of {} s.", site.options.rounds, site.options.round));
    table.print();
}

async fn once(site: &Site<'_>, consumer: Consumer, database: &Database) -> Result<Run> {
    let running = match consumer {
        Consumer::None => Running::None,
        Consumer::Bare => Running::Bare(Bare::start(database).await?.0),
        Consumer::Bourn => Running::Bourn(Box::new(site.ready(database).await?)),
    };
    if consumer != Consumer::None {
        // What the other conditions have written since then runs through this slot, too.
        confirmed(database).await?;
    }
    let before = running.count().await?;
    let paced = pgbench(site, database, Some(site.options.paced))?;
    let mut run = pgbench(site, database, None)?;
    run.paced = paced.latency;
    let goal = (paced.transactions + run.transactions) * CHANGES;
    if consumer != Consumer::None {
        let counted = async || Ok(running.count().await?.saturating_sub(before));
        run.behind = Course::follow(Instant::now(), goal, counted).await?.all.as_secs_f64();
    }
    match running {
        Running::None => {}
        Running::Bare(bare) => bare.end(database).await?,
        Running::Bourn(server) => server.end().await?,
    }
    released(database).await?;
    Ok(run)
}

impl Running {
    /// Rows that the consumer has taken.
    async fn count(&self) -> Result<u64> {
        match self {
            Running::None => Ok(0),
            Running::Bare(bare) => bare.rows(),
            Running::Bourn(server) => head(server).await,
        }
    }
}

fn pgbench(site: &Site<'_>, database: &Database, rate: Option<u32>) -> Result<Run> {
    let mut command: Command = database.pgbench_command();
    command.args(["-M", "prepared", "-j", "2", "-c"]).arg(site.options.clients.to_string());
    command.arg("-T").arg(site.options.round.to_string()).arg("-f").arg(site.scratch("pgbench.sql"));
    if let Some(rate) = rate {
        command.arg("--rate").arg(rate.to_string());
    }
    let output = command.output().context("pgbench cannot be run")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let after = |words: &str| -> Result<f64> {
        let rest = said.split_once(words).map(|(_, rest)| rest.trim_start());
        let digits = rest.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit() && c != '.').next());
        digits.and_then(|digits| digits.parse().ok()).with_context(|| format!("no `{words}` in {said}"))
    };
    let per_second = after("tps = ")?;
    let transactions = said.split_once("number of transactions actually processed: ");
    let transactions = transactions.and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    let transactions = transactions.and_then(|digits| digits.parse().ok()).context("no transactions")?;
    Ok(Run { latency: after("latency average = ")?, paced: 0.0, per_second, transactions, behind: 0.0 })
}
