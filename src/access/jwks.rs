//! Keys that an issuer publishes: read at the start and every few minutes, and at once when a token names a key that is not
//! among them. The last good set stays while the issuer is away, for an hour. The crates that fetch key sets share no reading
//! between requests and have no cooldown, so that made-up key ids would reach the issuer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::Method;
use http::header::ACCEPT;
use http_body_util::Full;
use tokio::sync::{Notify, watch};
use url::Url;

use super::keys::KeySet;
use crate::outbound;

/// After how long the keys are read again.
const AGAIN: Duration = Duration::from_secs(5 * 60);
/// How long keys are used that could not be read again.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// How long reading may take, and a token wait for it.
const READING: Duration = Duration::from_secs(3);
/// The time between two readings for the sake of unknown keys.
const COOLDOWN: Duration = Duration::from_secs(30);
/// After how long a reading that failed is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Largest set, in bytes.
const SET_MAX: usize = 256 << 10;

/// How the keys of an issuer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysState {
    /// They are there: so many.
    Read(usize),
    /// They could not be read yet, or not for too long.
    Unavailable,
}

struct HeldKeys {
    set: Arc<KeySet>,
    read: Instant,
}

/// Where the keys of one issuer come from.
pub(super) struct KeySource {
    iss: String,
    url: Url,
    held: ArcSwapOption<HeldKeys>,
    /// Asks for a reading.
    wanted: Notify,
    /// Readings that are over, whatever came of them.
    readings: watch::Sender<u64>,
    /// When a reading was last asked for the sake of an unknown key, and how many were over then.
    asked: Mutex<Option<(Instant, u64)>>,
    /// Raised when the keys change.
    version: Arc<AtomicU64>,
}

impl KeySource {
    pub(super) fn new(iss: &str, url: Url, version: Arc<AtomicU64>) -> KeySource {
        KeySource {
            iss: iss.to_owned(),
            url,
            held: ArcSwapOption::empty(),
            wanted: Notify::new(),
            readings: watch::Sender::new(0),
            asked: Mutex::new(None),
            version,
        }
    }

    /// The keys, if they may still be used.
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        self.held.load().as_ref().filter(|held| held.read.elapsed() < KEPT).map(|held| held.set.clone())
    }

    pub(super) fn state(&self) -> KeysState {
        self.keys().map_or(KeysState::Unavailable, |keys| KeysState::Read(keys.len()))
    }

    /// Waits for the keys to be read again, unless that was done a moment ago.
    pub(super) async fn refreshed(&self) {
        let mut readings = self.readings.subscribe();
        let over = *readings.borrow_and_update();
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            match *asked {
                // It is under way.
                Some((_, before)) if before == over => {}
                Some((when, _)) if when.elapsed() < COOLDOWN => return,
                _ => {
                    *asked = Some((Instant::now(), over));
                    self.wanted.notify_one();
                }
            }
        }
        // Either way the keys are looked at again.
        let _ = tokio::time::timeout(READING, readings.changed()).await;
    }

    /// Reads the keys again and again; does not end.
    pub(super) async fn run(&self) {
        let mut retry = RETRY.0;
        loop {
            let read = tokio::time::timeout(READING, Box::pin(self.read())).await;
            let wait = match read.unwrap_or_else(|_| Err("it took too long".into())) {
                Ok(set) => {
                    retry = RETRY.0;
                    self.hold(set);
                    AGAIN
                }
                Err(reason) => {
                    tracing::warn!(issuer = self.iss, reason, "the keys of an issuer cannot be read");
                    metrics::counter!("bourn_jwks_readings_total", "outcome" => "failed").increment(1);
                    let wait = retry;
                    retry = (retry * 2).min(RETRY.1);
                    wait
                }
            };
            self.readings.send_modify(|over| *over += 1);
            let wait = wait.mul_f64(rand::random_range(0.9..=1.1));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    fn hold(&self, set: KeySet) {
        metrics::counter!("bourn_jwks_readings_total", "outcome" => "read").increment(1);
        let same = self.held.load().as_ref().is_some_and(|held| *held.set == set);
        self.held.store(Some(Arc::new(HeldKeys { set: Arc::new(set), read: Instant::now() })));
        if !same {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    async fn read(&self) -> Result<KeySet, String> {
        let request = outbound::request(Method::GET, &self.url)
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .body(Full::default())
            .map_err(|error| error.to_string())?;
        // The operator has named the URL, so it may lead inside.
        let answer = outbound::exchange(&self.url, request, |_| true, SET_MAX).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if !answer.status.is_success() {
            return Err(format!("it was answered with {}", answer.status.as_u16()));
        }
        let body = answer.body.ok_or_else(|| format!("it has more than {SET_MAX} bytes, or broke off"))?;
        let set = KeySet::of_jwks(&body)?;
        if set.len() == 0 { Err("it has no key that can be used".into()) } else { Ok(set) }
    }
}
