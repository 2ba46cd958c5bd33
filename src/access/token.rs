//! JSON Web Tokens (RFC 7519): whose a token is, whether its issuer has signed it, and what it claims.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, decode_header};

use super::claims::{NotNow, Object, Places, Validity};
use super::jwks::KeySource;
use super::keys::KeySet;
use super::policy::Policy;
use super::rights::Rights;
use super::{AccessSetupError, TokenError};
use crate::config::{AccessConfig, IssuerConfig};

/// Longest token, in bytes.
const TOKEN_MAX: usize = 16 << 10;

enum IssuerKeys {
    Fixed(Arc<KeySet>),
    Published(Arc<KeySource>),
}

/// An issuer of tokens.
pub(super) struct Issuer {
    iss: String,
    algorithms: Vec<Algorithm>,
    validity: Validity,
    places: Places,
    keys: IssuerKeys,
}

impl Issuer {
    pub(super) fn open(
        config: &IssuerConfig,
        access: &AccessConfig,
        version: &Arc<AtomicU64>,
    ) -> Result<Issuer, AccessSetupError> {
        let failed = |reason| AccessSetupError { iss: config.iss.clone(), reason };
        let keys = match (&config.jwks, &config.key_file, &config.secret_file) {
            (Some(url), ..) => {
                let url = url.parse().map_err(|error| failed(format!("`jwks`: {error}")))?;
                IssuerKeys::Published(Arc::new(KeySource::new(&config.iss, url, version.clone())))
            }
            (_, Some(file), _) => {
                IssuerKeys::Fixed(Arc::new(KeySet::of_key_file(file, &config.algorithms).map_err(failed)?))
            }
            (.., Some(file)) => IssuerKeys::Fixed(Arc::new(KeySet::of_secret_file(file).map_err(failed)?)),
            _ => return Err(failed("it has no keys".into())),
        };
        Ok(Issuer {
            iss: config.iss.clone(),
            algorithms: config.algorithms.clone(),
            validity: Validity {
                aud: config.aud.clone(),
                leeway_secs: access.leeway.get().as_secs(),
                lifetime_secs: access.max_token_lifetime.get().as_secs(),
            },
            places: Places {
                scopes: config.claims.scopes.clone(),
                role: config.claims.role.clone(),
                client_id: config.claims.client_id.clone(),
                subject_prefix: config.subject_prefix.clone(),
            },
            keys,
        })
    }

    pub(super) fn iss(&self) -> &str {
        &self.iss
    }

    pub(super) fn source(&self) -> Option<&Arc<KeySource>> {
        match &self.keys {
            IssuerKeys::Fixed(_) => None,
            IssuerKeys::Published(source) => Some(source),
        }
    }

    /// Keys among which that of a token is, if there is one.
    async fn keys_for(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Arc<KeySet>, TokenError> {
        let source = match &self.keys {
            IssuerKeys::Fixed(keys) => return Ok(keys.clone()),
            IssuerKeys::Published(source) => source,
        };
        match source.keys() {
            Some(keys) if keys.candidates(kid, algorithm).next().is_some() => Ok(keys),
            _ => {
                source.refreshed().await;
                source.keys().ok_or(TokenError::KeysUnavailable)
            }
        }
    }
}

/// Verifies a token and reads what it gives.
pub(super) async fn verify(
    token: &str,
    issuers: &[Issuer],
    policy: &Arc<Policy>,
    now: u64,
) -> Result<Rights, TokenError> {
    let refused = TokenError::Invalid;
    if token.len() > TOKEN_MAX {
        return Err(refused("it has more than 16384 bytes"));
    }
    let malformed = refused("it is not a JSON Web Token in its compact form");
    let (message, signed) = token.rsplit_once('.').ok_or(malformed.clone())?;
    let (_, payload) =
        message.split_once('.').filter(|(_, payload)| !payload.contains('.')).ok_or(malformed.clone())?;
    let header =
        decode_header(token).map_err(|_| refused("its header names no algorithm that is accepted"))?;
    if header.crit.is_some() {
        return Err(refused("its header has `crit`, of which nothing is understood"));
    }
    let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed.clone());
    let claims = Object::parse(&decoded(payload)?).map_err(refused)?;
    let iss = claims.text("iss").ok_or(refused("it does not say who issued it: `iss`"))?;
    let issuer = issuers.iter().find(|issuer| issuer.iss == iss);
    let issuer = issuer.ok_or(refused("its `iss` is not an issuer that this server knows"))?;
    let algorithm = Some(header.alg).filter(|algorithm| issuer.algorithms.contains(algorithm));
    let algorithm = algorithm.ok_or(refused("its algorithm is not one that its issuer may use"))?;
    let kid = header.kid.as_deref();
    let keys = issuer.keys_for(kid, algorithm).await?;
    let signed = decoded(signed)?;
    if !keys.candidates(kid, algorithm).any(|key| key.verifies(algorithm, message.as_bytes(), &signed)) {
        return Err(refused("no key of its issuer has signed it"));
    }
    let expires = issuer.validity.check(&claims, now).map_err(|not_now| match not_now {
        NotNow::Refused(why) => refused(why),
        NotNow::Expired => TokenError::Expired,
    })?;
    issuer.places.rights(&claims, policy, expires).map_err(refused)
}
