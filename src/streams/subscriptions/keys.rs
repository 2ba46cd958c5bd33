//! The keys of subscriptions: webhooks are signed with Ed25519 (section 7.1), tokens with an HMAC that names
//! subscription, generation and expiry (section 12.9).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Refusal;
use crate::streams::Secrets;

/// How long a token is valid, in milliseconds: longer than any lease that it is for.
const TOKEN_LIFETIME: i64 = 3_600_000;

pub(super) struct SubscriptionKeys {
    webhook: SigningKey,
    kid: String,
    token: [u8; 32],
}

impl SubscriptionKeys {
    pub(super) fn new(secrets: &Secrets) -> SubscriptionKeys {
        let webhook = SigningKey::from_bytes(&secrets.webhook);
        let x = BASE64.encode(webhook.verifying_key().as_bytes());
        // The key's thumbprint (RFC 7638 and RFC 8037).
        let thumbprint = Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
        SubscriptionKeys { webhook, kid: format!("ds_{}", BASE64.encode(thumbprint)), token: secrets.token }
    }

    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    pub(super) fn jwks(&self) -> Value {
        json!({ "keys": [{
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": self.kid,
            "use": "sig",
            "alg": "EdDSA",
            "x": BASE64.encode(self.webhook.verifying_key().as_bytes()),
        }]})
    }

    /// The signature header of a webhook's body.
    pub(super) fn sign(&self, body: &[u8], unix_secs: i64) -> String {
        let signed = [unix_secs.to_string().as_bytes(), b".", body].concat();
        let signature = BASE64.encode(self.webhook.sign(&signed).to_bytes());
        format!("t={unix_secs},kid={},ed25519={signature}", self.kid)
    }

    /// An HMAC takes a key of any length, so this always gives one.
    fn mac(&self, payload: &str) -> Option<Hmac<Sha256>> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.token).ok()?;
        mac.update(payload.as_bytes());
        Some(mac)
    }

    /// A token for one wake of a subscription.
    pub(super) fn token(&self, id: &str, generation: u64, now: i64) -> String {
        let expires_at = now.saturating_add(TOKEN_LIFETIME);
        let payload = BASE64.encode(json!([id, generation, expires_at]).to_string());
        let mac = self.mac(&payload).map(|mac| mac.finalize().into_bytes()).unwrap_or_default();
        format!("{payload}.{}", BASE64.encode(mac))
    }

    /// The generation that a token is for, if it is one for this subscription.
    pub(super) fn generation(&self, id: &str, token: &str, now: i64) -> Result<u64, Refusal> {
        let read = || -> Option<(String, u64, i64)> {
            let (payload, mac) = token.split_once('.')?;
            let mac = BASE64.decode(mac).ok()?;
            // Compared in constant time.
            self.mac(payload)?.verify_slice(&mac).ok()?;
            serde_json::from_slice(&BASE64.decode(payload).ok()?).ok()
        };
        match read() {
            Some((of, generation, expires_at)) if of == id => match expires_at > now {
                true => Ok(generation),
                false => Err(Refusal::TokenExpired),
            },
            _ => Err(Refusal::TokenInvalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::Verifier;

    fn keys() -> SubscriptionKeys {
        SubscriptionKeys::new(&Secrets { webhook: [7; 32], token: [9; 32] })
    }

    #[test]
    fn a_token_is_for_one_subscription_and_one_wake_and_a_time() {
        let keys = keys();
        let token = keys.token("s", 3, 1_000);
        assert_eq!(keys.generation("s", &token, 2_000), Ok(3));
        assert_eq!(keys.generation("other", &token, 2_000), Err(Refusal::TokenInvalid));
        assert_eq!(keys.generation("s", &token, 1_000 + TOKEN_LIFETIME), Err(Refusal::TokenExpired));
        let other = SubscriptionKeys::new(&Secrets { webhook: [7; 32], token: [1; 32] });
        for bad in ["", ".", "a.b", &token[1..], &format!("{token}x"), &other.token("s", 3, 1_000)] {
            assert_eq!(keys.generation("s", bad, 2_000), Err(Refusal::TokenInvalid), "{bad}");
        }
    }

    #[test]
    fn a_signature_verifies_with_the_published_key() {
        let keys = keys();
        let header = keys.sign(b"{}", 1_700_000_000);
        let signature = BASE64.decode(header.rsplit('=').next().unwrap()).unwrap();
        let signature = ed25519_dalek::Signature::from_slice(&signature).unwrap();
        assert!(keys.webhook.verifying_key().verify(b"1700000000.{}", &signature).is_ok());
        assert_eq!(keys.jwks()["keys"][0]["kid"], keys.kid());
    }
}
