//! Sending webhooks, to addresses that webhooks may go to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bourn_protocol::headers;
use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use http_body_util::Full;
use serde_json::json;

use super::{Delivery, Subscriptions, address, unix_millis};
use crate::outbound::{self, OutboundError};

/// Maximum number of bytes of an answer that are read.
const ANSWER_MAX_BYTES: usize = 64 << 10;

/// Why a webhook was not delivered; the text is for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undelivered {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("it was answered with {0}")]
    Status(u16),
    #[error("it took too long")]
    Timeout,
}

/// Sends webhooks.
pub(super) struct WebhookSender {
    allow_private: bool,
    timeout: Duration,
}

impl WebhookSender {
    pub(super) fn new(allow_private: bool, timeout: Duration) -> WebhookSender {
        WebhookSender { allow_private, timeout }
    }

    /// Sends a body; says whether the answer was `{"done":true}`.
    pub(super) async fn post(&self, url: &str, body: Bytes, signature: &str) -> Result<bool, Undelivered> {
        let sent = tokio::time::timeout(self.timeout, Box::pin(self.exchange(url, body, signature)));
        sent.await.unwrap_or(Err(Undelivered::Timeout))
    }

    async fn exchange(&self, url: &str, body: Bytes, signature: &str) -> Result<bool, Undelivered> {
        let url = address::check(url, self.allow_private)
            .map_err(|refused| OutboundError::Forbidden(refused.to_string()))?;
        let request = outbound::request(Method::POST, &url)
            .header(CONTENT_TYPE, "application/json")
            .header(headers::WEBHOOK_SIGNATURE, signature)
            .body(Full::new(body))
            .map_err(|error| OutboundError::Exchange(error.to_string()))?;
        let may_go_to = |ip| self.allow_private || !address::is_inside(ip);
        let answer = outbound::exchange(&url, request, may_go_to, ANSWER_MAX_BYTES).await?;
        if !answer.status.is_success() {
            return Err(Undelivered::Status(answer.status.as_u16()));
        }
        // An answer that cannot be read is not one that says it is done.
        let body: serde_json::Value =
            serde_json::from_slice(&answer.body.unwrap_or_default()).unwrap_or_default();
        Ok(body["done"] == true)
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
