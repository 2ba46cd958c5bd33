//! The file: which history it belongs to, what is kept beside it, where the transactions in it end, and what happens to it.

pub(super) mod beside;
pub(super) mod events;
pub(super) mod history;
pub(super) mod sequencer;
pub(super) mod versions;
