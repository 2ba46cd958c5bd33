//! What a subscription is, and how it changes. A wake begins when something waits and no worker has it; its generation
//! fences off earlier workers. No I/O, no clock: the caller passes the ends of the streams and the time.

use std::collections::BTreeMap;

use bourn_protocol::ids::random_text;
use bourn_protocol::{StreamOffset, StreamPath};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::paths::{many, maybe};
use super::tails::Tails;
use crate::storage_error::StorageError;

/// The longest wait between two attempts to announce a wake, in milliseconds.
const RETRY_MOST: i64 = 60_000;
/// After this time, in milliseconds, a wake event is written again unless the server that began the wake has noted that
/// it was written: that server may have died in between.
const ANNOUNCE_AGAIN: i64 = 10_000;

/// Why a request about a subscription is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The subscription does not exist.
    #[error("there is no such subscription")]
    NotFound,
    /// The subscription exists with another configuration.
    #[error("the subscription exists with another configuration; delete it first, or choose another id")]
    Exists,
    /// The request breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The webhook may not go there.
    #[error("{0}")]
    UrlRejected(&'static str),
    /// The token is none of ours.
    #[error("the token is not one for this subscription; send it as Authorization: Bearer …")]
    TokenInvalid,
    /// The token's time is over.
    #[error("the token has expired")]
    TokenExpired,
    /// The wake is over.
    #[error("the wake is not the current one: it was done, given back, or its lease has ended")]
    Fenced,
    /// Another worker has it.
    #[error("another worker holds the subscription")]
    Claimed {
        /// That worker.
        holder: String,
        /// The generation of the wake it holds.
        generation: u64,
    },
    /// There is nothing to do.
    #[error("nothing waits to be worked on")]
    NoWork,
    /// No subscription could have acknowledged this offset.
    #[error("{0}")]
    Ack(&'static str),
    /// There are as many as there may be.
    #[error("{0}; delete some, or try again later")]
    TooMany(&'static str),
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// How workers learn of a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// By a request to their URL.
    Webhook,
    /// By a message in a stream, for which they race.
    PullWake,
}

impl Delivery {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Delivery::Webhook => "webhook",
            Delivery::PullWake => "pull-wake",
        }
    }
}

/// The configuration that a subscription was made with; to ask for the same again is no conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionConfiguration {
    /// The pattern of the streams that it follows.
    pub pattern: Option<String>,
    /// The streams that it follows by name; sorted.
    #[serde(with = "many")]
    pub streams: Vec<StreamPath>,
    /// Where webhooks go.
    pub webhook: Option<String>,
    /// Where wakes are written, if there is no webhook.
    #[serde(with = "maybe")]
    pub wake_stream: Option<StreamPath>,
    /// How long a worker may be silent.
    pub lease_ttl_ms: u64,
    /// What it is for.
    pub description: Option<String>,
}

impl SubscriptionConfiguration {
    /// How workers learn of a wake.
    #[must_use]
    pub fn delivery(&self) -> Delivery {
        if self.webhook.is_some() { Delivery::Webhook } else { Delivery::PullWake }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Link {
    explicit: bool,
    glob: bool,
    /// All before this place is done.
    acked: String,
}

/// A wake that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// Its id.
    pub id: String,
    /// The stream that something waits in.
    pub stream: String,
    /// Where the streams ended when it began.
    tails: BTreeMap<String, String>,
}

/// A subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Its configuration.
    pub configuration: SubscriptionConfiguration,
    /// When it was made, in Unix milliseconds.
    pub created_at: i64,
    links: BTreeMap<String, Link>,
    /// Counts its wakes.
    pub generation: u64,
    /// The wake that is under way.
    pub wake: Option<Wake>,
    holder: Option<String>,
    lease_until: Option<i64>,
    /// Failed attempts to announce the current wake.
    pub attempts: u32,
    next_attempt_at: Option<i64>,
}

/// A worker's request about a wake.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct WakeRequest {
    /// The wake's id.
    #[serde(default)]
    pub wake_id: String,
    /// The wake's generation.
    #[serde(default)]
    pub generation: u64,
    /// What the worker has done.
    #[serde(default)]
    pub acks: Vec<Ack>,
    /// Whether the worker has finished.
    #[serde(default)]
    pub done: bool,
}

/// How far the worker has done one stream.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ack {
    /// The stream.
    #[serde(alias = "path")]
    pub stream: String,
    /// All before this place is done.
    pub offset: String,
}

impl Subscription {
    /// A new one.
    #[must_use]
    pub fn new(configuration: SubscriptionConfiguration, now: i64) -> Subscription {
        Subscription {
            configuration,
            created_at: now,
            links: BTreeMap::new(),
            generation: 0,
            wake: None,
            holder: None,
            lease_until: None,
            attempts: 0,
            next_attempt_at: None,
        }
    }

    /// The streams it follows.
    pub fn links(&self) -> impl Iterator<Item = StreamPath> {
        self.links.keys().filter_map(|path| StreamPath::new(path).ok())
    }

    /// Whether it follows a stream.
    #[must_use]
    pub fn follows(&self, path: &StreamPath) -> bool {
        self.links.contains_key(path.as_str())
    }

    /// Follows a stream from a place, if it does not yet.
    ///
    /// # Errors
    /// When it follows as many as it may.
    pub fn link(
        &mut self,
        path: &StreamPath,
        explicit: bool,
        from: StreamOffset,
        most: usize,
    ) -> Result<(), Refusal> {
        if !self.links.contains_key(path.as_str()) && self.links.len() >= most {
            return Err(super::TOO_MANY_STREAMS);
        }
        let new = || Link { explicit: false, glob: false, acked: from.to_string() };
        let link = self.links.entry(path.as_str().to_owned()).or_insert_with(new);
        link.explicit |= explicit;
        link.glob |= !explicit;
        Ok(())
    }

    /// Unlinks a stream by name; a pattern that matches it still does.
    pub fn unlink(&mut self, path: &StreamPath) {
        if let Some(link) = self.links.get_mut(path.as_str()) {
            link.explicit = false;
            if !link.glob {
                self.links.remove(path.as_str());
            }
        }
    }

    /// Forgets a stream that is gone.
    pub fn forget(&mut self, path: &StreamPath) {
        self.links.remove(path.as_str());
    }

    /// Resets the acknowledged places that are not of these streams. A place of another stream says nothing of what was
    /// done of this one.
    pub fn rebase(&mut self, tails: &Tails) {
        for (path, link) in &mut self.links {
            let tail = StreamPath::new(path).ok().and_then(|path| tails.get(&path));
            // A missing stream may come back, as the same or as another one.
            let Some(tail) = tail.filter(|tail| tail.exists()) else { continue };
            let acked = link.acked.parse().unwrap_or(StreamOffset::START);
            if !tail.owns(acked) {
                link.acked = tail.common(acked).to_string();
            }
        }
    }

    /// The first stream in which something waits.
    fn pending(&self, tails: &Tails) -> Option<String> {
        let waits = |(path, link): &(&String, &Link)| {
            let tail = StreamPath::new(path).ok().and_then(|path| tails.get(&path));
            tail.is_some_and(|tail| tail.end.to_string() > link.acked)
        };
        self.links.iter().find(waits).map(|(path, _)| path.clone())
    }

    /// Begins a wake, if something waits and none is under way; returns whether it did.
    pub fn wake(&mut self, tails: &Tails, now: i64) -> bool {
        if self.wake.is_some() || self.holder.is_some() {
            return false;
        }
        let Some(stream) = self.pending(tails) else { return false };
        self.generation += 1;
        let snapshot = tails.iter().map(|(path, tail)| (path.to_string(), tail.end.to_string())).collect();
        self.wake = Some(Wake { id: format!("w_{}", random_text(20)), stream, tails: snapshot });
        self.attempts = 0;
        self.next_attempt_at = None;
        match self.configuration.delivery() {
            Delivery::Webhook => self.extend_lease(now),
            Delivery::PullWake => self.next_attempt_at = Some(now.saturating_add(ANNOUNCE_AGAIN)),
        }
        true
    }

    fn extend_lease(&mut self, now: i64) {
        self.lease_until = Some(now.saturating_add(self.configuration.lease_ttl_ms.cast_signed()));
    }

    fn end(&mut self) {
        self.wake = None;
        self.holder = None;
        self.lease_until = None;
        self.attempts = 0;
        self.next_attempt_at = None;
    }

    /// Assigns the work to a worker.
    ///
    /// # Errors
    /// When another worker has it, or nothing waits.
    pub fn claim(&mut self, worker: &str, tails: &Tails, now: i64) -> Result<(), Refusal> {
        if self.configuration.delivery() != Delivery::PullWake {
            return Err(Refusal::Invalid("the subscription is not of type pull-wake".into()));
        }
        self.expire(now);
        if let Some(holder) = &self.holder {
            return Err(Refusal::Claimed { holder: holder.clone(), generation: self.generation });
        }
        if self.pending(tails).is_none() {
            return Err(Refusal::NoWork);
        }
        self.wake(tails, now);
        self.holder = Some(worker.to_owned());
        self.attempts = 0;
        self.next_attempt_at = None;
        self.extend_lease(now);
        Ok(())
    }

    fn fence(&self, generation: u64, request: &WakeRequest) -> Result<(), Refusal> {
        let current = self.wake.as_ref().is_some_and(|wake| wake.id == request.wake_id);
        match current && generation == self.generation && request.generation == self.generation {
            true => Ok(()),
            false => Err(Refusal::Fenced),
        }
    }

    /// Takes a worker's acknowledgement; returns whether the next wake has begun.
    ///
    /// # Errors
    /// When it is not for the current wake, or acknowledges an impossible offset.
    pub fn acknowledge(
        &mut self,
        generation: u64,
        request: &WakeRequest,
        tails: &Tails,
        now: i64,
    ) -> Result<bool, Refusal> {
        self.expire(now);
        self.fence(generation, request)?;
        for ack in &request.acks {
            let unknown = Refusal::Ack("an acknowledged stream is none of the subscription's");
            let path = StreamPath::new(ack.stream.trim_matches('/')).map_err(|_| unknown.clone())?;
            let link = self.links.get_mut(path.as_str()).ok_or(unknown)?;
            let offset: StreamOffset = ack
                .offset
                .parse()
                .map_err(|_| Refusal::Ack("an acknowledged offset is not one the server gave"))?;
            let tail = tails.get(&path).cloned().unwrap_or_default();
            if ack.offset < link.acked {
                return Err(Refusal::Ack("an acknowledged offset lies before the one acknowledged last"));
            }
            if offset.position > tail.end.position {
                return Err(Refusal::Ack("an acknowledged offset lies past the stream's tail"));
            }
            if !tail.owns(offset) {
                return Err(Refusal::Ack("an acknowledged offset is not one of the stream as it is now"));
            }
            link.acked.clone_from(&ack.offset);
        }
        self.extend_lease(now);
        if !request.done {
            return Ok(false);
        }
        self.end();
        Ok(self.wake(tails, now))
    }

    /// Releases work that was not done; returns whether the next wake has begun.
    ///
    /// # Errors
    /// When it is not the work of the current wake.
    pub fn release(
        &mut self,
        generation: u64,
        request: &WakeRequest,
        tails: &Tails,
        now: i64,
    ) -> Result<bool, Refusal> {
        self.expire(now);
        self.fence(generation, request)?;
        self.end();
        Ok(self.wake(tails, now))
    }

    /// Ends a lease whose time is over; returns whether it did.
    pub fn expire(&mut self, now: i64) -> bool {
        let over = self.lease_until.is_some_and(|until| until <= now);
        if over {
            self.end();
        }
        over
    }

    /// Extends the lease of a webhook that still waits to be sent, so that its wake does not end before it was sent.
    pub fn postpone(&mut self, now: i64, by_millis: i64) {
        let lease = self.configuration.lease_ttl_ms.cast_signed().max(by_millis);
        self.lease_until = Some(now.saturating_add(lease));
    }

    /// Whether the wake is to be announced again now; the next attempt is put off until this one's outcome is noted.
    pub fn retry(&mut self, now: i64) -> bool {
        let due = self.next_attempt_at.is_some_and(|at| at <= now);
        if due {
            // A webhook that never reports back is covered by its lease.
            self.next_attempt_at = match self.configuration.delivery() {
                Delivery::Webhook => None,
                Delivery::PullWake => Some(now.saturating_add(ANNOUNCE_AGAIN)),
            };
        }
        due
    }

    /// Whether the wake event could not be written, so that it is worth another attempt as soon as its stream changes.
    #[must_use]
    pub fn is_unannounced(&self) -> bool {
        self.attempts > 0 && self.next_attempt_at.is_some()
    }

    /// Whether the watcher must read it again: it follows other streams, or whether its wake events fail has changed.
    #[must_use]
    pub(super) fn changes_what_is_watched(&self, before: &Subscription) -> bool {
        !self.links.keys().eq(before.links.keys()) || self.is_unannounced() != before.is_unannounced()
    }

    /// Notes that the wake event was written.
    pub fn announced(&mut self, wake_id: &str) {
        if self.wake.as_ref().is_some_and(|wake| wake.id == wake_id) {
            self.attempts = 0;
            self.next_attempt_at = None;
        }
    }

    /// Notes that a webhook was answered; returns whether the next wake has begun.
    pub fn delivered(&mut self, wake_id: &str, done: bool, tails: &Tails, now: i64) -> bool {
        let Some(wake) = self.wake.clone().filter(|wake| wake.id == wake_id) else { return false };
        self.attempts = 0;
        self.next_attempt_at = None;
        if !done {
            return false;
        }
        for (path, tail) in wake.tails {
            if let Some(link) = self.links.get_mut(&path).filter(|link| link.acked < tail) {
                link.acked = tail;
            }
        }
        self.end();
        self.wake(tails, now)
    }

    /// Notes that an announcement failed: it is tried again later, and later each time. `jitter` is from -0.2 to 0.2.
    pub fn failed(&mut self, wake_id: &str, now: i64, jitter: f64) {
        if self.wake.as_ref().is_none_or(|wake| wake.id != wake_id) || self.holder.is_some() {
            return;
        }
        self.attempts = self.attempts.saturating_add(1);
        let base = 1_000_i64.saturating_mul(1 << (self.attempts - 1).min(16)).min(RETRY_MOST);
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "at most a minute")]
        let spread = (base as f64 * jitter) as i64;
        self.next_attempt_at = Some(now.saturating_add(base + spread));
    }

    /// When it is due to be looked at, if nothing else happens.
    #[must_use]
    pub fn due_at(&self) -> Option<i64> {
        [self.lease_until, self.next_attempt_at].into_iter().flatten().min()
    }

    /// Its streams, as they are shown; with their tails, where they matter.
    #[must_use]
    pub fn describe_streams(&self, tails: Option<&Tails>) -> Value {
        let shown = self.links.iter().map(|(path, link)| {
            let link_type = if link.explicit { "explicit" } else { "glob" };
            let mut shown = json!({ "path": path, "link_type": link_type, "acked_offset": link.acked });
            if let Some(tails) = tails {
                let tail = StreamPath::new(path).ok().and_then(|path| tails.get(&path));
                let end = tail.map(|tail| tail.end).unwrap_or_default().to_string();
                shown["has_pending"] = (end > link.acked).into();
                shown["tail_offset"] = end.into();
            }
            shown
        });
        shown.collect()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
