//! Who asks: the token of a request, and the rights that it gives. A browser's `EventSource` can send no header, so a read may
//! carry its token in a cookie; writes may not, so that no other site's page can make them.

use std::sync::Arc;

use bourn_protocol::ErrorCode;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, Method, Request};

use crate::access::{Access, Rights};
use crate::http::ApiError;

/// Where the rights of a request stand.
pub(in crate::http) enum Admission {
    /// They are known.
    Known(Arc<Rights>),
    /// The token has to be verified.
    Unverified(String),
}

/// The rights of a request, as far as they are at hand.
///
/// # Errors
/// When it shows a token where none can be, or none where one must be.
pub(in crate::http) fn admit<B>(access: &Access, request: &Request<B>) -> Result<Admission, ApiError> {
    let token = if access.is_controlled() { token(access, request)? } else { None };
    let Some(token) = token else {
        return Ok(Admission::Known(access.without_token()?.clone()));
    };
    Ok(match access.known(token) {
        Some(rights) => Admission::Known(rights),
        None => Admission::Unverified(token.to_owned()),
    })
}

fn token<'a, B>(access: &Access, request: &'a Request<B>) -> Result<Option<&'a str>, ApiError> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let invalid = |message| ApiError::new(ErrorCode::TokenInvalid, message);
    if let Some(value) = values.next() {
        if values.next().is_some() {
            return Err(invalid("`Authorization` is there more than once; send it once"));
        }
        let token = value.to_str().ok().and_then(bearer);
        return token.map(Some).ok_or_else(|| invalid("send the token as Authorization: Bearer TOKEN"));
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads || access.cookie().is_empty() {
        return Ok(None);
    }
    Ok(cookie(request.headers(), access.cookie()))
}

/// The token of a value of `Authorization`.
pub(in crate::http) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The value of a cookie; of several of one name the first, which browsers send for the longest path.
pub(in crate::http) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = pairs.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_bearer_token() {
        for (value, token) in [
            ("Bearer a.b.c", Some("a.b.c")),
            ("bearer a.b.c", Some("a.b.c")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Basic YTpi", None),
            ("a.b.c", None),
        ] {
            assert_eq!(bearer(value), token, "{value}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, "theme=dark; __Host-bourn=a.b.c; x=__Host-bourn".parse().unwrap());
        assert_eq!(cookie(&headers, "__Host-bourn"), Some("a.b.c"));
        assert_eq!(cookie(&headers, "bourn"), None);
    }
}
