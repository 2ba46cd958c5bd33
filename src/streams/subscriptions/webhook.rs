//! Sending webhooks. One connection a webhook: the name is looked up, every address it stands for is checked, and the
//! connection is made to an address that passed, so nothing can change in between. Redirects are not followed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bourn_protocol::headers;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::{Delivery, Subscriptions, address, unix_millis};

/// Maximum number of bytes of an answer that are read.
const ANSWER_MAX_BYTES: usize = 64 << 10;

/// Why a webhook was not delivered; the text is for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undelivered {
    #[error("it may not go to {0}")]
    Forbidden(String),
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("the exchange broke: {0}")]
    Exchange(String),
    #[error("it was answered with {0}")]
    Status(u16),
    #[error("it took too long")]
    Timeout,
}

/// Sends webhooks.
pub(super) struct Sender {
    allow_private: bool,
    timeout: Duration,
    tls: TlsConnector,
}

impl Sender {
    pub(super) fn new(allow_private: bool, timeout: Duration) -> Sender {
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
        Sender { allow_private, timeout, tls: TlsConnector::from(Arc::new(config)) }
    }

    /// Sends a body; says whether the answer was `{"done":true}`.
    pub(super) async fn post(&self, url: &str, body: Bytes, signature: &str) -> Result<bool, Undelivered> {
        let sent = tokio::time::timeout(self.timeout, Box::pin(self.exchange(url, body, signature)));
        sent.await.unwrap_or(Err(Undelivered::Timeout))
    }

    async fn exchange(&self, url: &str, body: Bytes, signature: &str) -> Result<bool, Undelivered> {
        let url = address::check(url, self.allow_private)
            .map_err(|refused| Undelivered::Forbidden(refused.to_string()))?;
        let stream = self.connect(&url).await?;
        let request =
            request(&url, body, signature).map_err(|error| Undelivered::Exchange(error.to_string()))?;
        if url.scheme() == "http" {
            return send(stream, request).await;
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|error| Undelivered::Exchange(error.to_string()))?;
        let stream = self.tls.connect(name, stream).await.map_err(Undelivered::Connect)?;
        send(stream, request).await
    }

    async fn connect(&self, url: &Url) -> Result<TcpStream, Undelivered> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port_or_known_default().unwrap_or(443);
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(Undelivered::Connect)?.collect();
        // One bad address spoils the name: it is up to something.
        if let Some(bad) = found.iter().find(|found| !self.allow_private && address::is_inside(found.ip())) {
            return Err(Undelivered::Forbidden(bad.ip().to_string()));
        }
        TcpStream::connect(found.as_slice()).await.map_err(Undelivered::Connect)
    }
}

fn request(url: &Url, body: Bytes, signature: &str) -> Result<Request<Full<Bytes>>, http::Error> {
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .header(headers::WEBHOOK_SIGNATURE, signature)
        .body(Full::new(body))
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<bool, Undelivered> {
    let broken = |error: hyper::Error| Undelivered::Exchange(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if !status.is_success() {
            return Err(Undelivered::Status(status.as_u16()));
        }
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        // An answer that cannot be read is not one that says it is done.
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok(answer["done"] == true)
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

/// How far a subscription's webhook is.
pub(super) enum Sending {
    /// It waits for a permit. The wake that is current then is the one that is sent.
    Queued,
    /// It is being sent; `again`: another wake has begun meanwhile.
    UnderWay { again: bool },
}

/// Takes a subscription out of the list of those that are sent to, also when its task is cancelled.
struct Listed<'a> {
    subscriptions: &'a Subscriptions,
    id: &'a str,
    listed: bool,
}

impl Listed<'_> {
    fn under_way(&self) {
        self.subscriptions.sending().insert(self.id.to_owned(), Sending::UnderWay { again: false });
    }

    /// Whether it is to be sent once more; takes it out of the list if not.
    fn again(&mut self) -> bool {
        let mut sending = self.subscriptions.sending();
        if matches!(sending.get(self.id), Some(Sending::UnderWay { again: true })) {
            sending.insert(self.id.to_owned(), Sending::Queued);
            return true;
        }
        // From here on the next wake has a task of its own.
        sending.remove(self.id);
        self.listed = false;
        false
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        metrics::gauge!("bourn_webhooks_pending").decrement(1.0);
        if self.listed {
            self.subscriptions.sending().remove(self.id);
        }
    }
}

impl Subscriptions {
    fn sending(&self) -> MutexGuard<'_, HashMap<String, Sending>> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a subscription's webhook waits to be sent by this server.
    pub(super) fn is_queued(&self, id: &str) -> bool {
        matches!(self.sending().get(id), Some(Sending::Queued))
    }

    /// How long a webhook may take, in milliseconds.
    pub(super) fn webhook_millis(&self) -> i64 {
        i64::try_from(self.sender.timeout.as_millis()).unwrap_or(i64::MAX)
    }

    /// Sends the current wake of a subscription, in a task of its own. There is one such task for a subscription: however
    /// slow its receiver is and however often its leases end, what waits for it does not grow.
    pub(super) fn send(self: Arc<Self>, id: String) {
        match self.sending().entry(id.clone()) {
            Entry::Vacant(free) => {
                free.insert(Sending::Queued);
                metrics::gauge!("bourn_webhooks_pending").increment(1.0);
            }
            Entry::Occupied(mut there) => {
                if let Sending::UnderWay { again } = there.get_mut() {
                    *again = true;
                }
                return;
            }
        }
        let ended = self.ended.clone();
        self.tasks.clone().spawn(async move {
            let mut listed = Listed { subscriptions: &self, id: &id, listed: true };
            let send = async {
                loop {
                    // Never closed.
                    let permit = self.permits.acquire().await;
                    listed.under_way();
                    if let Err(error) = self.deliver(&id).await {
                        tracing::warn!(subscription = id, %error, "the outcome of a webhook could not be saved");
                    }
                    drop(permit);
                    if !listed.again() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = send => {}
                // Its lease ends, and it is sent again.
                () = ended.cancelled() => {}
            }
        });
    }

    async fn deliver(self: &Arc<Self>, id: &str) -> Result<(), super::Refusal> {
        let Some((subscription, _)) = self.load(id).await? else { return Ok(()) };
        let (Some(wake), Some(url)) = (&subscription.wake, &subscription.configuration.webhook) else {
            return Ok(());
        };
        let tails = self.tails(subscription.links()).await?;
        let now = unix_millis();
        let body = json!({
            "subscription_id": id,
            "wake_id": wake.id,
            "generation": subscription.generation,
            "streams": subscription.describe_streams(Some(&tails)),
            "callback_url": format!("{}/__ds/subscriptions/{}/callback", self.root, super::segment(id)),
            "callback_token": self.keys.load().token(id, subscription.generation, now),
        });
        let body = Bytes::from(body.to_string());
        let signature = self.keys.load().sign(&body, now / 1_000);
        let sent = self.sender.post(url, body, &signature).await;
        let outcome = if sent.is_ok() { "delivered" } else { "failed" };
        metrics::counter!("bourn_webhooks_total", "outcome" => outcome).increment(1);
        let woken = match sent {
            Ok(done) => {
                let delivered = self
                    .change(id, |subscription, tails, now| {
                        Ok(subscription.delivered(&wake.id, done, tails, now))
                    })
                    .await;
                delivered.map(|(.., woken)| woken)
            }
            Err(error) => {
                tracing::info!(subscription = id, %error, "a webhook was not delivered");
                let jitter = rand::random_range(-0.2..=0.2);
                let failed = self
                    .change(id, |subscription, _, now| {
                        subscription.failed(&wake.id, now, jitter);
                        Ok(false)
                    })
                    .await;
                failed.map(|(.., woken)| woken)
            }
        };
        match woken {
            // The subscription may have been deleted meanwhile.
            Err(super::Refusal::NotFound) | Ok(false) => Ok(()),
            Err(error) => Err(error),
            Ok(true) => {
                debug_assert_eq!(subscription.configuration.delivery(), Delivery::Webhook);
                self.clone().send(id.to_owned());
                Ok(())
            }
        }
    }
}
