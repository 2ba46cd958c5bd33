//! Places in a stream: [`Seq`], [`Epoch`], the [`Offset`] token that clients keep, and [`ReadFrom`], what a
//! reader may ask for. Parsed once at the edge of the server; everything behind it handles the types.
//! Durable Streams protocol, section 8.

use std::fmt;
use std::str::FromStr;

/// An activity's place in the log: 1, 2, 3 … without gaps. Zero is the place before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(u64);

impl Seq {
    /// The place before the first activity.
    pub const ZERO: Seq = Seq(0);
    /// The largest place an offset's sixteen digits can name.
    pub const MAX: Seq = Seq(9_999_999_999_999_999);

    /// A place in the log, or `None` past [`Seq::MAX`].
    #[must_use]
    pub const fn new(value: u64) -> Option<Seq> {
        if value <= Self::MAX.0 { Some(Seq(value)) } else { None }
    }

    /// The place as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The place as the signed integer that databases keep.
    #[must_use]
    #[allow(clippy::cast_possible_wrap, reason = "MAX is far below i64::MAX")]
    pub const fn as_i64(self) -> i64 {
        self.0 as i64
    }

    /// The place a database row names; `None` where the number is negative or too large.
    #[must_use]
    pub fn from_i64(value: i64) -> Option<Seq> {
        u64::try_from(value).ok().and_then(Seq::new)
    }

    /// How many zero bits end the number: the measure by which chunk cuts are aligned.
    #[must_use]
    pub const fn alignment(self) -> u32 {
        self.0.trailing_zeros()
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Four characters drawn when a log is created. They distinguish the offsets of one log from another's, so that a
/// client of a recreated database has to start over instead of missing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch([u8; 4]);

impl Epoch {
    const ALPHABET: &'static [u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

    /// Draws an epoch for a new log.
    #[must_use]
    pub fn draw() -> Epoch {
        let mut bytes = [0; 4];
        for byte in &mut bytes {
            *byte = Self::ALPHABET[rand::random_range(0..Self::ALPHABET.len())];
        }
        Epoch(bytes)
    }

    /// The four characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every constructor admits ASCII letters and digits alone.
        std::str::from_utf8(&self.0).unwrap_or("0000")
    }
}

impl FromStr for Epoch {
    type Err = InvalidOffset;
    fn from_str(s: &str) -> Result<Self, InvalidOffset> {
        let bytes: [u8; 4] = s.as_bytes().try_into().map_err(|_| InvalidOffset)?;
        if bytes.iter().all(|b| Self::ALPHABET.contains(b)) { Ok(Epoch(bytes)) } else { Err(InvalidOffset) }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The token of a place in one log, `{epoch}_{sixteen digits}`; sorts as a string in log order. Where the log does not
/// keep what lay before some place, a reader from the start gets tokens that also name that place, as `.{sixteen
/// digits}`, until it has passed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Offset {
    /// The log it belongs to.
    pub epoch: Epoch,
    /// The last activity that lies before this place.
    pub seq: Seq,
    /// Set once the reader has read from the start all that is kept: deletions up to this place had been removed by
    /// then.
    pub since: Option<Seq>,
}

impl Offset {
    /// The offset of a place, without `since`.
    #[must_use]
    pub const fn new(epoch: Epoch, seq: Seq) -> Offset {
        Offset { epoch, seq, since: None }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{:016}", self.epoch, self.seq.0)?;
        match self.since {
            Some(since) => write!(f, ".{:016}", since.0),
            None => Ok(()),
        }
    }
}

impl FromStr for Offset {
    type Err = InvalidOffset;
    fn from_str(s: &str) -> Result<Self, InvalidOffset> {
        let (epoch, digits) = s.split_once('_').ok_or(InvalidOffset)?;
        let (digits, since) = match digits.split_once('.') {
            Some((digits, since)) => (digits, Some(sixteen_digits(since).ok_or(InvalidOffset)?)),
            None => (digits, None),
        };
        Ok(Offset { epoch: epoch.parse()?, seq: sixteen_digits(digits).ok_or(InvalidOffset)?, since })
    }
}

/// A number of exactly sixteen digits; `u64::from_str` would take a plus sign and any length.
pub(crate) fn sixteen_digits(text: &str) -> Option<Seq> {
    let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().and_then(Seq::new)
}

/// Where a reader asks to start; the tokens are those of the stream it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom<T = Offset> {
    /// `-1`: the start of the stream.
    Start,
    /// `now`: the tail, wherever it is.
    Now,
    /// An offset that the server gave.
    At(T),
}

impl<T: FromStr<Err = InvalidOffset>> FromStr for ReadFrom<T> {
    type Err = InvalidOffset;
    fn from_str(s: &str) -> Result<Self, InvalidOffset> {
        match s {
            "-1" => Ok(ReadFrom::Start),
            "now" => Ok(ReadFrom::Now),
            token => token.parse().map(ReadFrom::At),
        }
    }
}

/// The text was none of the offsets this server gives out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an offset is `-1`, `now`, or the value of a `Stream-Next-Offset` header, sent back unchanged")]
pub struct InvalidOffset;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_offset_reads_back_as_it_was_written() {
        let offset = Offset::new("k3f9".parse().unwrap(), Seq::new(1234).unwrap());
        assert_eq!(offset.to_string(), "k3f9_0000000000001234");
        assert_eq!("k3f9_0000000000001234".parse(), Ok(offset));
        let walking = Offset { since: Seq::new(5000), ..offset };
        assert_eq!(walking.to_string(), "k3f9_0000000000001234.0000000000005000");
        assert_eq!("k3f9_0000000000001234.0000000000005000".parse(), Ok(walking));
        assert!(offset.to_string() < walking.to_string());
        assert!(walking.to_string().as_str() < "k3f9_0000000000001235");
    }

    #[test]
    fn anything_but_our_own_tokens_is_refused() {
        let longer = "k3f9_00000000000001234";
        for bad in [
            "",
            "-2",
            "NOW",
            "1234",
            "k3f9_1234",
            "k3f9_+000000000001234",
            "k3f9_0000000000001234.",
            "k3f9_0000000000001234.5",
            "K3F9_0000000000001234",
            longer,
        ] {
            assert_eq!(bad.parse::<ReadFrom>(), Err(InvalidOffset), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn offsets_sort_as_strings(a in 0..=Seq::MAX.get(), b in 0..=Seq::MAX.get()) {
            let epoch = Epoch::draw();
            let text = |seq| Offset::new(epoch, Seq(seq)).to_string();
            prop_assert_eq!(text(a).cmp(&text(b)), a.cmp(&b));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<ReadFrom>();
        }
    }
}
