//! Keys of issuers, and what they verify. The keys of one issuer verify its tokens alone, and a key only what it is for.

use std::path::Path;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::{hmac, signature};

/// Shortest secret, in bytes.
const SECRET_MIN: usize = 32;
/// Most keys of one set.
const KEYS_MAX: usize = 100;

/// A key, and which tokens it is for.
#[derive(Clone)]
pub(super) struct Key {
    kid: Option<String>,
    /// The algorithms it verifies.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// The keys of one issuer.
#[derive(Clone, Default)]
pub(super) struct KeySet(Vec<Key>);

impl KeySet {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A secret that an issuer shares with this server.
    pub(super) fn of_secret_file(file: &Path) -> Result<KeySet, String> {
        let text = read(file)?;
        let secret = text.strip_suffix(b"\n").unwrap_or(&text);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < SECRET_MIN {
            return Err(format!("the secret in {} has fewer than {SECRET_MIN} bytes", file.display()));
        }
        let algorithms = vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        Ok(KeySet(vec![Key { kid: None, algorithms, key: DecodingKey::from_secret(secret) }]))
    }

    /// A public key as PEM, for these algorithms.
    pub(super) fn of_key_file(file: &Path, algorithms: &[Algorithm]) -> Result<KeySet, String> {
        let pem = read(file)?;
        let mut keys = Vec::new();
        for algorithm in algorithms {
            let key = match algorithm {
                Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(&pem),
                Algorithm::EdDSA => DecodingKey::from_ed_pem(&pem),
                _ => DecodingKey::from_rsa_pem(&pem),
            };
            keys.extend(key.map(|key| Key { kid: None, algorithms: vec![*algorithm], key }));
        }
        if keys.is_empty() {
            return Err(format!("{} has no public key for its `algorithms`, as PEM", file.display()));
        }
        Ok(KeySet(keys))
    }

    /// A JSON Web Key Set (RFC 7517); keys that are not understood, or are for something else, are passed over.
    pub(super) fn of_jwks(json: &[u8]) -> Result<KeySet, &'static str> {
        #[derive(serde::Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| "it is not a JSON Web Key Set")?;
        if set.keys.len() > KEYS_MAX {
            return Err("it has more keys than are accepted");
        }
        let keys = set.keys.into_iter().filter_map(|key| Key::of_jwk(&serde_json::from_value(key).ok()?));
        Ok(KeySet(keys.collect()))
    }

    /// The keys that a token with this header may be signed with. A token that names no key may be signed with any that
    /// is for its algorithm.
    pub(super) fn candidates<'a>(
        &'a self,
        kid: Option<&'a str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| {
            let named = match (kid, &key.kid) {
                (Some(wanted), Some(kid)) => wanted == kid,
                (None, _) | (_, None) => true,
            };
            named && key.algorithms.contains(&algorithm)
        })
    }
}

impl PartialEq for KeySet {
    fn eq(&self, other: &KeySet) -> bool {
        let same = |a: &Key, b: &Key| {
            a.kid == b.kid && a.algorithms == b.algorithms && content(&a.key) == content(&b.key)
        };
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| same(a, b))
    }
}

fn content(key: &DecodingKey) -> [&[u8]; 2] {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => [bytes, &[]],
        DecodingKeyKind::RsaModulusExponent { n, e } => [n, e],
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

impl Key {
    fn of_jwk(jwk: &Jwk) -> Option<Key> {
        let common = &jwk.common;
        let signs = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
            && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        let fitting: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                &[Algorithm::ES256]
            }
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
                &[Algorithm::ES384]
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            // A secret that is published is none.
            _ => return None,
        };
        let said = |algorithm: &&Algorithm| {
            common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(**algorithm))
        };
        let algorithms: Vec<_> = fitting.iter().filter(said).copied().collect();
        let key = DecodingKey::from_jwk(jwk).ok().filter(|_| signs && !algorithms.is_empty())?;
        Some(Key { kid: common.key_id.clone(), algorithms, key })
    }

    /// Whether a signature is this key's.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signed: &[u8]) -> bool {
        let public = |how: &'static dyn signature::VerificationAlgorithm| match self.key.kind() {
            DecodingKeyKind::SecretOrDer(key) => {
                signature::UnparsedPublicKey::new(how, key).verify(message, signed).is_ok()
            }
            DecodingKeyKind::RsaModulusExponent { .. } => false,
        };
        let rsa = |how: &'static signature::RsaParameters| match self.key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                signature::RsaPublicKeyComponents { n, e }.verify(how, message, signed).is_ok()
            }
            DecodingKeyKind::SecretOrDer(_) => public(how),
        };
        let secret = |how: hmac::Algorithm| match self.key.kind() {
            DecodingKeyKind::SecretOrDer(key) => {
                hmac::verify(&hmac::Key::new(how, key), message, signed).is_ok()
            }
            DecodingKeyKind::RsaModulusExponent { .. } => false,
        };
        self.algorithms.contains(&algorithm)
            && match algorithm {
                Algorithm::HS256 => secret(hmac::HMAC_SHA256),
                Algorithm::HS384 => secret(hmac::HMAC_SHA384),
                Algorithm::HS512 => secret(hmac::HMAC_SHA512),
                Algorithm::RS256 => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
                Algorithm::RS384 => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
                Algorithm::RS512 => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
                Algorithm::PS256 => rsa(&signature::RSA_PSS_2048_8192_SHA256),
                Algorithm::PS384 => rsa(&signature::RSA_PSS_2048_8192_SHA384),
                Algorithm::PS512 => rsa(&signature::RSA_PSS_2048_8192_SHA512),
                Algorithm::ES256 => public(&signature::ECDSA_P256_SHA256_FIXED),
                Algorithm::ES384 => public(&signature::ECDSA_P384_SHA384_FIXED),
                Algorithm::EdDSA => public(&signature::ED25519),
                // What later versions of the library add is not accepted unseen.
                _ => false,
            }
    }
}
