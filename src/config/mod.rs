//! Configuration: flags, `BOURN_*` variables and one TOML file, in that order of precedence. Read and checked
//! once, before anything is opened or bound; the rest of the server sees [`Config`] alone.

mod access;
mod entities;
mod listeners;
mod rates;
mod settings;
mod stream_rights;
mod values;

use std::path::{Path, PathBuf};

pub use access::{
    AccessConfig, AccessMode, Anonymous, ClaimPath, EVERY, IssuerConfig, RoleConfig, UndoRight,
};
pub use entities::{ConflictPolicy, EntityConfig, KeptColumn, KeptColumns, demo_entities};
pub use listeners::{ListenerConfig, ListenerRole, TlsFiles};
pub use rates::{Rate, RateConfig};
pub use settings::{Limits, SettingsLayer};
pub(crate) use stream_rights::each_once;
pub use stream_rights::{StreamRights, is_stream_pattern};
pub use values::{DatabaseUrl, ListenAddress, LogFormat, Size, Span};

/// Why the configuration was refused; the text is for the operator's terminal.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not what it should be; the text names the place.
    #[error("{path}: {error}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        error: Box<toml::de::Error>,
    },
    /// A setting or an entity breaks a rule.
    #[error("{0}")]
    Invalid(String),
}

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses, limits and durations.
    pub limits: Limits,
    /// The streamed tables.
    pub entities: Vec<EntityConfig>,
    /// Who may use the server.
    pub access: AccessConfig,
    /// How much one caller may ask.
    pub rates: RateConfig,
    /// Where it listens.
    pub listeners: Vec<ListenerConfig>,
    /// No entity was configured: these are the demo's, and their tables may be made.
    pub demo: bool,
}

/// The TOML file.
#[derive(Debug, Default, serde::Deserialize)]
struct File {
    #[serde(default)]
    entity: Vec<EntityConfig>,
    #[serde(default)]
    access: AccessConfig,
    #[serde(default)]
    listener: Vec<ListenerConfig>,
    #[serde(default)]
    limits: RateConfig,
    #[serde(flatten)]
    settings: toml::Table,
}

impl Config {
    /// Puts the layers together: what the command line and the environment said, over the file, over the
    /// defaults.
    ///
    /// # Errors
    /// When the file cannot be read, or anything in it or above it breaks a rule.
    pub fn load(above: SettingsLayer, file: Option<&Path>) -> Result<Config, ConfigError> {
        let file = file.map_or_else(|| Ok(FileConfig::default()), read_file)?;
        Config::of(above, file)
    }

    fn of(above: SettingsLayer, file: FileConfig) -> Result<Config, ConfigError> {
        let FileConfig { settings, entities, mut access, rates, listeners } = file;
        let listen = above.listen.or(settings.listen);
        let limits = Limits::from_layers(above, settings);
        limits.check()?;
        let demo = entities.is_empty();
        let entities = if demo { demo_entities() } else { entities };
        entities::check(&entities)?;
        access.insecure_open |= limits.insecure_open;
        access.check(&entities)?;
        let listeners = listeners::listeners(listeners, listen, limits.listen)?;
        Ok(Config { limits, entities, access, rates, listeners, demo })
    }

    /// The configuration that the text of a TOML file gives, over the defaults.
    ///
    /// # Errors
    /// When it cannot be read, or anything in it breaks a rule.
    pub fn from_toml(text: &str) -> Result<Config, ConfigError> {
        Config::of(SettingsLayer::default(), read_text(text, Path::new("the configuration"))?)
    }

    /// The configuration as a TOML file that would give it again.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let entities: String = self.entities.iter().map(EntityConfig::to_toml).collect();
        // The listener of `listen` is in the settings already.
        let of_listen = ListenerConfig {
            address: self.limits.listen,
            role: ListenerRole::Public,
            tls: None,
            client_ca: None,
        };
        let settings = self.limits.to_toml();
        let (settings, listeners) = match self.listeners.split_first() {
            Some((first, rest)) if *first == of_listen => (settings, rest),
            // They take its place.
            _ => (without_listen(&settings), &self.listeners[..]),
        };
        format!(
            "{settings}{entities}{}{}",
            self.access.to_toml(),
            self.rates.to_toml() + &listeners::to_toml(listeners)
        )
    }

    /// The same, fit to be shown: without the passwords of databases.
    #[must_use]
    pub fn without_secrets(mut self) -> Config {
        self.limits.database = self.limits.database.without_password();
        if let Ok(direct) = self.limits.direct_database.parse::<DatabaseUrl>() {
            self.limits.direct_database = direct.without_password().to_string();
        }
        self
    }
}

/// The settings without the address that listeners stand for.
fn without_listen(settings: &str) -> String {
    let lines = settings.lines().filter(|line| !line.starts_with("listen = "));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// What a file says.
#[derive(Debug, Default)]
struct FileConfig {
    settings: SettingsLayer,
    entities: Vec<EntityConfig>,
    access: AccessConfig,
    rates: RateConfig,
    listeners: Vec<ListenerConfig>,
}

fn read_file(path: &Path) -> Result<FileConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    read_text(&text, path)
}

fn read_text(text: &str, path: &Path) -> Result<FileConfig, ConfigError> {
    let malformed = |error| ConfigError::Malformed { path: path.to_owned(), error: Box::new(error) };
    let File { entity, access, listener, limits, settings } = toml::from_str(text).map_err(malformed)?;
    let settings = settings.try_into().map_err(malformed)?;
    Ok(FileConfig { settings, entities: entity, access, rates: limits, listeners: listener })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bourn.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(SettingsLayer::default(), Some(&path)).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_configured_is_the_demo_on_loopback() {
        let config = Config::load(SettingsLayer::default(), None).unwrap();
        assert_eq!(config.limits.listen.to_string(), "127.0.0.1:4437");
        assert_eq!(config.limits.database.to_string(), "sqlite:bourn.db");
        assert!(config.demo && config.entities.len() == 2);
    }

    #[test]
    fn the_file_gives_settings_and_entities() {
        let config = load(
            "listen = '127.0.0.1:9000'\nlong_poll_timeout = '2s'\n\
             [[entity]]\ntype = 'task'\ntable = 'tasks'\nconflict = 'optimistic-lock'\n",
        )
        .unwrap();
        assert_eq!(config.limits.listen.get().port(), 9000);
        assert_eq!(config.limits.long_poll_timeout.get().as_secs(), 2);
        assert_eq!(config.entities[0].key, "id");
        assert_eq!(config.entities[0].conflict, ConflictPolicy::OptimisticLock);
        assert!(!config.demo);
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        let with_access = load(ACCESS).unwrap();
        for config in [Config::load(SettingsLayer::default(), None).unwrap(), with_access] {
            let again = load(&config.to_toml()).unwrap();
            assert_eq!(again.limits, config.limits);
            assert_eq!(again.entities, config.entities);
            assert_eq!(again.access, config.access);
        }
    }

    const ACCESS: &str = r#"
        [access]
        mode = "token"
        anonymous = "guest"
        leeway = "10s"
        [[access.issuer]]
        iss = "https://app.example"
        aud = "bourn"
        jwks = "https://app.example/jwks.json"
        algorithms = ["ES256", "EdDSA"]
        claims = { scopes = "$.org_ids", role = "$.role" }
        [[access.role]]
        name = "member"
        read = ["page", "attachment"]
        write = ["page"]
        read_only_columns = { page = ["content"] }
        undo = "own"
        streams = { "chats/{scope}/**" = "ra" }
        [[access.role]]
        name = "guest"
    "#;

    #[test]
    fn what_would_let_in_more_than_was_meant_is_refused() {
        assert_eq!(load(ACCESS).unwrap().access.roles.len(), 2);
        for (from, to, named) in [
            ("mode = \"token\"", "mode = \"open\"", "need `mode"),
            ("anonymous = \"guest\"", "anonymous = \"gest\"", "`gest`"),
            ("\"ES256\"", "\"HS256\"", "secret_file"),
            ("\"ES256\"", "\"none\"", "none"),
            ("jwks = \"https", "jwks = \"file", "http"),
            ("jwks = \"https://app.example/jwks.json\"", "", "one of `jwks`"),
            ("algorithms = [\"ES256\", \"EdDSA\"]", "algorithms = []", "at least one"),
            ("read = [\"page\", \"attachment\"]", "read = [\"pages\"]", "no entity type `pages`"),
            ("= \"ra\"", "= \"rw\"", "racd"),
            ("\"$.role\"", "\"role\"", "`$.role`"),
            ("undo = \"own\"", "undo = \"all\"", "all"),
            ("leeway", "leway", "leway"),
        ] {
            let error = load(&ACCESS.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(named), "{to}: {error}");
        }
    }

    #[test]
    fn unknown_keys_and_bad_values_are_errors_that_name_them() {
        for (text, named) in [
            ("long_pol_timeout = '2s'", "long_pol_timeout"),
            ("long_poll_timeout = '2 parsecs'", "2 parsecs"),
            ("[[entity]]\ntype = 'a'\ntable = 'a'\ncolour = 'red'", "colour"),
            ("[[entity]]\ntype = 'A b'\ntable = 'a'", "A b"),
            ("[[entity]]\ntype = 'a'\ntable = 'bourn_log'", "bourn_log"),
            ("[[entity]]\ntype = 'a'\ntable = 't'\n[[entity]]\ntype = 'b'\ntable = 't'", "table `t`"),
            ("database = 'mysql://x'", "mysql"),
            ("chunk_messages = 0", "chunk_messages"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
