//! The log's own tables: reading it, which history it belongs to, and the entity types that it refuses rows of.

pub(super) mod history;
mod narrow;
pub(super) mod read;
pub(super) mod recent;
pub(super) mod stops;
pub(super) mod walk;

/// The channel on which servers tell each other how far the log reaches.
pub(super) const CHANNEL: &str = "bourn";
