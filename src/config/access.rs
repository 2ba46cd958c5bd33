//! Who may use the server, as the configuration says it: the mode, the issuers of tokens, the roles that they give.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde::{Deserialize, Serialize};

use super::stream_rights::{StreamRights, is_stream_pattern};
use super::values::{Span, from_string};
use super::{ConfigError, EntityConfig};

/// Stands for every entity type, every scope.
pub const EVERY: &str = "*";

/// The table `[access]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessConfig {
    /// Whether requests must show a token.
    pub mode: AccessMode,
    /// Serve everybody beyond loopback, too, without a token.
    pub insecure_open: bool,
    /// The role of requests without a token; `none` where there is none.
    pub anonymous: Anonymous,
    /// The cookie that may carry the token of a read; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cookie: String,
    /// Origins whose pages may send the cookie, as `https://app.example.com`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<String>,
    /// Networks of proxies whose `X-Forwarded-For` says which address a request comes from, as `10.0.0.0/8`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<IpNet>,
    /// Longest lifetime of a token that is accepted.
    pub max_token_lifetime: Span,
    /// How far an issuer's clock may differ.
    pub leeway: Span,
    /// Who issues tokens.
    #[serde(rename = "issuer", skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<IssuerConfig>,
    /// What tokens may give.
    #[serde(rename = "role", skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<RoleConfig>,
}

impl Default for AccessConfig {
    fn default() -> AccessConfig {
        AccessConfig {
            mode: AccessMode::Open,
            insecure_open: false,
            anonymous: Anonymous::None,
            cookie: String::new(),
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
            max_token_lifetime: Span::of(Duration::from_secs(24 * 60 * 60)),
            leeway: Span::of(Duration::from_secs(30)),
            issuers: Vec::new(),
            roles: Vec::new(),
        }
    }
}

/// Whether requests must show a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    /// Every request may do everything.
    #[default]
    Open,
    /// A token says what a request may do.
    Token,
}

/// The role of requests without a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(from = "String", into = "String")]
pub enum Anonymous {
    /// They are refused.
    #[default]
    None,
    /// They have this role.
    Role(String),
}

impl From<String> for Anonymous {
    fn from(text: String) -> Self {
        if text == "none" { Anonymous::None } else { Anonymous::Role(text) }
    }
}

impl From<Anonymous> for String {
    fn from(anonymous: Anonymous) -> String {
        match anonymous {
            Anonymous::None => "none".into(),
            Anonymous::Role(name) => name,
        }
    }
}

/// An issuer of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// The claim `iss` of its tokens.
    pub iss: String,
    /// What the claim `aud` of its tokens must be, or contain.
    pub aud: String,
    /// The URL of its public keys, as a JSON Web Key Set.
    pub jwks: Option<String>,
    /// A file with its public key as PEM.
    pub key_file: Option<PathBuf>,
    /// A file with the secret that it shares with this server, of 32 bytes or more.
    pub secret_file: Option<PathBuf>,
    /// What stands before the subjects of its tokens in this server's own records; issuers whose subjects may be the same need
    /// different ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject_prefix: String,
    /// The algorithms its tokens may be signed with. It is never the token that decides.
    pub algorithms: Vec<Algorithm>,
    /// Where its tokens say what they give.
    #[serde(default)]
    pub claims: ClaimsConfig,
}

/// Where tokens say what they give, as paths into their claims: `$.role`, `$.app.orgs`, `$["https://app.example/orgs"]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimsConfig {
    /// The scopes that the role is for: a string or an array of strings.
    pub scopes: Option<ClaimPath>,
    /// The role's name.
    pub role: Option<ClaimPath>,
    /// The device that the token is bound to.
    pub client_id: Option<ClaimPath>,
}

/// A path into the claims of a token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimPath(Vec<String>);

impl ClaimPath {
    /// The path's one step, or several.
    #[must_use]
    pub fn steps(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for ClaimPath {
    type Err = String;

    fn from_str(text: &str) -> Result<ClaimPath, String> {
        let invalid = || {
            format!(
                "`{text}` is not a path to a claim; write `$.role`, `$.app.orgs` or `$[\"https://app.example/orgs\"]`"
            )
        };
        let mut rest = text.strip_prefix('$').ok_or_else(invalid)?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(quoted) = rest.strip_prefix("[\"") {
                let (step, after) = quoted.split_once("\"]").ok_or_else(invalid)?;
                steps.push(step.to_owned());
                rest = after;
            } else {
                let plain = rest.strip_prefix('.').ok_or_else(invalid)?;
                let end = plain.find(['.', '[']).unwrap_or(plain.len());
                let (step, after) = plain.split_at(end);
                steps.push(step.to_owned());
                rest = after;
            }
        }
        if steps.is_empty() || steps.iter().any(String::is_empty) {
            return Err(invalid());
        }
        Ok(ClaimPath(steps))
    }
}

from_string!(ClaimPath);

impl From<ClaimPath> for String {
    fn from(path: ClaimPath) -> String {
        path.to_string()
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("$")?;
        self.0.iter().try_for_each(|step| match step.contains(['.', '[']) {
            true => write!(f, "[\"{step}\"]"),
            false => write!(f, ".{step}"),
        })
    }
}

/// What a token, or a request without one, may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RoleConfig {
    /// The name, as tokens give it.
    pub name: String,
    /// Entity types that it reads; `*` is all of them.
    #[serde(default)]
    pub read: Vec<String>,
    /// Entity types that it writes.
    #[serde(default)]
    pub write: Vec<String>,
    /// Scopes that it is for whatever the token says; `*` is all of them.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Columns that it does not set, by entity type.
    #[serde(default)]
    pub read_only_columns: BTreeMap<String, Vec<String>>,
    /// Whether it sees activities and old values.
    #[serde(default)]
    pub history: bool,
    /// Which transactions it may undo.
    #[serde(default)]
    pub undo: UndoRight,
    /// What it may do with stored streams: patterns of paths, with the letters `r` (read), `a` (append), `c` (create) and
    /// `d` (delete).
    #[serde(default)]
    pub streams: BTreeMap<String, StreamRights>,
}

/// Which transactions may be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UndoRight {
    /// None.
    #[default]
    None,
    /// Those of the same subject.
    Own,
    /// All in the scopes that may be written.
    Scope,
}

impl AccessConfig {
    /// The table as it is written in a file.
    pub(super) fn to_toml(&self) -> String {
        #[derive(Serialize)]
        struct AccessTable<'a> {
            access: &'a AccessConfig,
        }
        if *self == AccessConfig::default() {
            return String::new();
        }
        match toml::to_string(&AccessTable { access: self }) {
            Ok(text) => format!("\n{text}"),
            Err(error) => unreachable!("what was read as TOML can be written as TOML: {error}"),
        }
    }

    pub(super) fn check(&self, entities: &[EntityConfig]) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        let is_origin =
            |text: &str| url::Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == *text);
        if let Some(origin) = self.origins.iter().find(|origin| !is_origin(origin)) {
            return invalid(format!(
                "`access.origins` has `{origin}`, which is no origin; write it as `https://app.example.com`"
            ));
        }
        if self.mode == AccessMode::Token && self.issuers.is_empty() && self.anonymous == Anonymous::None {
            return invalid(
                "`access.mode` is `token` and nothing issues tokens; add an [[access.issuer]]".into(),
            );
        }
        if self.mode == AccessMode::Open && !(self.issuers.is_empty() && self.roles.is_empty()) {
            return invalid("issuers and roles need `mode = \"token\"` in [access]".into());
        }
        for (i, issuer) in self.issuers.iter().enumerate() {
            issuer.check()?;
            if self.issuers[..i].iter().any(|other| other.iss == issuer.iss) {
                return invalid(format!("two issuers have the `iss` `{}`", issuer.iss));
            }
            if self.issuers[..i].iter().any(|other| other.subject_prefix == issuer.subject_prefix) {
                return invalid(format!(
                    "issuer `{}`: give each issuer a `subject_prefix` of its own, so that their subjects are told apart",
                    issuer.iss
                ));
            }
        }
        for (i, role) in self.roles.iter().enumerate() {
            role.check(entities)?;
            if self.roles[..i].iter().any(|other| other.name == role.name) {
                return invalid(format!("two roles have the name `{}`", role.name));
            }
        }
        if let Anonymous::Role(name) = &self.anonymous
            && !self.roles.iter().any(|role| role.name == *name)
        {
            return invalid(format!("`access.anonymous` names the role `{name}`, which is not there"));
        }
        let token = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        if !self.cookie.bytes().all(token) {
            return invalid("`access.cookie` must be made of letters, digits, `-` and `_`".into());
        }
        if self.max_token_lifetime.get().is_zero() {
            return invalid("`access.max_token_lifetime` must be above zero".into());
        }
        Ok(())
    }
}

impl IssuerConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let IssuerConfig { iss, aud, jwks, key_file, secret_file, algorithms, .. } = self;
        let invalid = |text: &str| Err(ConfigError::Invalid(format!("issuer `{iss}`: {text}")));
        if iss.is_empty() || aud.is_empty() {
            return invalid("`iss` and `aud` must not be empty");
        }
        let sources = [jwks.is_some(), key_file.is_some(), secret_file.is_some()];
        if sources.into_iter().filter(|given| *given).count() != 1 {
            return invalid("give one of `jwks`, `key_file` and `secret_file`");
        }
        if algorithms.is_empty() {
            return invalid("`algorithms` must name at least one");
        }
        // A public key is no secret: a token that is signed with it as one must not be taken.
        if algorithms
            .iter()
            .any(|algorithm| (algorithm.family() == AlgorithmFamily::Hmac) != secret_file.is_some())
        {
            return invalid(
                "HS256, HS384 and HS512 go with `secret_file`, and the others with `jwks` or `key_file`",
            );
        }
        match jwks.as_deref().map(url::Url::parse) {
            None => Ok(()),
            Some(Ok(url)) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
            Some(_) => invalid("`jwks` must be an http or https URL"),
        }
    }
}

impl RoleConfig {
    fn check(&self, entities: &[EntityConfig]) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(format!("role `{}`: {text}", self.name)));
        if self.name.is_empty() || self.name == "none" {
            return invalid("a role needs a name other than `none`".into());
        }
        let types = self.read.iter().chain(&self.write).chain(self.read_only_columns.keys());
        for name in types.filter(|name| *name != EVERY) {
            if !entities.iter().any(|entity| entity.name == *name) {
                return invalid(format!("there is no entity type `{name}`"));
            }
        }
        if self.scopes.iter().any(String::is_empty) {
            return invalid("a scope must not be empty".into());
        }
        match self.streams.keys().find(|pattern| !is_stream_pattern(pattern)) {
            Some(pattern) => invalid(format!(
                "`{pattern}` is not a pattern of stream paths; write segments, `*`, `**`, and before any `**` also `{{scope}}` and \
                 `{{sub}}`"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_a_claim_also_where_its_name_is_a_url() {
        for (text, steps) in [
            ("$.role", vec!["role"]),
            ("$.app.orgs", vec!["app", "orgs"]),
            (r#"$["https://app.example/orgs"].ids"#, vec!["https://app.example/orgs", "ids"]),
        ] {
            let path: ClaimPath = text.parse().unwrap();
            assert_eq!(
                (path.steps(), path.to_string().as_str()),
                (&*steps.iter().map(ToString::to_string).collect::<Vec<_>>(), text)
            );
        }
        for bad in ["", "$", "role", "$.", "$.a.", "$..a", "$[a]", "$[\"a", "$a"] {
            assert!(bad.parse::<ClaimPath>().unwrap_err().contains("`$.role`"), "{bad}");
        }
    }
}
