//! The log's own tables: reading the log, and retention.

pub(super) mod read;
pub(super) mod retention;
