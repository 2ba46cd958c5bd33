//! Subscriptions to stored streams (Durable Streams protocol, sections 6 and 7): cursors that wake workers, by webhook
//! or through a stream of wakes. [`state`] says what a subscription is and how it changes, without I/O;
//! [`Subscriptions`] applies that to the database, each change only to the state it was made from, so that any number
//! of servers may do it at once; [`watch`] reacts to time and to other streams' appends; [`webhook`] sends.

mod address;
mod keys;
mod paths;
mod state;
mod tails;
mod watch;
mod webhook;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bourn_protocol::stored::{Payload, glob};
use bourn_protocol::{ContentType, StreamPath};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{
    AppendStream, Secrets, StoredSubscription, StreamChange, Streams, SubscriptionStore, unix_millis,
};
use crate::config::Limits;
use crate::head::Head;
use crate::storage_error::StorageError;
pub use address::check as check_url;
use keys::SubscriptionKeys;
pub use state::{Delivery, Refusal, Subscription, SubscriptionConfiguration, WakeRequest};
use tails::Tails;

/// How often a change is tried again because another one came first.
const ATTEMPTS: usize = 32;
/// Streams that are listed at once.
const LIST_PAGE: usize = 1_000;
/// The answer to a request that names too many streams.
pub const TOO_MANY_STREAMS: Refusal = Refusal::TooMany("the subscription follows as many streams as one may");

/// The subscriptions of one database.
pub struct Subscriptions {
    store: Arc<dyn SubscriptionStore>,
    streams: Arc<dyn Streams>,
    /// The head of the log: with another epoch the database is not what it was.
    head: tokio::sync::watch::Receiver<Head>,
    /// The keys that the database has; they change when the database is replaced.
    keys: ArcSwap<SubscriptionKeys>,
    /// Where the streams are reached, `https://example.com/v1/stream`.
    root: String,
    most: usize,
    most_streams: usize,
    sender: webhook::WebhookSender,
    /// Permits for webhooks that are being sent.
    permits: Semaphore,
    /// The subscriptions whose webhook is queued or being sent: one task each, however often they wake.
    sending: Mutex<HashMap<String, webhook::Sending>>,
    /// The tasks that send webhooks, and what ends them when the server stops.
    tasks: TaskTracker,
    ended: CancellationToken,
    /// Counts what was changed through this server. Unlike a notification, a count cannot be missed.
    changed: tokio::sync::watch::Sender<Revision>,
    /// What requests have the watcher look at, beside what the storage reports.
    requested_looks: Mutex<watch::RequestedLooks>,
}

/// Counts the changes of subscriptions that the watcher must know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Revision {
    /// Changes of which streams the subscriptions follow, or of whether their wakes could be announced.
    interests: u64,
    /// Any change: another subscription may be due first.
    any: u64,
}

impl Subscriptions {
    /// The subscriptions of a database.
    ///
    /// # Errors
    /// When the database cannot give its keys.
    pub async fn open(
        store: Arc<dyn SubscriptionStore>,
        streams: Arc<dyn Streams>,
        head: tokio::sync::watch::Receiver<Head>,
        public_url: &str,
        limits: &Limits,
    ) -> Result<Subscriptions, StorageError> {
        let keys = ArcSwap::from_pointee(keys(&*store).await?);
        Ok(Subscriptions {
            store,
            streams,
            head,
            keys,
            root: format!("{public_url}/v1/stream"),
            most: limits.subscriptions,
            most_streams: limits.subscription_streams,
            sender: webhook::WebhookSender::new(limits.webhook_allow_private, limits.webhook_timeout.get()),
            permits: Semaphore::new(limits.webhooks),
            sending: Mutex::default(),
            tasks: TaskTracker::new(),
            ended: CancellationToken::new(),
            changed: tokio::sync::watch::Sender::default(),
            requested_looks: Mutex::default(),
        })
    }

    /// The public keys that webhooks are verified with.
    #[must_use]
    pub fn jwks(&self) -> Value {
        self.keys.load().jwks()
    }

    /// Makes a subscription, or finds it there as asked; returns whether it is new.
    ///
    /// # Errors
    /// When there is another one of that id, too many, or the database fails.
    pub async fn create(
        &self,
        id: &str,
        wanted: SubscriptionConfiguration,
    ) -> Result<(Value, bool), Refusal> {
        if let Some((found, _)) = self.load(id).await? {
            return match found.configuration == wanted {
                true => Ok((self.describe(id, &found), false)),
                false => Err(Refusal::Exists),
            };
        }
        if self.store.subscriptions().await?.len() >= self.most {
            return Err(Refusal::TooMany("the server has as many subscriptions as it takes"));
        }
        // Refused before the streams are looked up, one by one.
        if wanted.streams.len() > self.most_streams {
            return Err(TOO_MANY_STREAMS);
        }
        // Appends from here on, for which the look-ups below are too early, are reported as changes.
        let changes = self.streams.stream_changes();
        let pattern = wanted.pattern.clone();
        let mut paths: Vec<(StreamPath, bool)> =
            wanted.streams.iter().cloned().map(|path| (path, true)).collect();
        if let Some(pattern) = &wanted.pattern {
            let mut after = None;
            loop {
                let page = self.streams.list_streams(after.as_ref(), LIST_PAGE).await?;
                let matching = page.iter().filter(|path| glob::matches(pattern, path.as_str()));
                paths.extend(matching.map(|path| (path.clone(), false)));
                if page.len() < LIST_PAGE || paths.len() > self.most_streams {
                    break;
                }
                after = page.last().cloned();
            }
        }
        let mut subscription = Subscription::new(wanted, unix_millis());
        for (path, explicit) in paths {
            // What the stream has already counts as seen.
            let tail = self.tail(&path).await?.end;
            subscription.link(&path, explicit, tail, self.most_streams)?;
        }
        match self.save(id, &subscription, None, 0).await? {
            true => {
                self.look_at(id, moved(changes, pattern.as_deref()));
                Ok((self.describe(id, &subscription), true))
            }
            false => Err(Refusal::Exists),
        }
    }

    /// What a subscription is now.
    ///
    /// # Errors
    /// When there is none, or the database fails.
    pub async fn read(&self, id: &str) -> Result<Value, Refusal> {
        let (subscription, _) = self.load(id).await?.ok_or(Refusal::NotFound)?;
        Ok(self.describe(id, &subscription))
    }

    /// What a subscription follows, and how it is woken.
    ///
    /// # Errors
    /// When there is none, or the database fails.
    pub async fn configuration(&self, id: &str) -> Result<SubscriptionConfiguration, Refusal> {
        let (subscription, _) = self.load(id).await?.ok_or(Refusal::NotFound)?;
        Ok(subscription.configuration)
    }

    /// Removes a subscription, if there is one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete(&self, id: &str) -> Result<(), Refusal> {
        self.store.delete_subscription(id).await?;
        self.note_change(true);
        Ok(())
    }

    /// Links streams by name.
    ///
    /// # Errors
    /// When there is no such subscription, it follows too many, or the database fails.
    pub async fn link(&self, id: &str, paths: Vec<StreamPath>) -> Result<(), Refusal> {
        let most = self.most_streams;
        if paths.len() > most {
            return Err(TOO_MANY_STREAMS);
        }
        let mut tails = Vec::new();
        for path in paths {
            let tail = self.tail(&path).await?.end;
            tails.push((path, tail));
        }
        self.change(id, |subscription, _, _| {
            for (path, tail) in &tails {
                subscription.link(path, true, *tail, most)?;
            }
            Ok(())
        })
        .await?;
        // Something may have been appended between the look-up of the tails and here.
        self.look_at(id, Some(Vec::new()));
        Ok(())
    }

    /// Unlinks a stream that was linked by name.
    ///
    /// # Errors
    /// When there is no such subscription, or the database fails.
    pub async fn unlink(&self, id: &str, path: &StreamPath) -> Result<(), Refusal> {
        self.change(id, |subscription, _, _| {
            subscription.unlink(path);
            Ok(())
        })
        .await
        .map(|_| ())
    }

    /// Assigns the waiting work to a worker.
    ///
    /// # Errors
    /// When another worker holds the subscription, no work waits, or the database fails.
    pub async fn claim(&self, id: &str, worker: &str) -> Result<Value, Refusal> {
        let (subscription, tails, ()) =
            self.change(id, |subscription, tails, now| subscription.claim(worker, tails, now)).await?;
        let wake_id = subscription.wake.as_ref().map(|wake| wake.id.clone());
        Ok(json!({
            "wake_id": wake_id,
            "generation": subscription.generation,
            "token": self.keys.load().token(id, subscription.generation, unix_millis()),
            "streams": subscription.describe_streams(Some(&tails)),
            "lease_ttl_ms": subscription.configuration.lease_ttl_ms,
        }))
    }

    /// Takes a worker's acknowledgement; returns whether there is more to do.
    ///
    /// # Errors
    /// When it is not for the current wake, or the database fails.
    pub async fn acknowledge(
        self: &Arc<Self>,
        id: &str,
        token: &str,
        request: &WakeRequest,
        by: Delivery,
    ) -> Result<bool, Refusal> {
        self.authorised(id, token, by).await?;
        let generation = self.keys.load().generation(id, token, unix_millis())?;
        let (.., woken) = self
            .change(id, |subscription, tails, now| subscription.acknowledge(generation, request, tails, now))
            .await?;
        if woken {
            self.announce(id).await;
        }
        Ok(woken)
    }

    /// Releases work that was not done.
    ///
    /// # Errors
    /// When it is not the work of the current wake, or the database fails.
    pub async fn release(
        self: &Arc<Self>,
        id: &str,
        token: &str,
        request: &WakeRequest,
    ) -> Result<(), Refusal> {
        self.authorised(id, token, Delivery::PullWake).await?;
        let generation = self.keys.load().generation(id, token, unix_millis())?;
        let (.., woken) = self
            .change(id, |subscription, tails, now| subscription.release(generation, request, tails, now))
            .await?;
        if woken {
            self.announce(id).await;
        }
        Ok(())
    }

    /// Checks that the subscription exists, that a token was sent, and that the subscription is of this type.
    async fn authorised(&self, id: &str, token: &str, by: Delivery) -> Result<(), Refusal> {
        let (subscription, _) = self.load(id).await?.ok_or(Refusal::NotFound)?;
        if token.is_empty() {
            return Err(Refusal::TokenInvalid);
        }
        match subscription.configuration.delivery() {
            delivery if delivery == by => Ok(()),
            Delivery::Webhook => Err(Refusal::Invalid("the subscription is not of type pull-wake".into())),
            Delivery::PullWake => Err(Refusal::Invalid("the subscription is not of type webhook".into())),
        }
    }

    async fn load(&self, id: &str) -> Result<Option<(Subscription, i64)>, StorageError> {
        let Some(found) = self.store.subscription(id).await? else { return Ok(None) };
        parse(&found).map(|subscription| Some((subscription, found.version)))
    }

    async fn save(
        &self,
        id: &str,
        subscription: &Subscription,
        before: Option<&Subscription>,
        version: i64,
    ) -> Result<bool, StorageError> {
        let state = serde_json::to_string(subscription).map_err(|_| StorageError::Unavailable)?;
        let due_at = subscription.due_at();
        let stored = StoredSubscription { id: id.into(), version, due_at, state };
        let saved = self.store.save_subscription(stored).await?;
        self.note_change(before.is_none_or(|before| subscription.changes_what_is_watched(before)));
        Ok(saved)
    }

    /// Notifies the watcher that a subscription was changed; `interests`: that it may follow other streams now.
    fn note_change(&self, interests: bool) {
        self.changed.send_modify(|revision| {
            revision.interests += u64::from(interests);
            revision.any += 1;
        });
    }

    /// Has the watcher look at a subscription, of whose streams these have moved; with `None`, at all subscriptions.
    fn look_at(&self, id: &str, moved: Option<Vec<StreamPath>>) {
        self.requested_looks.lock().unwrap_or_else(PoisonError::into_inner).add(id, moved);
        self.note_change(false);
    }

    /// Makes a change, and tries again for as long as another one comes first. Returns the resulting state, and the
    /// tails it saw.
    async fn change<T>(
        &self,
        id: &str,
        change: impl Fn(&mut Subscription, &Tails, i64) -> Result<T, Refusal>,
    ) -> Result<(Subscription, Tails, T), Refusal> {
        for _ in 0..ATTEMPTS {
            let (mut subscription, version) = self.load(id).await?.ok_or(Refusal::NotFound)?;
            let before = subscription.clone();
            let tails = self.tails(subscription.links()).await?;
            subscription.rebase(&tails);
            let result = change(&mut subscription, &tails, unix_millis())?;
            if subscription == before || self.save(id, &subscription, Some(&before), version).await? {
                return Ok((subscription, tails, result));
            }
        }
        Err(StorageError::Busy.into())
    }

    /// Announces a wake to the workers of the subscription. A wake that cannot be announced now is announced later: a
    /// webhook by its next attempt or the lease that ends, a wake event when it is due (see [`Subscription::due_at`]).
    async fn announce(self: &Arc<Self>, id: &str) {
        let Ok(Some((subscription, _))) = self.load(id).await else { return };
        match subscription.configuration.delivery() {
            Delivery::Webhook => self.clone().send(id.to_owned()),
            Delivery::PullWake => {
                if let Err(error) = self.write_wake(id, &subscription).await {
                    tracing::warn!(subscription = id, %error, "the state of a wake event could not be saved");
                }
            }
        }
    }

    /// Appends the event of the current wake to the wake stream, and notes how that went.
    async fn write_wake(&self, id: &str, subscription: &Subscription) -> Result<(), Refusal> {
        let (Some(wake), Some(path)) = (&subscription.wake, &subscription.configuration.wake_stream) else {
            return Ok(());
        };
        let event = json!({
            "type": "wake",
            "subscription_id": id,
            "stream": wake.stream,
            "generation": subscription.generation,
            "ts": unix_millis(),
        });
        let append = AppendStream {
            path: path.clone(),
            content_type: Some(ContentType::json()),
            payload: Payload { data: event.to_string().into(), messages: 1 },
            close: false,
            seq: None,
            producer: None,
        };
        let appended = self.streams.append(append).await;
        if let Err(error) = &appended {
            if subscription.attempts == 0 {
                tracing::warn!(subscription = id, stream = %path, %error, "a wake event could not be written; it is tried again");
            } else {
                tracing::debug!(subscription = id, stream = %path, %error, "a wake event could not be written");
            }
        }
        let jitter = rand::random_range(-0.2..=0.2);
        let noted = self.change(id, |subscription, _, now| {
            match appended {
                Ok(_) => subscription.announced(&wake.id),
                Err(_) => subscription.failed(&wake.id, now, jitter),
            }
            Ok(())
        });
        match noted.await {
            // It may have been deleted meanwhile.
            Ok(_) | Err(Refusal::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The subscription as it is shown.
    fn describe(&self, id: &str, subscription: &Subscription) -> Value {
        let configuration = &subscription.configuration;
        let webhook = configuration.webhook.as_ref().map(|url| {
            json!({
                "url": url,
                "signing": {
                    "alg": "ed25519",
                    "kid": self.keys.load().kid(),
                    "jwks_url": format!("{}/__ds/jwks.json", self.root),
                },
            })
        });
        json!({
            "id": id,
            "subscription_id": id,
            "type": configuration.delivery().name(),
            "pattern": configuration.pattern,
            "streams": subscription.describe_streams(None),
            "webhook": webhook,
            "wake_stream": configuration.wake_stream.as_ref().map(StreamPath::as_str),
            "lease_ttl_ms": configuration.lease_ttl_ms,
            "created_at": bourn_protocol::stored::lifetime::rfc3339(subscription.created_at),
            "status": if subscription.attempts > 0 { "failed" } else { "active" },
            "description": configuration.description,
        })
    }
}

/// The keys that the database has.
async fn keys(store: &dyn SubscriptionStore) -> Result<SubscriptionKeys, StorageError> {
    let secrets = match store.secrets().await {
        // Nothing can be subscribed to, nor appended, so keys that last for this process alone do no harm.
        Err(StorageError::ReadOnly) => Secrets { webhook: rand::random(), token: rand::random() },
        found => found?,
    };
    Ok(SubscriptionKeys::new(&secrets))
}

/// The streams that have moved according to these changes and match a pattern; `None` when that is not known.
fn moved(
    mut changes: broadcast::Receiver<Arc<[StreamChange]>>,
    pattern: Option<&str>,
) -> Option<Vec<StreamPath>> {
    let mut moved = Vec::new();
    loop {
        match changes.try_recv() {
            Ok(changes) => {
                for change in changes.iter() {
                    match change {
                        StreamChange::Moved { path, .. } => {
                            if pattern.is_some_and(|pattern| glob::matches(pattern, path.as_str())) {
                                moved.push(path.clone());
                            }
                        }
                        StreamChange::Deleted { .. } => {}
                        StreamChange::Unknown => return None,
                    }
                }
            }
            Err(broadcast::error::TryRecvError::Lagged(_)) => return None,
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {
                return Some(moved);
            }
        }
    }
}

/// Text as one segment of a URL's path.
fn segment(text: &str) -> String {
    const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, PLAIN).to_string()
}

fn parse(stored: &StoredSubscription) -> Result<Subscription, StorageError> {
    serde_json::from_str(&stored.state).map_err(|error| {
        tracing::error!(subscription = stored.id, %error, "a subscription's state cannot be read");
        StorageError::Unavailable
    })
}
