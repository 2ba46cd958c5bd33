//! Subscriptions to stored streams (Durable Streams protocol, sections 6 and 7): cursors that wake workers, by
//! webhook or through a stream of wakes. [`state`] says what a subscription is and how it changes, without I/O;
//! [`Subscriptions`] applies that to the database, each change only to the state it was made from, so that any number of
//! servers may do it at once; [`watch`] does what time and other streams' appends ask for; [`webhook`] sends.

mod address;
mod keys;
mod state;
mod watch;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bourn_protocol::stored::{Payload, glob};
use bourn_protocol::{ContentType, StreamOffset, StreamPath};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::storage::streams::{AppendStream, FindError, Secrets, StoredSubscription};
use crate::storage::{Storage, StorageError};
pub use address::check as check_url;
use keys::Keys;
pub use state::{Configuration, Delivery, Refusal, Subscription, WakeRequest};

/// How often a change is made anew because another one came first.
const ATTEMPTS: usize = 32;
/// Streams that are listed at once.
const LIST_PAGE: usize = 1_000;

/// The subscriptions of one database.
pub struct Subscriptions {
    storage: Arc<dyn Storage>,
    keys: Keys,
    /// Where the streams are reached, `https://example.com/v1/stream`.
    root: String,
    most: usize,
    most_streams: usize,
    sender: webhook::Sender,
    /// Places for webhooks on their way.
    sending: Arc<Semaphore>,
    /// The webhooks themselves, and what ends them when the server stops.
    tasks: TaskTracker,
    ended: CancellationToken,
    /// Rung when a subscription has changed: what is due next may be something else.
    changed: Notify,
}

/// Where the linked streams end.
type Tails = BTreeMap<StreamPath, StreamOffset>;

fn unix_millis() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

impl Subscriptions {
    /// The subscriptions of a database.
    ///
    /// # Errors
    /// When the database cannot give its keys.
    pub async fn open(
        storage: Arc<dyn Storage>,
        public_url: &str,
        limits: &Limits,
    ) -> Result<Subscriptions, StorageError> {
        let secrets = match storage.secrets().await {
            // Nothing can be subscribed to, nor appended: keys for this one life of the server do no harm.
            Err(StorageError::ReadOnly) => Secrets { webhook: rand::random(), token: rand::random() },
            found => found?,
        };
        let keys = Keys::new(&secrets);
        Ok(Subscriptions {
            storage,
            keys,
            root: format!("{public_url}/v1/stream"),
            most: limits.subscriptions,
            most_streams: limits.subscription_streams,
            sender: webhook::Sender::new(limits.webhook_allow_private, limits.webhook_timeout.get()),
            sending: Arc::new(Semaphore::new(limits.webhooks)),
            tasks: TaskTracker::new(),
            ended: CancellationToken::new(),
            changed: Notify::new(),
        })
    }

    /// The public keys that webhooks are verified with.
    #[must_use]
    pub fn jwks(&self) -> Value {
        self.keys.jwks()
    }

    /// Makes a subscription, or finds it there as asked; says whether it is new.
    ///
    /// # Errors
    /// When there is another one of that id, too many, or the database fails.
    pub async fn create(&self, id: &str, wanted: Configuration) -> Result<(Value, bool), Refusal> {
        if let Some((found, _)) = self.load(id).await? {
            return match found.configuration == wanted {
                true => Ok((self.describe(id, &found), false)),
                false => Err(Refusal::Exists),
            };
        }
        if self.storage.subscriptions().await?.len() >= self.most {
            return Err(Refusal::TooMany("the server has as many subscriptions as it takes"));
        }
        let mut paths: Vec<(StreamPath, bool)> =
            wanted.streams.iter().cloned().map(|path| (path, true)).collect();
        if let Some(pattern) = &wanted.pattern {
            let mut after = None;
            loop {
                let page = self.storage.list_streams(after.as_ref(), LIST_PAGE).await?;
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
            // What is there already has been seen.
            let tail = self.tail(&path).await?;
            subscription.link(&path, explicit, tail, self.most_streams)?;
        }
        match self.save(id, &subscription, 0).await? {
            true => Ok((self.describe(id, &subscription), true)),
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

    /// Removes a subscription, if there is one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete(&self, id: &str) -> Result<(), Refusal> {
        self.storage.delete_subscription(id).await?;
        self.changed.notify_waiters();
        Ok(())
    }

    /// Links streams by name.
    ///
    /// # Errors
    /// When there is no such subscription, it follows too many, or the database fails.
    pub async fn link(&self, id: &str, paths: Vec<StreamPath>) -> Result<(), Refusal> {
        let mut tails = Vec::new();
        for path in paths {
            let tail = self.tail(&path).await?;
            tails.push((path, tail));
        }
        let most = self.most_streams;
        self.change(id, |subscription, _, _| {
            for (path, tail) in &tails {
                subscription.link(path, true, *tail, most)?;
            }
            Ok(())
        })
        .await
        .map(|_| ())
    }

    /// Takes back that a stream was linked by name.
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

    /// Gives the work that waits to a worker.
    ///
    /// # Errors
    /// When somebody has it, there is none, or the database fails.
    pub async fn claim(&self, id: &str, worker: &str) -> Result<Value, Refusal> {
        let (subscription, tails, ()) =
            self.change(id, |subscription, tails, now| subscription.claim(worker, tails, now)).await?;
        let wake_id = subscription.wake.as_ref().map(|wake| wake.id.clone());
        Ok(json!({
            "wake_id": wake_id,
            "generation": subscription.generation,
            "token": self.keys.token(id, subscription.generation, unix_millis()),
            "streams": subscription.describe_streams(Some(&tails)),
            "lease_ttl_ms": subscription.configuration.lease_ttl_ms,
        }))
    }

    /// Takes a worker's word on what it has done; says whether there is more.
    ///
    /// # Errors
    /// When the word is not that of the current wake, or the database fails.
    pub async fn acknowledge(
        self: &Arc<Self>,
        id: &str,
        token: &str,
        request: &WakeRequest,
        by: Delivery,
    ) -> Result<bool, Refusal> {
        self.authorised(id, token, by).await?;
        let generation = self.keys.generation(id, token, unix_millis())?;
        let (.., woken) = self
            .change(id, |subscription, tails, now| subscription.acknowledge(generation, request, tails, now))
            .await?;
        if woken {
            self.announce(id).await;
        }
        Ok(woken)
    }

    /// Gives work back undone.
    ///
    /// # Errors
    /// When it is not that of the current wake, or the database fails.
    pub async fn release(
        self: &Arc<Self>,
        id: &str,
        token: &str,
        request: &WakeRequest,
    ) -> Result<(), Refusal> {
        self.authorised(id, token, Delivery::PullWake).await?;
        let generation = self.keys.generation(id, token, unix_millis())?;
        let (.., woken) = self
            .change(id, |subscription, tails, now| subscription.release(generation, request, tails, now))
            .await?;
        if woken {
            self.announce(id).await;
        }
        Ok(())
    }

    /// Whether the subscription is there and takes what comes this way.
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
        let Some(found) = self.storage.subscription(id).await? else { return Ok(None) };
        parse(&found).map(|subscription| Some((subscription, found.version)))
    }

    async fn save(&self, id: &str, subscription: &Subscription, version: i64) -> Result<bool, StorageError> {
        let state = serde_json::to_string(subscription).map_err(|_| StorageError::Unavailable)?;
        let due_at = subscription.due_at();
        let stored = StoredSubscription { id: id.into(), version, due_at, state };
        let saved = self.storage.save_subscription(stored).await?;
        self.changed.notify_waiters();
        Ok(saved)
    }

    /// Makes a change, anew for as long as another one comes first. Gives the state it came to, and the tails it saw.
    async fn change<T>(
        &self,
        id: &str,
        change: impl Fn(&mut Subscription, &Tails, i64) -> Result<T, Refusal>,
    ) -> Result<(Subscription, Tails, T), Refusal> {
        for _ in 0..ATTEMPTS {
            let (mut subscription, version) = self.load(id).await?.ok_or(Refusal::NotFound)?;
            let before = subscription.clone();
            let tails = self.tails(&subscription).await?;
            let result = change(&mut subscription, &tails, unix_millis())?;
            if subscription == before || self.save(id, &subscription, version).await? {
                return Ok((subscription, tails, result));
            }
        }
        Err(StorageError::Busy.into())
    }

    async fn tail(&self, path: &StreamPath) -> Result<StreamOffset, StorageError> {
        match self.storage.find_stream(path).await {
            Ok(stream) => Ok(stream.offset(stream.tail)),
            Err(FindError::Missing | FindError::Gone) => Ok(StreamOffset::START),
            Err(FindError::Storage(error)) => Err(error),
        }
    }

    async fn tails(&self, subscription: &Subscription) -> Result<Tails, StorageError> {
        let mut tails = Tails::new();
        for path in subscription.links() {
            tails.insert(path.clone(), self.tail(&path).await?);
        }
        Ok(tails)
    }

    /// Tells whoever works for a subscription that it was woken. It is told again if this fails: by the lease that ends,
    /// or at the next start.
    async fn announce(self: &Arc<Self>, id: &str) {
        let loaded = self.load(id).await;
        let Ok(Some((subscription, _))) = loaded else { return };
        match subscription.configuration.delivery() {
            Delivery::Webhook => self.clone().send(id.to_owned()),
            Delivery::PullWake => self.write_wake(id, &subscription).await,
        }
    }

    async fn write_wake(&self, id: &str, subscription: &Subscription) {
        let (Some(wake), Some(path)) = (&subscription.wake, &subscription.configuration.wake_stream) else {
            return;
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
        if let Err(error) = self.storage.append(append).await {
            tracing::warn!(subscription = id, stream = %path, %error, "a wake could not be written");
        }
    }

    /// What a subscription is, as it is shown.
    fn describe(&self, id: &str, subscription: &Subscription) -> Value {
        let configuration = &subscription.configuration;
        let webhook = configuration.webhook.as_ref().map(|url| {
            json!({
                "url": url,
                "signing": {
                    "alg": "ed25519",
                    "kid": self.keys.kid(),
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
