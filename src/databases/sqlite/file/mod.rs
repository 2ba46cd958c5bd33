//! The file: the history it belongs to, the file beside it, the ends of its transactions, and its events.

pub(super) mod beside;
pub(super) mod events;
pub(super) mod history;
pub(super) mod sequencer;
pub(super) mod versions;
