//! Capture without SQL: the rules between a changed row and the log that both databases share.

pub(crate) mod compare;
pub(crate) mod settle;
