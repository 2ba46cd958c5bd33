//! How far a log reaches, and which content of it something was read from. Everything that reads or writes a log names its
//! places by these.

use bourn_protocol::{Epoch, Offset, Seq};

/// A place in a log, with the log that it is a place of. As the head it is the last activity; its seq is zero where
/// there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The log's own mark. A log whose database went back in time gets another one.
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

    /// Takes a newer head: one of another log, or a later one of the same. Says whether it was newer.
    pub fn advance(&mut self, to: Head) -> bool {
        let newer = to.epoch != self.epoch || to.seq > self.seq;
        if newer {
            *self = to;
        }
        newer
    }
}

/// Which content of the log something was read from: it changes whenever something leaves the log, and with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// The log's own mark.
    pub epoch: Epoch,
    /// Grows whenever something leaves the log.
    pub generation: u64,
}
