//! Capture without SQL: the rules for a changed row and the log that both databases share.

pub(crate) mod compare;
