//! Where the server listens beside, or instead of, the one address of the setting `listen`: each listener with its role, and
//! with its certificate where it speaks TLS.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::values::ListenAddress;

/// Most listeners.
const LISTENERS_MAX: usize = 16;

/// A table `[[listener]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Where it listens.
    pub address: ListenAddress,
    /// Whom it serves.
    #[serde(default)]
    pub role: ListenerRole,
    /// Its certificate; without it the listener speaks plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// A file with the authorities whose certificates clients must show, as PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

/// Whom a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenerRole {
    /// Clients.
    #[default]
    Public,
    /// A proxy or CDN with a cache, which asks here whether a client may have what it holds.
    Edge,
    /// Operators.
    Admin,
}

/// The files of a certificate, as PEM. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, followed by those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The listeners in force: those of the configuration, and `listen` where none of them is public.
///
/// # Errors
/// When they do not go together.
pub(super) fn listeners(
    configured: Vec<ListenerConfig>,
    listen: Option<ListenAddress>,
    default: ListenAddress,
) -> Result<Vec<ListenerConfig>, ConfigError> {
    let invalid = |text: String| Err(ConfigError::Invalid(text));
    let has_public = configured.iter().any(|listener| listener.role == ListenerRole::Public);
    if has_public && listen.is_some() {
        return invalid("give either `listen` or [[listener]]s of role `public`, not both".into());
    }
    if configured.len() > LISTENERS_MAX {
        return invalid(format!("there may be {LISTENERS_MAX} [[listener]]s at most"));
    }
    for (i, listener) in configured.iter().enumerate() {
        let address = listener.address.get();
        if address.port() != 0 && configured[..i].iter().any(|other| other.address.get() == address) {
            return invalid(format!("two [[listener]]s have the address {address}"));
        }
        if listener.client_ca.is_some() && listener.tls.is_none() {
            return invalid(format!("[[listener]] {address} has a `client_ca`, which needs `tls`"));
        }
    }
    let of_listen = (!has_public).then(|| ListenerConfig {
        address: listen.unwrap_or(default),
        role: ListenerRole::Public,
        tls: None,
        client_ca: None,
    });
    Ok(of_listen.into_iter().chain(configured).collect())
}

/// The tables as they are written in a file.
pub(super) fn to_toml(listeners: &[ListenerConfig]) -> String {
    if listeners.is_empty() {
        return String::new();
    }
    #[derive(Serialize)]
    struct ListenerTables<'a> {
        listener: &'a [ListenerConfig],
    }
    match toml::to_string(&ListenerTables { listener: listeners }) {
        Ok(text) => format!("\n{text}"),
        Err(error) => unreachable!("what was read as TOML can be written as TOML: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ListenerRole};

    #[test]
    fn the_address_of_listen_is_a_public_listener_unless_there_is_one() {
        let config = Config::from_toml("[[listener]]\naddress = '127.0.0.1:1'\nrole = 'admin'").unwrap();
        let roles: Vec<_> = config.listeners.iter().map(|listener| listener.role).collect();
        assert_eq!(roles, [ListenerRole::Public, ListenerRole::Admin]);
        let config = Config::from_toml("[[listener]]\naddress = '127.0.0.1:1'").unwrap();
        assert_eq!(config.listeners.len(), 1);
        // What is printed gives the same again.
        assert_eq!(Config::from_toml(&config.to_toml()).unwrap().listeners, config.listeners);
    }

    #[test]
    fn listeners_that_do_not_go_together_are_refused() {
        for (text, word) in [
            ("listen = '1'\n[[listener]]\naddress = '127.0.0.1:2'", "either"),
            (
                "[[listener]]\naddress = '127.0.0.1:2'\n[[listener]]\naddress = '127.0.0.1:2'\nrole = 'edge'",
                "two",
            ),
            ("[[listener]]\naddress = '127.0.0.1:2'\nclient_ca = 'ca.pem'", "needs `tls`"),
            ("[[listener]]\naddress = '127.0.0.1:2'\nrole = 'inner'", "unknown variant"),
        ] {
            let error = Config::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
