//! Requests that the server makes of others: webhooks, and the keys of those who issue tokens. One connection a request: the
//! name is looked up, every address that it stands for is checked, and the connection is made to one that passed, so nothing
//! can change in between. Redirects are not followed.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

/// Why there is no answer; the text is for the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error("it may not go to {0}")]
    Forbidden(String),
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("the exchange broke: {0}")]
    Exchange(String),
}

/// An answer to a request of ours.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// None if it broke off, or has more bytes than were wanted.
    pub(crate) body: Option<Bytes>,
}

/// TLS with the system's certificates, which are read when they are first needed.
static TLS: LazyLock<TlsConnector> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a certificate of the system cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = match versions {
        Ok(config) => config.with_root_certificates(roots).with_no_client_auth(),
        Err(error) => unreachable!("the provider knows the default versions: {error}"),
    };
    TlsConnector::from(Arc::new(config))
});

/// Sends a request to an http or https URL, if all its addresses may be gone to; reads at most so many bytes of the
/// answer. The caller says how long it may take.
pub(crate) async fn exchange(
    url: &Url,
    request: Request<Full<Bytes>>,
    may_go_to: impl Fn(IpAddr) -> bool,
    most: usize,
) -> Result<Answer, OutboundError> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(443);
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.map_err(OutboundError::Connect)?.collect();
    // One bad address spoils the name: it is up to something.
    if let Some(bad) = found.iter().find(|found| !may_go_to(found.ip())) {
        return Err(OutboundError::Forbidden(bad.ip().to_string()));
    }
    let stream = TcpStream::connect(found.as_slice()).await.map_err(OutboundError::Connect)?;
    if url.scheme() == "http" {
        return send(stream, request, most).await;
    }
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| OutboundError::Exchange(error.to_string()))?;
    let stream = TLS.connect(name, stream).await.map_err(OutboundError::Connect)?;
    send(stream, request, most).await
}

/// A request for what a URL names, without body and headers of its own.
pub(crate) fn request(method: Method, url: &Url) -> http::request::Builder {
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Request::builder().method(method).uri(path).header(HOST, host)
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<Answer, OutboundError> {
    let broken = |error: hyper::Error| OutboundError::Exchange(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), most).collect().await;
        Ok(Answer { status, body: body.map(Collected::to_bytes).ok() })
    };
    // The connection runs beside the exchange and ends with it.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(broken(error)),
        },
    }
}
