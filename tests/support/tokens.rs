//! An issuer of tokens: it signs what it is asked to, and publishes its keys, or does not.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use ring::{hmac, signature};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

pub const ISS: &str = "https://app.example";
pub const SECRET: &str = "a secret of more than thirty-two bytes";

pub fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that are good for an hour, with these beside or in place of them; `null` takes one away.
pub fn claims(more: &Value) -> Value {
    let now = unix_secs();
    let mut claims = json!({ "iss": ISS, "aud": "bourn", "sub": "alice", "iat": now, "exp": now + 3600 });
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

/// A token of these parts, signed by whatever `sign` does.
pub fn compact(header: &Value, payload: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(&header.to_string()), part(payload));
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(sign(message.as_bytes())))
}

/// Signed with a shared secret.
pub fn with_secret(secret: &[u8], claims: &Value) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    compact(&json!({ "alg": "HS256" }), &claims.to_string(), |message| {
        hmac::sign(&key, message).as_ref().into()
    })
}

/// A good token of the issuer with the secret.
pub fn token(more: &Value) -> String {
    with_secret(SECRET.as_bytes(), &claims(more))
}

/// The configuration of an issuer with a secret, which is written into a directory.
pub fn issuer_with_secret(directory: &Path) -> String {
    let file = directory.join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    format!(
        "[access]\nmode = 'token'\n[[access.issuer]]\niss = '{ISS}'\naud = 'bourn'\nsecret_file = '{}'\nalgorithms = ['HS256']\n",
        file.display()
    )
}

enum Pair {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

/// A pair of keys that an issuer publishes one half of.
pub struct SigningKey {
    kid: String,
    pair: Pair,
}

impl SigningKey {
    pub fn ec(kid: &str) -> SigningKey {
        let random = SystemRandom::new();
        let bytes = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes.as_ref(), &random).unwrap();
        SigningKey { kid: kid.into(), pair: Pair::Ec(pair) }
    }

    pub fn ed(kid: &str) -> SigningKey {
        let bytes = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        SigningKey { kid: kid.into(), pair: Pair::Ed(Ed25519KeyPair::from_pkcs8(bytes.as_ref()).unwrap()) }
    }

    pub fn public(&self) -> &[u8] {
        match &self.pair {
            Pair::Ec(pair) => pair.public_key().as_ref(),
            Pair::Ed(pair) => pair.public_key().as_ref(),
        }
    }

    pub fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let public = self.public();
        match &self.pair {
            Pair::Ec(_) => {
                json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "alg": "ES256",
                "x": text(&public[1..33]), "y": text(&public[33..]) })
            }
            Pair::Ed(_) => json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": text(public) }),
        }
    }

    pub fn token(&self, more: &Value) -> String {
        self.token_named(&self.kid, more)
    }

    /// A token that names another key than the one that it is signed with.
    pub fn token_named(&self, kid: &str, more: &Value) -> String {
        let payload = claims(more).to_string();
        match &self.pair {
            Pair::Ec(pair) => compact(&json!({ "alg": "ES256", "kid": kid }), &payload, |message| {
                let signed: signature::Signature = pair.sign(&SystemRandom::new(), message).unwrap();
                signed.as_ref().into()
            }),
            Pair::Ed(pair) => compact(&json!({ "alg": "EdDSA", "kid": kid }), &payload, |message| {
                pair.sign(message).as_ref().into()
            }),
        }
    }
}

/// Where an issuer's keys are read.
#[derive(Clone)]
pub struct Jwks {
    pub url: String,
    /// What is answered; nothing: the reader is kept waiting.
    body: Arc<Mutex<Option<String>>>,
    readings: Arc<AtomicUsize>,
}

impl Jwks {
    pub async fn serve() -> Jwks {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let jwks = Jwks { url, body: Arc::default(), readings: Arc::default() };
        let serving = jwks.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    serving.readings.fetch_add(1, Ordering::SeqCst);
                    let body = serving.body.lock().unwrap().clone();
                    let Some(body) = body else { return tokio::time::sleep(Duration::from_secs(60)).await };
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        jwks
    }

    pub fn publish(&self, keys: &[&SigningKey]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        self.answer(&json!({ "keys": keys }).to_string());
    }

    pub fn answer(&self, body: &str) {
        *self.body.lock().unwrap() = Some(body.to_owned());
    }

    pub fn hang(&self) {
        *self.body.lock().unwrap() = None;
    }

    /// How often the keys were read.
    pub fn readings(&self) -> usize {
        self.readings.load(Ordering::SeqCst)
    }

    pub fn issuer(&self) -> String {
        format!(
            "[access]\nmode = 'token'\n[[access.issuer]]\niss = '{ISS}'\naud = 'bourn'\njwks = '{}'\n\
             algorithms = ['ES256', 'EdDSA']\n",
            self.url
        )
    }
}
