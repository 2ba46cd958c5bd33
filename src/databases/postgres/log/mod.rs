//! The log's own tables: reading the log, its history, and the entity types whose rows it refuses.

pub(super) mod history;
mod narrow;
pub(super) mod read;
pub(super) mod recent;
pub(super) mod stops;
pub(super) mod walk;

/// The channel on which servers notify each other how far the log reaches.
pub(super) const CHANNEL: &str = "bourn";
