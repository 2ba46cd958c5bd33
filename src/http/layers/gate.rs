//! What a request must be before it is routed: sent to a name that is this server's, by a page that may use it, and framed as
//! HTTP says. On loopback, where there is no access control, any web page could otherwise read and write a developer's
//! database: by a name of its own that resolves to 127.0.0.1 (DNS rebinding), or from its own origin.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};

use bourn_protocol::ErrorCode;
use http::header::{CONTENT_ENCODING, HOST, ORIGIN, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Version};
use tokio_util::either::Either;
use tower_layer::Layer;
use tower_service::Service;

use super::{Answer, EarlyOr, early};
use crate::config::Limits;
use crate::http::{ApiError, RequestBody};

/// Which hosts and origins are served.
#[derive(Debug)]
pub struct Gate {
    /// The address that is listened on, as most clients name it.
    own: String,
    /// Names beside the loopback's, without ports, in lower case.
    hosts: Vec<String>,
    /// Origins beside those on loopback; `*` is any.
    origins: Vec<String>,
    hosts_are_checked: bool,
    origins_are_checked: bool,
}

impl Gate {
    /// The gate of a server that listens on an address and is reached under a URL; the pages of `trusted` origins may use it.
    #[must_use]
    pub fn new(limits: &Limits, address: SocketAddr, public_url: &str, trusted: &[String]) -> Gate {
        let list = |text: &str| -> Vec<String> {
            let items = text.split(',').map(|item| item.trim().trim_end_matches('/').to_ascii_lowercase());
            items.filter(|item| !item.is_empty()).collect()
        };
        let (mut hosts, mut origins) = (list(&limits.allowed_hosts), list(&limits.allowed_origins));
        let hosts_are_checked = address.ip().is_loopback() || !hosts.is_empty();
        let origins_are_checked = address.ip().is_loopback() || !origins.is_empty();
        origins.extend_from_slice(trusted);
        hosts.push(address.ip().to_string());
        if let Ok(url) = url::Url::parse(public_url) {
            hosts.extend(url.host_str().map(|host| host.trim_matches(['[', ']']).to_ascii_lowercase()));
            origins.push(url.origin().ascii_serialization());
        }
        Gate { own: address.to_string(), hosts, origins, hosts_are_checked, origins_are_checked }
    }

    /// Whether a request may be answered.
    pub(in crate::http) fn check<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        let host = one_host(request)?;
        if self.hosts_are_checked && host != self.own && !host.is_empty() && !self.serves(host) {
            let message = format!(
                "this server is not reached under the name `{}`; add it to `allowed_hosts` if it is to be",
                host.escape_debug()
            );
            return Err(ApiError::new(ErrorCode::HostNotAllowed, &message));
        }
        // A preflight does nothing by itself; the request that it asks for is refused in words that a page can read.
        if self.origins_are_checked
            && *request.method() != Method::OPTIONS
            && let Some(origin) = request.headers().get(ORIGIN)
        {
            let origin = origin.to_str().unwrap_or_default();
            if !self.takes(origin, host) {
                let message = format!(
                    "pages from `{}` may not use this server; add the origin to `allowed_origins` if they are to",
                    origin.escape_debug()
                );
                return Err(ApiError::new(ErrorCode::OriginNotAllowed, &message));
            }
        }
        transfer_coding(request.headers())
    }

    fn serves(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        // A name may end with the root's dot.
        let name = authority.host().trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        is_loopback(&name) || self.hosts.contains(&name)
    }

    fn takes(&self, origin: &str, host: &str) -> bool {
        if self.origins.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin)) {
            return true;
        }
        let Some((_, place)) = origin.split_once("://") else { return false };
        if place.eq_ignore_ascii_case(host) {
            return true;
        }
        let Ok(authority) = place.parse::<Authority>() else { return false };
        is_loopback(&authority.host().trim_matches(['[', ']']).to_ascii_lowercase())
    }
}

/// Whether a name is one of this machine's own, which no resolver can point elsewhere.
fn is_loopback(name: &str) -> bool {
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The one host that a request names (RFC 9112, section 3.2); empty where HTTP/1.0 leaves it out.
fn one_host<B>(request: &Request<B>) -> Result<&str, ApiError> {
    let refuse = |message| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => match host.to_str() {
            Ok(host) => host,
            Err(_) => return refuse("`Host` must be the name of a host"),
        },
        (None, _) if request.version() < Version::HTTP_11 => "",
        (None, _) => return refuse("a request must have a `Host` header"),
        (Some(_), Some(_)) => return refuse("a request must have one `Host` header, not several"),
    };
    // A request with a whole URL goes to that host, whatever the header says.
    Ok(request.uri().authority().map_or(host, Authority::as_str))
}

/// Bodies come as they are or in chunks: what was compressed on the way would be stored as it came.
fn transfer_coding(headers: &HeaderMap) -> Result<(), ApiError> {
    let plain = |name, only: &str| {
        headers.get_all(name).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(only.as_bytes()))
    };
    let refuse = |message| Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    if !plain(TRANSFER_ENCODING, "chunked") {
        return refuse("the server takes no transfer coding but `chunked`: send the body uncompressed");
    }
    if !plain(CONTENT_ENCODING, "identity") {
        return refuse("the server takes no `Content-Encoding`: send the body uncompressed");
    }
    Ok(())
}

/// Refuses what the gate does not let through.
#[derive(Clone)]
pub(in crate::http) struct GateLayer(pub(in crate::http) Arc<Gate>);

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.0.clone() }
    }
}

/// See [`GateLayer`].
#[derive(Clone)]
pub struct Gated<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> Service<Request<RequestBody>> for Gated<S>
where
    S: Service<Request<RequestBody>, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = EarlyOr<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        match self.gate.check(&request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(refused) => early(Answer::refused(refused)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SettingsLayer};

    fn gate(listen: &str, public_url: &str, hosts: &str, origins: &str) -> Gate {
        let above = SettingsLayer {
            allowed_hosts: Some(hosts.into()),
            allowed_origins: Some(origins.into()),
            ..SettingsLayer::default()
        };
        let limits = Config::load(above, None).unwrap().limits;
        Gate::new(&limits, listen.parse().unwrap(), public_url, &[])
    }

    fn code(gate: &Gate, headers: &[(&str, &str)]) -> Option<ErrorCode> {
        let mut request = Request::builder().uri("/v1/activities");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        gate.check(&request.body(()).unwrap()).err().map(|error| error.code())
    }

    #[test]
    fn on_loopback_only_this_machine_and_the_names_that_are_allowed_are_served() {
        let gate = gate("127.0.0.1:4437", "https://streams.example.com", "a.example, b.example", "");
        for host in [
            "127.0.0.1:4437",
            "127.0.0.1",
            "localhost:4437",
            "LOCALHOST",
            "app.localhost",
            "[::1]:4437",
            "streams.example.com",
            "a.example:80",
            "b.example",
        ] {
            assert_eq!(code(&gate, &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:4437",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "user@localhost@evil",
            "10.0.0.1",
        ] {
            assert_eq!(code(&gate, &[("host", host)]), Some(ErrorCode::HostNotAllowed), "{host}");
        }
    }

    #[test]
    fn only_pages_of_this_machine_and_allowed_origins_are_answered() {
        let gate = gate("127.0.0.1:4437", "", "", "https://app.example");
        let origin = |origin| code(&gate, &[("host", "localhost:4437"), ("origin", origin)]);
        for good in
            ["http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:1", "https://app.example"]
        {
            assert_eq!(origin(good), None, "{good}");
        }
        for bad in [
            "https://evil.example",
            "null",
            "",
            "http://localhost.evil.example",
            "https://app.example.evil.example",
        ] {
            assert_eq!(origin(bad), Some(ErrorCode::OriginNotAllowed), "{bad}");
        }
    }

    #[test]
    fn elsewhere_names_and_origins_are_free_unless_they_are_listed() {
        let open = gate("0.0.0.0:4437", "", "", "");
        let headers = [("host", "any.example"), ("origin", "https://other.example")];
        assert_eq!(code(&open, &headers), None);
        let listed = gate("0.0.0.0:4437", "", "a.example", "");
        assert_eq!(code(&listed, &headers), Some(ErrorCode::HostNotAllowed));
        let any = gate("127.0.0.1:4437", "", "", "*");
        assert_eq!(code(&any, &[("host", "localhost"), ("origin", "https://other.example")]), None);
    }

    #[test]
    fn a_request_has_one_host_and_its_body_is_not_compressed() {
        let gate = gate("127.0.0.1:4437", "", "", "");
        assert_eq!(code(&gate, &[]), Some(ErrorCode::InvalidRequest));
        let two = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(code(&gate, &two), Some(ErrorCode::InvalidRequest));
        for (name, value) in [("transfer-encoding", "gzip, chunked"), ("content-encoding", "gzip")] {
            let headers = [("host", "localhost"), (name, value)];
            assert_eq!(code(&gate, &headers), Some(ErrorCode::UnsupportedMediaType), "{value}");
        }
        assert_eq!(code(&gate, &[("host", "localhost"), ("transfer-encoding", "Chunked")]), None);
    }
}
