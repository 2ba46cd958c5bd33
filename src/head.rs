//! How far a log reaches, and which version of its content a read saw. Everything that reads or writes a log uses
//! these.

use bourn_protocol::{Epoch, Offset, Seq};

/// A place in a log, with the epoch of that log. As the head it is the last activity; its seq is zero where there is
/// none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The log's epoch. A log whose database went back in time gets another one.
    pub epoch: Epoch,
    /// The place.
    pub seq: Seq,
}

impl Head {
    /// The token of this place, as clients keep it.
    #[must_use]
    pub fn offset(self) -> Offset {
        Offset::new(self.epoch, self.seq)
    }

    /// Takes a newer head: one of another log, or a later one of the same. Returns whether it was newer.
    pub fn advance(&mut self, to: Head) -> bool {
        let newer = to.epoch != self.epoch || to.seq > self.seq;
        if newer {
            *self = to;
        }
        newer
    }
}

/// The version of the log's content that a read saw: it changes whenever an activity leaves the log, and with the
/// epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// The log's epoch.
    pub epoch: Epoch,
    /// Grows whenever an activity leaves the log; the column `generation` of the log.
    pub removals: u64,
}
