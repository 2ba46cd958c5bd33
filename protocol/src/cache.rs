//! How long each kind of response may be kept, and the entity tags that revalidate it.

use std::time::Duration;

use crate::offset::{Epoch, Seq};

/// The kinds of response that differ in how they may be cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// A sealed chunk at a real offset: final.
    Sealed,
    /// A sealed chunk at `-1`: final as long as the log lives, which its URL does not name.
    SealedFromStart,
    /// A chunk with data that reaches the tail, and a long-poll's data.
    Tail,
    /// An offset that will not come back: another log's, or behind the horizon.
    Gone,
    /// Anything that is true only for the moment.
    Never,
}

impl Freshness {
    /// The `Cache-Control` value; `sealed_age` is how long caches may keep what is final.
    #[must_use]
    pub fn cache_control(self, sealed_age: Duration) -> String {
        match self {
            Freshness::Sealed => format!("public, max-age={}, immutable", sealed_age.as_secs()),
            Freshness::SealedFromStart => "public, max-age=60, stale-while-revalidate=300".into(),
            Freshness::Tail => "public, max-age=5".into(),
            Freshness::Gone => "public, max-age=60".into(),
            Freshness::Never => "no-store".into(),
        }
    }
}

/// The entity tag of a chunk: which stream, from where to where, and whether that is final.
#[must_use]
pub fn entity_tag(epoch: Epoch, stream: &str, start: Seq, next: Seq, sealed: bool) -> String {
    let state = if sealed { "s" } else { "t" };
    format!("\"{epoch}:{stream}:{start}:{next}:{state}\"")
}

/// Whether an `If-None-Match` value names this entity tag (RFC 9110, 13.1.2; weak comparison).
#[must_use]
pub fn matches_tag(if_none_match: &str, tag: &str) -> bool {
    if_none_match
        .split(',')
        .map(str::trim)
        .any(|candidate| candidate == "*" || candidate.strip_prefix("W/").unwrap_or(candidate) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_listed_tag_matches_weakly() {
        let tag = entity_tag("k3f9".parse().unwrap(), "f00d", Seq::ZERO, Seq::new(8).unwrap(), true);
        assert_eq!(tag, "\"k3f9:f00d:0:8:s\"");
        assert!(matches_tag(&tag, &tag));
        assert!(matches_tag(&format!("\"other\", W/{tag}"), &tag));
        assert!(matches_tag("*", &tag));
        assert!(!matches_tag("\"k3f9:f00d:0:8:t\"", &tag));
    }
}
