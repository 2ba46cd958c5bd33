//! A place in any stream, derived or stored, as its token.

use std::fmt;

use crate::offset::Offset;
use crate::stored::StreamOffset;

/// The token of a place in any stream, as it is written on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a log, and so in every stream derived from it.
    Log(Offset),
    /// In a stored stream.
    Stored(StreamOffset),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Log(offset) => offset.fmt(f),
            Place::Stored(offset) => offset.fmt(f),
        }
    }
}

impl From<Offset> for Place {
    fn from(offset: Offset) -> Place {
        Place::Log(offset)
    }
}

impl From<StreamOffset> for Place {
    fn from(offset: StreamOffset) -> Place {
        Place::Stored(offset)
    }
}
