//! What a database has to offer to the runs: tables, writers of its own, trouble of its own, and the truth at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rand::rngs::StdRng;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::journal::Journal;
use crate::schema::{Palette, Table};
use crate::support::Bourn;

/// Makes the next transaction up; none for the moment.
pub type Script = Arc<dyn Fn(&mut StdRng) -> Option<Vec<String>> + Send + Sync>;

/// A living row as the database itself tells it.
#[derive(Debug, Clone)]
pub struct Row {
    pub scope: Option<String>,
    pub value: Value,
}

/// The orders of a writer.
#[derive(Clone)]
pub struct Orders {
    pub name: String,
    pub seed: u64,
    pub script: Script,
    /// Whether statements may be wrong.
    pub forgives: bool,
    /// The pause between two transactions, at most, in milliseconds.
    pub pause: u64,
    pub stop: Arc<AtomicBool>,
    pub journal: Arc<Journal>,
}

pub trait World: Send + Sync + Sized + 'static {
    const NAME: &'static str;
    const PALETTE: Palette;
    /// Whether a reader that begins at the start first gets of a row that it was made, whenever it was changed.
    const STRICT_BEGINNING: bool;

    /// A database with these tables, ready to be served.
    fn make(tables: &[Table], seed: u64) -> impl Future<Output = Self> + Send;

    /// A server of it, or why it does not start at the moment.
    fn server(&self) -> impl Future<Output = Result<Bourn, String>> + Send;

    /// Starts a foreign writer.
    fn write(self: &Arc<Self>, orders: Orders) -> JoinHandle<()>;

    /// Makes some trouble of the database's kind, and ends it.
    fn trouble(
        &self,
        tables: &[Table],
        random: &mut StdRng,
        journal: &Journal,
    ) -> impl Future<Output = ()> + Send;

    /// Takes the database away for a moment, if it can be.
    fn outage(&self, random: &mut StdRng, journal: &Journal) -> impl Future<Output = ()> + Send;

    /// Ends whatever trouble there is.
    fn heal(&self);

    /// The table's living rows by their keys.
    fn rows(&self, table: &Table) -> BTreeMap<String, Row>;

    /// Whether a value of a stream is what the database has.
    fn same(held: &Value, told: &Value) -> bool;

    /// The log's last entries about a row.
    fn logged(&self, table: &Table, key: &str) -> String;

    /// What is wrong with the log as a whole.
    fn unsound(&self) -> Option<String>;

    /// What the database is doing, for the story of readers that do not get what they should.
    fn doing(&self) -> String;
}

/// Orders one writer's pace and end.
impl Orders {
    pub fn stopped(&self) -> bool {
        self.stop.load(std::sync::atomic::Ordering::Relaxed)
    }
}
