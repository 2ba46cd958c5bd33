//! The log's own tables: reading it, and what leaves it.

pub(super) mod read;
pub(super) mod retention;
