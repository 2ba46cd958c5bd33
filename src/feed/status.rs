//! The state of capture as the rest of the server sees it: how far it has come, and what an operator should know.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::head::{Head, Version};

/// How capture is doing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CaptureStatus {
    /// Why capture has stopped, if it has; in words of our own.
    pub stalled: Option<String>,
    /// Committed changes that are not in the log yet, where they can be counted.
    pub lag: Option<u64>,
    /// Bytes of the source's own log that are not in ours yet, where there is such a log.
    pub lag_bytes: Option<u64>,
    /// The age of the oldest change that is not in the log yet, where that is known; zero when there is none.
    pub lag_seconds: Option<f64>,
    /// Keys compared so far, by the entity type whose table is being compared with the log.
    pub reconciling: BTreeMap<String, u64>,
    /// What an operator should know of single entity types.
    pub conditions: Vec<Condition>,
    /// The replication slot, where capture has one.
    pub slot: Option<SlotStatus>,
}

/// Something about one entity type that an operator should know, and may have to fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The entity type's name.
    pub entity_type: String,
    /// While this stands, its streams are incomplete and not served.
    pub stopped: bool,
    /// The row that it is about, if it is about one.
    pub key: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

/// The replication slot by which a server captures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotStatus {
    /// This server holds it: it captures.
    pub leader: bool,
    /// Bytes of write-ahead log that the database keeps for it.
    pub retained_bytes: Option<u64>,
    /// The database's own word for how safe that log is: `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// How often this server has connected to the replication stream.
    pub connects: u64,
}

/// Fills the log. It runs by itself once the storage is open; the methods show how it is doing.
pub trait Capture: Send + Sync {
    /// The head of the log as this process knows it; changes with every commit that reaches the log. Within one epoch
    /// it never goes back.
    fn head(&self) -> watch::Receiver<Head>;

    /// The version of the log as this process knows it: it changes when something has left the log.
    fn version(&self) -> watch::Receiver<Version>;

    /// How capture is doing.
    fn status(&self) -> CaptureStatus;
}
