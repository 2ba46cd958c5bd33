//! The paths of stored streams: what follows `/v1/stream/`, decoded. Segments that a proxy or a file system might
//! read as something else are refused, and so is the prefix that the protocol keeps for its control endpoints.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Refused;
use crate::limits::STREAM_PATH_MAX_BYTES;
use crate::percent::percent_decode;

/// Where stored streams live.
pub const ROOT: &str = "/v1/stream/";
/// The first segment of the control endpoints.
pub const RESERVED: &str = "__ds";
/// What stands in a URL's path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@');

/// The path of a stored stream, `events/orders`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamPath(Arc<str>);

impl StreamPath {
    /// Checks and takes a path that is decoded already.
    ///
    /// # Errors
    /// With the rule that it breaks.
    pub fn new(text: &str) -> Result<StreamPath, Refused> {
        if text.is_empty() || text.len() > STREAM_PATH_MAX_BYTES {
            return Err(Refused("a stream's path must have 1 to 1024 bytes"));
        }
        if text.contains(|c: char| c.is_control() || c == '\\') {
            return Err(Refused("a stream's path must have no control characters and no backslash"));
        }
        if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(Refused("a stream's path must have no empty segment, no `.` and no `..`"));
        }
        if text.split('/').next() == Some(RESERVED) {
            return Err(Refused("paths that begin with `__ds` are reserved"));
        }
        Ok(StreamPath(text.into()))
    }

    /// Reads the rest of a URL's path, as it came over the wire.
    ///
    /// # Errors
    /// With the rule that it breaks.
    pub fn decode(raw: &str) -> Result<StreamPath, Refused> {
        let text = percent_decode(raw, false).ok_or(Refused("a path must be percent-encoded UTF-8"))?;
        StreamPath::new(&text)
    }

    /// Reads the whole path of a stream's URL, as `Stream-Forked-From` has it.
    ///
    /// # Errors
    /// With the rule that it breaks.
    pub fn of_url_path(raw: &str) -> Result<StreamPath, Refused> {
        let rest = raw.strip_prefix(ROOT).ok_or(Refused("a stream's URL path begins with /v1/stream/"))?;
        StreamPath::decode(rest)
    }

    /// The path's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of the stream's URL.
    #[must_use]
    pub fn url_path(&self) -> String {
        format!("{ROOT}{}", utf8_percent_encode(&self.0, PLAIN))
    }
}

impl fmt::Display for StreamPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_cannot_climb_hide_or_take_the_reserved_prefix() {
        for good in ["a", "events/orders", "a.b/..c", "ü", "a b", "x/__ds"] {
            assert!(StreamPath::new(good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a/../b", "..", "a/.", "a\nb", "a\0", "a\\b", "__ds", "__ds/x"] {
            assert!(StreamPath::new(bad).is_err(), "{bad}");
        }
        assert!(StreamPath::decode("a%2F..%2Fb").is_err(), "decoded first");
        assert!(StreamPath::decode("%ff").is_err() && StreamPath::decode("%2").is_err());
        assert!(StreamPath::new(&"x".repeat(1_025)).is_err());
    }

    proptest! {
        #[test]
        fn a_path_reads_back_from_its_url(text in "\\PC{1,40}") {
            if let Ok(path) = StreamPath::new(&text) {
                prop_assert_eq!(StreamPath::of_url_path(&path.url_path()), Ok(path));
            }
        }
    }
}
