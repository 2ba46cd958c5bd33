//! Capture without SQL: what both databases decide alike between a changed row and the log.

pub(crate) mod compare;
