//! Places in stored streams. A place is a number of bytes from the stream's start, and the number of the stream that
//! owns the byte before it. A fork shares its source's places up to where it leaves it, and a stream that is recreated
//! at an old path has other ones: a token identifies the bytes before it, whatever became of the path.

use std::fmt;
use std::str::FromStr;

use crate::offset::{InvalidOffset, Seq, sixteen_digits};

/// The token of a place in a stored stream, `{sixteen digits}_{sixteen digits}`; sorts as a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StreamOffset {
    /// Bytes before this place.
    pub position: Seq,
    /// The stream that owns the byte before this place; zero at the start.
    pub owner: u64,
}

impl StreamOffset {
    /// The start of every stream.
    pub const START: StreamOffset = StreamOffset { position: Seq::ZERO, owner: 0 };
}

impl fmt::Display for StreamOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016}_{:016}", self.position.get(), self.owner)
    }
}

impl FromStr for StreamOffset {
    type Err = InvalidOffset;
    fn from_str(text: &str) -> Result<Self, InvalidOffset> {
        let (position, owner) = text.split_once('_').ok_or(InvalidOffset)?;
        let position = sixteen_digits(position).ok_or(InvalidOffset)?;
        Ok(StreamOffset { position, owner: sixteen_digits(owner).ok_or(InvalidOffset)?.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn offsets_read_back_and_sort_as_strings(a in 0..=Seq::MAX.get(), b in 0..=Seq::MAX.get(), owner in 0..=Seq::MAX.get()) {
            let offset = |position| StreamOffset { position: Seq::new(position).unwrap(), owner };
            prop_assert_eq!(offset(a).to_string().parse(), Ok(offset(a)));
            prop_assert_eq!(offset(a).to_string().cmp(&offset(b).to_string()), a.cmp(&b));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<StreamOffset>();
        }
    }
}
