//! The streamed tables, as the configuration names them.

use super::ConfigError;

/// What happens to a write that does not say which version of the row it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictPolicy {
    /// It is done; the expected transaction id is checked where it is given.
    #[default]
    LastWriteWins,
    /// It is refused: the expected transaction id must be given.
    OptimisticLock,
}

/// One entity type: a table whose rows are streamed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntityConfig {
    /// The name in messages, `page`.
    #[serde(rename = "type")]
    pub name: String,
    /// The table, and the name in URLs, `pages`.
    pub table: String,
    /// The column that names a row.
    #[serde(default = "default_key")]
    pub key: String,
    /// The column whose value splits the stream.
    pub scope: Option<String>,
    /// What happens to blind writes.
    #[serde(default)]
    pub conflict: ConflictPolicy,
    /// Keep each row's previous version, so that transactions can be undone.
    #[serde(default)]
    pub previous_values: bool,
    /// The column of the ids of the transactions that made, changed and deleted the row.
    #[serde(default)]
    pub transactions: KeptColumn,
    /// The column of the device that wrote the row last.
    #[serde(default)]
    pub last_client_id: KeptColumn,
    /// The column of the time at which the row was created.
    #[serde(default)]
    pub created_at: KeptColumn,
    /// The column of the time at which the row last changed.
    #[serde(default)]
    pub modified_at: KeptColumn,
    /// The column of the time at which the row was deleted.
    #[serde(default)]
    pub deleted_at: KeptColumn,
}

/// A column that the server keeps, as the configuration has it: a name, or `false`.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(try_from = "NameOrSwitch")]
pub enum KeptColumn {
    /// The column of the usual name, where the table has one that fits.
    #[default]
    Usual,
    /// This column.
    Named(String),
    /// None.
    Off,
}

#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "give the name of a column, or false")]
enum NameOrSwitch {
    Name(String),
    Switch(bool),
}

impl TryFrom<NameOrSwitch> for KeptColumn {
    type Error = &'static str;

    fn try_from(written: NameOrSwitch) -> Result<KeptColumn, &'static str> {
        match written {
            NameOrSwitch::Name(name) if !name.is_empty() => Ok(KeptColumn::Named(name)),
            NameOrSwitch::Switch(false) => Ok(KeptColumn::Off),
            _ => Err("give the name of a column, or false; leave it out for the usual name"),
        }
    }
}

/// The columns that the server keeps in an entity type's table, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "field by field the same as in EntityConfig, where each is described")]
pub struct KeptColumns {
    pub transactions: KeptColumn,
    pub last_client_id: KeptColumn,
    pub created_at: KeptColumn,
    pub modified_at: KeptColumn,
    pub deleted_at: KeptColumn,
}

fn default_key() -> String {
    "id".into()
}

impl EntityConfig {
    /// The columns that the server keeps.
    #[must_use]
    pub fn kept(&self) -> KeptColumns {
        KeptColumns {
            transactions: self.transactions.clone(),
            last_client_id: self.last_client_id.clone(),
            created_at: self.created_at.clone(),
            modified_at: self.modified_at.clone(),
            deleted_at: self.deleted_at.clone(),
        }
    }

    pub(super) fn to_toml(&self) -> String {
        let quote = |text: &str| toml::Value::String(text.into()).to_string();
        let scope =
            self.scope.as_deref().map(|scope| format!("scope = {}\n", quote(scope))).unwrap_or_default();
        let conflict = match self.conflict {
            ConflictPolicy::LastWriteWins => "last-write-wins",
            ConflictPolicy::OptimisticLock => "optimistic-lock",
        };
        let kept = [
            ("transactions", &self.transactions),
            ("last_client_id", &self.last_client_id),
            ("created_at", &self.created_at),
            ("modified_at", &self.modified_at),
            ("deleted_at", &self.deleted_at),
        ];
        let kept: String = kept
            .into_iter()
            .filter_map(|(key, column)| match column {
                KeptColumn::Usual => None,
                KeptColumn::Named(name) => Some(format!("{key} = {}\n", quote(name))),
                KeptColumn::Off => Some(format!("{key} = false\n")),
            })
            .collect();
        format!(
            "\n[[entity]]\ntype = {}\ntable = {}\nkey = {}\n{scope}conflict = \"{conflict}\"\nprevious_values = {}\n{kept}",
            quote(&self.name),
            quote(&self.table),
            quote(&self.key),
            self.previous_values
        )
    }
}

/// The entity types of the demo database.
#[must_use]
pub fn demo_entities() -> Vec<EntityConfig> {
    [("page", "pages"), ("attachment", "attachments")]
        .map(|(name, table)| EntityConfig {
            name: name.into(),
            table: table.into(),
            key: default_key(),
            scope: Some("organization_id".into()),
            conflict: ConflictPolicy::LastWriteWins,
            previous_values: true,
            transactions: KeptColumn::Usual,
            last_client_id: KeptColumn::Usual,
            created_at: KeptColumn::Usual,
            modified_at: KeptColumn::Usual,
            deleted_at: KeptColumn::Usual,
        })
        .into()
}

pub(super) fn check(entities: &[EntityConfig]) -> Result<(), ConfigError> {
    let invalid = |text: String| Err(ConfigError::Invalid(text));
    for (i, entity) in entities.iter().enumerate() {
        let EntityConfig { name, table, key, .. } = entity;
        let word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_lowercase())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        };
        if !word(name) || name.len() > 64 {
            return invalid(format!(
                "entity type `{name}`: use lower-case letters, digits, `_` and `-`, 64 at most"
            ));
        }
        let internal = table == "activities" || table.starts_with("bourn_") || table.starts_with("sqlite_");
        if table.is_empty() || table.contains(['/', '\0']) || internal {
            return invalid(format!(
                "entity type `{name}`: table `{table}` cannot be streamed; name one of your own"
            ));
        }
        if key.is_empty() || entity.scope.as_deref() == Some("") {
            return invalid(format!("entity type `{name}`: `key` and `scope` must name columns"));
        }
        for other in &entities[..i] {
            if other.name == *name {
                return invalid(format!("two entities have the type `{name}`"));
            }
            if other.table == *table {
                return invalid(format!("two entities have the table `{table}`"));
            }
        }
    }
    Ok(())
}
