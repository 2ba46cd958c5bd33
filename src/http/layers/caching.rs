//! Who may keep an answer. With access control an answer is for its caller, and a cache that is shared must not have it, unless
//! the same may be read without a token.

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue};

/// Goes with an answer that everybody may have, without a token.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct ForEverybody;

/// Lets the caller's own cache keep what any cache might.
pub(in crate::http) fn make_private(headers: &mut HeaderMap) {
    let Some(value) = headers.get(CACHE_CONTROL).and_then(|value| value.to_str().ok()) else { return };
    let Some(rest) = value.strip_prefix("public") else { return };
    if let Ok(value) = HeaderValue::from_str(&format!("private{rest}")) {
        headers.insert(CACHE_CONTROL, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_cache_might_keep_is_kept_by_the_callers_alone() {
        for (value, private) in [
            ("public, max-age=31536000, immutable", "private, max-age=31536000, immutable"),
            ("public, max-age=5", "private, max-age=5"),
            ("no-store", "no-store"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static(value));
            make_private(&mut headers);
            assert_eq!(headers[CACHE_CONTROL], private);
        }
    }
}
