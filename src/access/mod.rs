//! Who may do what. A request shows a token; [`token`] verifies it with the keys of its issuer ([`keys`], [`jwks`]); what it
//! claims becomes [`Rights`] by the [`policy`] of the configuration. What is read and written takes a permit
//! ([`Permitted`], [`WritePermit`]) that only rights give out: code that forgets to ask does not compile.
//!
//! The URL alone says what is read, and rights only say yes or no: they never narrow a stream, so that one cached
//! chunk serves all that may have it.

mod claims;
mod jwks;
mod keys;
mod permits;
mod policy;
mod rights;
mod token;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moka::sync::Cache;

use crate::config::{AccessConfig, AccessMode, Anonymous, EntityConfig};
pub use jwks::KeysState;
pub use permits::{Guarded, Permitted, Sealed, WritePermit};
use policy::Policy;
pub use rights::{Denied, Right, Rights, StreamRight};
use token::Issuer;

/// Verified tokens that are remembered.
const KNOWN_TOKENS: u64 = 100_000;
/// How long a verified token is remembered without being verified again.
const KNOWN_FOR: Duration = Duration::from_secs(5 * 60);

/// Why access control could not be set up; the text is for the operator's terminal.
#[derive(Debug, thiserror::Error)]
#[error("issuer `{iss}`: {reason}")]
pub struct AccessSetupError {
    iss: String,
    reason: String,
}

/// Why a request is not let in with the token that it shows, or without one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none, and there is no role for requests without one.
    #[error("send a token: Authorization: Bearer TOKEN")]
    Missing,
    /// It is not one of this server's issuers', or claims what it may not.
    #[error("the token is not accepted: {0}")]
    Invalid(&'static str),
    /// Its time is over.
    #[error("the token has expired; get a new one")]
    Expired,
    /// Its issuer's keys could not be read, or not for too long.
    #[error("the keys of the token's issuer cannot be read at the moment; try again")]
    KeysUnavailable,
}

#[derive(Clone)]
struct Known {
    rights: Arc<Rights>,
    version: u64,
}

/// What the server knows of those who use it.
pub struct Access {
    policy: Arc<Policy>,
    /// The rights of a request without a token, where it has some.
    without_token: Option<Arc<Rights>>,
    /// The rights of requests that are not asked for a token: those without one, or none.
    at_least: Arc<Rights>,
    needs_token: bool,
    issuers: Vec<Issuer>,
    known: Cache<Box<str>, Known, foldhash::fast::RandomState>,
    /// Raised when keys change: what was verified before is verified again.
    version: Arc<AtomicU64>,
    cookie: String,
    origins: Vec<String>,
}

impl Access {
    /// Access control as it is configured, for these entity types. Keys that are read over the network are read by [`Access::readers`].
    ///
    /// # Errors
    /// When a file with a key cannot be read, or holds none.
    pub fn open(config: &AccessConfig, entities: &[EntityConfig]) -> Result<Access, AccessSetupError> {
        let policy = Arc::new(Policy::new(config, entities));
        let version = Arc::new(AtomicU64::new(0));
        let issuers = config.issuers.iter().map(|issuer| Issuer::open(issuer, config, &version));
        let issuers = issuers.collect::<Result<Vec<_>, _>>()?;
        let without_token = match (config.mode, &config.anonymous) {
            (AccessMode::Open, _) => Some(Rights::of_everybody(policy.clone())),
            (AccessMode::Token, Anonymous::Role(name)) => Rights::of_anonymous(policy.clone(), name),
            (AccessMode::Token, Anonymous::None) => None,
        };
        let without_token = without_token.map(Arc::new);
        let at_least = without_token.clone();
        Ok(Access {
            at_least: at_least.unwrap_or_else(|| Arc::new(Rights::of_nobody(policy.clone()))),
            policy,
            without_token,
            needs_token: config.mode == AccessMode::Token,
            issuers,
            known: Cache::builder()
                .max_capacity(KNOWN_TOKENS)
                .time_to_live(KNOWN_FOR)
                .build_with_hasher(foldhash::fast::RandomState::default()),
            version,
            cookie: config.cookie.clone(),
            origins: config.origins.clone(),
        })
    }

    /// Whether tokens are asked for at all.
    #[must_use]
    pub fn is_controlled(&self) -> bool {
        self.needs_token
    }

    /// The name of the cookie that may carry a read's token; empty for none.
    #[must_use]
    pub fn cookie(&self) -> &str {
        &self.cookie
    }

    /// The origins whose pages may send that cookie.
    #[must_use]
    pub fn origins(&self) -> &[String] {
        &self.origins
    }

    /// The rights of a request that shows no token.
    ///
    /// # Errors
    /// When it has none.
    pub fn without_token(&self) -> Result<&Arc<Rights>, TokenError> {
        self.without_token.as_ref().ok_or(TokenError::Missing)
    }

    /// The rights of requests that are not asked for a token: those without one, or none.
    #[must_use]
    pub fn at_least(&self) -> &Arc<Rights> {
        &self.at_least
    }

    /// The rights of a token that was verified a while ago, if they still hold.
    #[must_use]
    pub fn known(&self, token: &str) -> Option<Arc<Rights>> {
        let known = self.known.get(token)?;
        let fresh =
            known.version == self.version.load(Ordering::Acquire) && known.rights.is_valid_at(unix_secs());
        fresh.then_some(known.rights)
    }

    /// Verifies a token; what it may do.
    ///
    /// # Errors
    /// When it is not accepted, or cannot be verified now.
    pub async fn verify(&self, token: &str) -> Result<Arc<Rights>, TokenError> {
        if let Some(rights) = self.known(token) {
            return Ok(rights);
        }
        // Before the keys are looked at: if they change meanwhile, it is verified again.
        let version = self.version.load(Ordering::Acquire);
        let verified = token::verify(token, &self.issuers, &self.policy, unix_secs()).await;
        let outcome = match &verified {
            Ok(_) => "accepted",
            Err(TokenError::Expired) => "expired",
            Err(TokenError::KeysUnavailable) => "no_keys",
            Err(_) => "refused",
        };
        metrics::counter!("bourn_tokens_total", "outcome" => outcome).increment(1);
        let rights = Arc::new(verified?);
        self.known.insert(token.into(), Known { rights: rights.clone(), version });
        Ok(rights)
    }

    /// What keeps the keys of issuers up to date: a task for each that publishes some. They do not end.
    pub fn readers(&self) -> impl Iterator<Item = impl Future<Output = ()> + Send + use<>> {
        let sources = self.issuers.iter().filter_map(Issuer::source);
        sources.cloned().map(|source| async move { source.run().await })
    }

    /// The issuers whose keys are read over the network, with how that stands.
    #[must_use]
    pub fn keys(&self) -> Vec<(&str, KeysState)> {
        self.issuers.iter().filter_map(|issuer| Some((issuer.iss(), issuer.source()?.state()))).collect()
    }
}

/// The time by which tokens are valid.
fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
