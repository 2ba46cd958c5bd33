//! What happened, for the story of a failure: transactions, trouble, and what is wrong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Transactions that are remembered.
const REMEMBERED: usize = 5_000;
/// Troubles that are remembered.
const TROUBLES: usize = 200;
/// Faults that are reported; more add nothing.
const FAULTS: usize = 20;
/// How much of a statement or a value is shown.
const SHOWN: usize = 300;

#[derive(Debug)]
pub struct Journal {
    began: Instant,
    transactions: Mutex<VecDeque<(f64, String)>>,
    troubles: Mutex<VecDeque<(f64, String)>>,
    faults: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, u64>>,
    pub committed: AtomicU64,
    pub delivered: AtomicU64,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    pub fn new() -> Journal {
        Journal {
            began: Instant::now(),
            transactions: Mutex::default(),
            troubles: Mutex::default(),
            faults: Mutex::default(),
            counts: Mutex::default(),
            committed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        }
    }

    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// A transaction that was committed, or may have been.
    pub fn transaction(&self, writer: &str, statements: &[String], outcome: &str) {
        self.committed.fetch_add(1, Ordering::Relaxed);
        let text = format!("{writer} {outcome}: {}", statements.join("; "));
        remember(&mut lock(&self.transactions), REMEMBERED, (self.seconds(), text));
    }

    pub fn trouble(&self, what: impl Into<String>) {
        let what = what.into();
        self.count(what.split(':').next().unwrap_or_default());
        remember(&mut lock(&self.troubles), TROUBLES, (self.seconds(), what));
    }

    pub fn count(&self, what: &str) {
        *lock(&self.counts).entry(what.to_owned()).or_default() += 1;
    }

    pub fn counted(&self, what: &str) -> u64 {
        lock(&self.counts).get(what).copied().unwrap_or_default()
    }

    /// Something that must never happen.
    pub fn fault(&self, what: impl Into<String>) {
        let mut faults = lock(&self.faults);
        if faults.len() < FAULTS {
            faults.push(format!("{:.3} s: {}", self.seconds(), what.into()));
        }
    }

    pub fn faults(&self) -> Vec<String> {
        lock(&self.faults).clone()
    }

    /// The last transactions that name one of these, oldest first.
    pub fn about(&self, words: &[String], most: usize) -> String {
        let transactions = lock(&self.transactions);
        let names = |text: &str| words.iter().any(|word| text.contains(word.as_str()));
        let found: Vec<String> = transactions
            .iter()
            .rev()
            .filter(|(_, text)| names(text))
            .take(most)
            .map(|(at, text)| format!("  {at:.3} s {}", shown(text)))
            .collect();
        found.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// The trouble there was, oldest first.
    pub fn troubles(&self) -> String {
        let troubles = lock(&self.troubles);
        let last = troubles.iter().rev().take(25).map(|(at, text)| format!("  {at:.3} s {text}"));
        last.collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// How much of everything there was.
    pub fn figures(&self) -> String {
        let counts: Vec<String> =
            lock(&self.counts).iter().map(|(what, count)| format!("  {what}: {count}")).collect();
        format!(
            "{} transactions, {} events delivered\n{}",
            self.committed.load(Ordering::Relaxed),
            self.delivered.load(Ordering::Relaxed),
            counts.join("\n")
        )
    }
}

fn remember<T>(queue: &mut VecDeque<T>, most: usize, item: T) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// The beginning of a long text.
pub fn shown(text: &str) -> String {
    let end = text.floor_char_boundary(SHOWN);
    if end < text.len() { format!("{}… ({} bytes)", &text[..end], text.len()) } else { text.to_owned() }
}
