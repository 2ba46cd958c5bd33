//! What a token claims, read strictly: no member twice at any level that is looked at, every type as it should be, and
//! whatever gives rights understood whole or the token is refused.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use bourn_protocol::ClientId;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::policy::Policy;
use super::rights::{Grant, Letters, Rights, Scopes};
use crate::config::{ClaimPath, EVERY, StreamRights, each_once, is_stream_pattern};

/// Most scopes of one token.
const SCOPES_MAX: usize = 1_000;
/// Most patterns of streams of one token.
const STREAMS_MAX: usize = 100;
/// Longest subject, in bytes.
const SUBJECT_MAX: usize = 256;

/// Why a token is refused; the words are for its bearer.
pub(super) type TokenFault = &'static str;

/// A JSON object without repeated names; its values are read when they are asked for.
#[derive(Debug, Default)]
pub(super) struct Object(BTreeMap<String, Box<RawValue>>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a member is there twice"));
                    }
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

impl Object {
    pub(super) fn parse(json: &[u8]) -> Result<Object, TokenFault> {
        serde_json::from_slice(json).map_err(|_| "its claims are not a JSON object, or have a member twice")
    }

    fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name).map(|value| &**value).filter(|value| value.get() != "null")
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }

    /// A time in Unix seconds: a number, and nothing that only looks like one.
    fn time(&self, name: &str) -> Result<Option<u64>, ()> {
        let Some(value) = self.get(name) else { return Ok(None) };
        if !value.get().starts_with(|c: char| c.is_ascii_digit()) {
            return Err(());
        }
        let seconds: f64 = value.get().parse().map_err(|_| ())?;
        // Beyond that a number is no time.
        if !(0.0..1e12).contains(&seconds) {
            return Err(());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in the range")]
        Ok(Some(seconds as u64))
    }

    /// What a path leads to.
    fn at(&self, path: &ClaimPath) -> Result<Option<Box<RawValue>>, TokenFault> {
        let (last, steps) = path.steps().split_last().ok_or("a path to its claims is empty")?;
        let mut inner = None;
        for step in steps {
            let object: &Object = inner.as_ref().unwrap_or(self);
            let Some(value) = object.get(step) else { return Ok(None) };
            inner = Some(Object::parse(value.get().as_bytes())?);
        }
        Ok(inner.as_ref().unwrap_or(self).get(last).map(ToOwned::to_owned))
    }

    fn audience(&self) -> Vec<String> {
        let Some(value) = self.get("aud") else { return Vec::new() };
        strings(value).unwrap_or_default()
    }
}

/// A string, or an array of strings.
fn strings(value: &RawValue) -> Option<Vec<String>> {
    let one = serde_json::from_str(value.get()).map(|text| vec![text]);
    one.or_else(|_| serde_json::from_str(value.get())).ok()
}

/// When a token may be used.
pub(super) struct Validity {
    /// Its `aud` has to be this, or contain it.
    pub(super) aud: String,
    pub(super) leeway_secs: u64,
    pub(super) lifetime_secs: u64,
}

/// Why a token may not be used now.
pub(super) enum NotNow {
    Refused(TokenFault),
    Expired,
}

impl Validity {
    /// Whether a token with these claims may be used; until when.
    pub(super) fn check(&self, claims: &Object, now: u64) -> Result<u64, NotNow> {
        let refused = |why| Err(NotNow::Refused(why));
        if !claims.audience().contains(&self.aud) {
            return refused("its `aud` is not this server's");
        }
        let Ok(Some(expires)) = claims.time("exp") else {
            return refused("it needs `exp`, a number of seconds");
        };
        let Ok(Some(issued)) = claims.time("iat") else {
            return refused("it needs `iat`, a number of seconds");
        };
        let Ok(not_before) = claims.time("nbf") else {
            return refused("its `nbf` is not a number of seconds");
        };
        // The leeway is for an issuer whose clock is ahead; one whose clock is behind gives tokens that end a little early.
        if not_before.is_some_and(|time| time > now + self.leeway_secs) || issued > now + self.leeway_secs {
            return refused("it is not valid yet");
        }
        if expires.saturating_sub(issued) > self.lifetime_secs {
            return refused("it is valid for longer than this server accepts");
        }
        if expires <= now {
            return Err(NotNow::Expired);
        }
        Ok(expires)
    }
}

/// Where an issuer's tokens say what they give.
pub(super) struct Places {
    pub(super) scopes: Option<ClaimPath>,
    pub(super) role: Option<ClaimPath>,
    pub(super) client_id: Option<ClaimPath>,
    /// What stands before the subjects of this issuer.
    pub(super) subject_prefix: String,
}

impl Places {
    /// The rights that a token with these claims gives.
    pub(super) fn rights(
        &self,
        claims: &Object,
        policy: &Arc<Policy>,
        expires: u64,
    ) -> Result<Rights, TokenFault> {
        let subject = claims.text("sub").filter(|sub| !sub.is_empty() && sub.len() <= SUBJECT_MAX);
        let subject = subject.ok_or("it needs `sub`, a string of at most 256 bytes")?;
        let subject = format!("{}{subject}", self.subject_prefix).into();
        let client = match &self.client_id {
            None => None,
            Some(path) => claims
                .at(path)?
                .map(|value| {
                    serde_json::from_str::<String>(value.get()).ok().and_then(|id| ClientId::new(&id).ok())
                })
                .map(|id| id.ok_or("its client id is not one"))
                .transpose()?,
        };
        let grant = match claims.get("bourn") {
            Some(own) => own_grant(own)?,
            None => self.role_grant(claims, policy)?,
        };
        Ok(Rights { policy: policy.clone(), grant, subject: Some(subject), expires: Some(expires), client })
    }

    fn role_grant(&self, claims: &Object, policy: &Policy) -> Result<Grant, TokenFault> {
        let role = match &self.role {
            Some(path) => claims.at(path)?,
            None => claims.get("role").map(ToOwned::to_owned),
        };
        let role = role.ok_or("it names no role, and has no claim `bourn`")?;
        let name: String = serde_json::from_str(role.get()).map_err(|_| "its role is not a string")?;
        let role = policy.roles.get(&name).ok_or("its role is not one of this server's")?;
        let claimed = match &self.scopes {
            Some(path) => claims.at(path)?,
            None => claims.get("scopes").map(ToOwned::to_owned),
        };
        let claimed = claimed.map(|value| strings(&value).ok_or("its scopes are not an array of strings"));
        let claimed = claimed.transpose()?.unwrap_or_default();
        check_scopes(claimed.iter())?;
        // All of them is for the configuration to give, or for the claim `bourn`: an organization may be called `*`.
        if claimed.iter().any(|scope| scope == EVERY) {
            return Err(
                "its scopes may not have `*`; give the role `scopes = [\"*\"]`, or use the claim `bourn`",
            );
        }
        let scopes = Scopes::of(claimed.into_iter().chain(role.scopes.iter().cloned()));
        Ok(Grant::Role { name, scopes })
    }
}

fn check_scopes<'a>(scopes: impl ExactSizeIterator<Item = &'a String>) -> Result<(), TokenFault> {
    if scopes.len() > SCOPES_MAX {
        return Err("it has more than 1000 scopes");
    }
    let mut scopes = scopes;
    match scopes.any(String::is_empty) {
        true => Err("it has an empty scope"),
        false => Ok(()),
    }
}

/// The claim `bourn`: `{"scopes": {"acme": "rwhu"}, "streams": {"chats/acme/**": "ra"}}`.
fn own_grant(value: &RawValue) -> Result<Grant, TokenFault> {
    const MALFORMED: TokenFault = "its claim `bourn` is not understood; write {\"scopes\": {\"acme\": \"rw\"}, \"streams\": {\"chats/acme/**\": \"ra\"}}";
    let own = Object::parse(value.get().as_bytes()).map_err(|_| MALFORMED)?;
    if own.0.keys().any(|name| name != "scopes" && name != "streams") {
        return Err(MALFORMED);
    }
    let object = |name: &str| match own.get(name) {
        None => Ok(Object::default()),
        Some(value) => Object::parse(value.get().as_bytes()).map_err(|_| MALFORMED),
    };
    let (given, patterns) = (object("scopes")?, object("streams")?);
    check_scopes(given.0.keys())?;
    if patterns.0.len() > STREAMS_MAX {
        return Err("it has more than 100 patterns of streams");
    }
    let mut scopes = HashMap::new();
    for name in given.0.keys() {
        scopes.insert(name.clone(), given.text(name).and_then(|text| letters(&text)).ok_or(MALFORMED)?);
    }
    let mut streams = Vec::new();
    for pattern in patterns.0.keys() {
        let rights = patterns.text(pattern).and_then(|text| text.parse::<StreamRights>().ok());
        match rights {
            Some(rights) if is_stream_pattern(pattern) => streams.push((pattern.clone(), rights)),
            _ => return Err(MALFORMED),
        }
    }
    Ok(Grant::Letters { scopes, streams })
}

fn letters(text: &str) -> Option<Letters> {
    let [read, write, history, undo] = each_once(text, ['r', 'w', 'h', 'u']).ok()?;
    Some(Letters { read, write, history, undo })
}
