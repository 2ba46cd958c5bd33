//! Writers that know nothing of Bourn: many connections whose transactions interleave, through whatever becomes of
//! the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinHandle;

/// Makes a transaction up: its statements, `BEGIN` and the end included.
pub type Script = Arc<dyn Fn(&mut StdRng) -> Vec<String> + Send + Sync>;

/// Writers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicUsize>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(url: &str, writers: usize, seed: u64, script: &Script) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicUsize::new(0));
        let writers = (0..writers).map(|writer| {
            let random = StdRng::seed_from_u64(seed.wrapping_add(writer as u64));
            tokio::spawn(write(url.to_owned(), random, script.clone(), stop.clone(), committed.clone()))
        });
        Load { writers: writers.collect(), stop, committed }
    }

    /// Transactions that were done so far.
    pub fn committed(&self) -> usize {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions were done.
    pub async fn more(&self, count: usize) {
        let wanted = self.committed() + count;
        crate::support::eventually("the writers get on", async || self.committed() >= wanted).await;
    }

    /// Ends the writing; gives how many transactions were done.
    pub async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        self.committed.load(Ordering::Relaxed)
    }
}

async fn write(
    url: String,
    mut random: StdRng,
    script: Script,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicUsize>,
) {
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(open) = &mut connection else {
            connection = PgConnection::connect(&url).await.ok();
            if connection.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            continue;
        };
        match run(open, &script(&mut random), &mut random).await {
            Ok(()) => {
                committed.fetch_add(1, Ordering::Relaxed);
            }
            // A deadlock, a key that is taken, or a constraint: as if it had never been tried.
            Err(sqlx::Error::Database(error))
                if !matches!(error.code().as_deref(), Some("57P01" | "57P02" | "57P03")) =>
            {
                let known = ["40P01", "23505", "40001"];
                assert!(
                    error.code().is_some_and(|code| known.contains(&&*code)),
                    "the script is wrong: {error}"
                );
                if sqlx::raw_sql("ROLLBACK").execute(open).await.is_err() {
                    connection = None;
                }
            }
            Err(_) => connection = None,
        }
    }
}

async fn run(
    connection: &mut PgConnection,
    script: &[String],
    random: &mut StdRng,
) -> Result<(), sqlx::Error> {
    for statement in script {
        sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *connection).await?;
        if random.random_bool(0.3) {
            // Others get a word in.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..3_000))).await;
        }
    }
    Ok(())
}

/// Transactions on the pages: a few rows each, some taken back in part or altogether.
pub fn on_pages() -> Script {
    Arc::new(|random| {
        let mut script = vec!["BEGIN".to_owned()];
        for _ in 0..random.random_range(1..=5) {
            let statement = page_statement(random);
            match random.random_bool(0.1) {
                true => script.extend(["SAVEPOINT s".into(), statement, "ROLLBACK TO SAVEPOINT s".into()]),
                false => script.push(statement),
            }
        }
        let end = if random.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" };
        script.push(end.to_owned());
        script
    })
}

fn page_statement(random: &mut StdRng) -> String {
    let (key, other) = (random.random_range(0..150), random.random_range(0..150));
    let (word, scope) = (random.random_range(0..1_000_000), random.random_range(0..3));
    match random.random_range(0..10) {
        0..4 => format!(
            "INSERT INTO pages (id, organization_id, name) VALUES ('p{key}', 'org{scope}', 'n{word}') \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name"
        ),
        4..7 => format!("UPDATE pages SET name = 'n{word}' WHERE id = 'p{key}'"),
        7 => format!("UPDATE pages SET organization_id = 'org{scope}' WHERE id = 'p{key}'"),
        8 => format!(
            "UPDATE pages SET id = 'p{other}' WHERE id = 'p{key}' AND NOT EXISTS (SELECT 1 FROM pages WHERE id = 'p{other}')"
        ),
        _ => format!("DELETE FROM pages WHERE id = 'p{key}'"),
    }
}
