//! Entity types: what is configured about a streamed table, and what the database says of its columns.
//! The storage keeps the column side current; the HTTP layer checks requests against it.

mod column;
mod kept;
mod members;
mod schema;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use bourn_protocol::{EntityTypes, MessageKind, Scope, Selector};

pub use crate::config::ConflictPolicy;
use crate::config::{EntityConfig, KeptColumns};
pub use column::{Column, ColumnKind, unhex};
pub use kept::KeptColumnNames;
pub use members::{Columns, Json, Kind};
pub use schema::{ColumnError, TableSchema, UniqueColumn};

/// The kinds of column whose values are told apart by their text.
const NAMEABLE: [ColumnKind; 4] =
    [ColumnKind::Integer, ColumnKind::Text, ColumnKind::Numeric, ColumnKind::Real];

/// What the database says of an entity type's table now.
#[derive(Debug, Clone)]
pub enum TableState {
    /// It is there and fits.
    Ready(Arc<TableSchema>),
    /// It is missing or does not fit; the text says how, in words of our own.
    Unavailable(String),
}

/// One entity type.
#[derive(Debug)]
pub struct EntityType {
    /// The name in messages, `page`.
    pub name: Arc<str>,
    /// The table, and the name in URLs, `pages`.
    pub table: String,
    /// The column that identifies a row.
    pub key: String,
    /// The column that splits the stream.
    pub scope: Option<String>,
    /// What happens to blind writes.
    pub conflict: ConflictPolicy,
    /// Whether each change keeps the row's previous version.
    pub previous_values: bool,
    /// Which columns the server keeps, as configured.
    pub kept: KeptColumns,
    state: ArcSwap<TableState>,
    /// Why changes of the table are not captured although the table fits; `None` while they are captured.
    stopped: ArcSwapOption<String>,
}

impl EntityType {
    fn new(config: &EntityConfig) -> EntityType {
        EntityType {
            name: config.name.as_str().into(),
            table: config.table.clone(),
            key: config.key.clone(),
            scope: config.scope.clone(),
            conflict: config.conflict,
            previous_values: config.previous_values,
            kept: config.kept(),
            state: ArcSwap::from_pointee(TableState::Unavailable("it has not been looked at yet".into())),
            stopped: ArcSwapOption::empty(),
        }
    }

    /// The table's columns, or why there are none.
    ///
    /// # Errors
    /// The reason, as words for the operator and the client.
    pub fn schema(&self) -> Result<Arc<TableSchema>, String> {
        match &**self.state.load() {
            TableState::Ready(schema) => Ok(schema.clone()),
            TableState::Unavailable(reason) => Err(reason.clone()),
        }
    }

    /// Checks that the streams of this type have, or will have, every committed change.
    ///
    /// # Errors
    /// The reason why not, as words for the client.
    pub fn complete(&self) -> Result<(), String> {
        self.schema()?;
        self.stopped.load().as_ref().map_or(Ok(()), |reason| Err(String::clone(reason)))
    }

    /// Sets why changes of the table are not captured; `None` when they are captured again.
    pub fn set_stopped(&self, reason: Option<String>) {
        self.stopped.store(reason.map(Arc::new));
    }

    /// Stores the table's state as the database has it now.
    pub fn set_state(&self, state: TableState) {
        self.state.store(Arc::new(state));
    }

    /// Why a table with these columns cannot be streamed as this type, if it cannot; `key_is_unique` when the
    /// database keeps two rows from having one key.
    #[must_use]
    pub fn unfit(&self, schema: &TableSchema, key_is_unique: bool) -> Option<String> {
        let (name, key) = (&self.table, &self.key);
        let Some(column) = schema.column(key) else {
            return Some(format!("table `{name}` has no column `{key}` to be its key"));
        };
        if !key_is_unique {
            return Some(format!(
                "column `{key}` of table `{name}` is not unique; give it a primary key or a unique index"
            ));
        }
        if !NAMEABLE.contains(&column.kind) {
            let kind = column.kind;
            return Some(format!(
                "column `{key}` of table `{name}` cannot be a key: its type is {kind:?}; declare it as text or integer"
            ));
        }
        let scope = self.scope.as_deref().filter(|scope| !schema.has(scope));
        scope.map(|scope| format!("table `{name}` has no column `{scope}` to be its scope"))
    }

    /// The stream of this type's changes, in one scope or all.
    #[must_use]
    pub fn stream(&self, scope: Option<Scope>) -> Selector {
        Selector {
            kind: MessageKind::Change,
            types: EntityTypes::One(self.name.clone()),
            scope,
            old_values: true,
        }
    }
}

/// All entity types of the server.
#[derive(Debug)]
pub struct Catalog {
    entities: Vec<Arc<EntityType>>,
    by_table: HashMap<String, usize>,
}

impl Catalog {
    /// The catalog of a checked configuration.
    #[must_use]
    pub fn new(configs: &[EntityConfig]) -> Catalog {
        let entities: Vec<_> = configs.iter().map(|config| Arc::new(EntityType::new(config))).collect();
        let by_table = entities.iter().enumerate().map(|(i, entity)| (entity.table.clone(), i)).collect();
        Catalog { entities, by_table }
    }

    /// The type whose table has this name.
    #[must_use]
    pub fn by_table(&self, table: &str) -> Option<&Arc<EntityType>> {
        self.by_table.get(table).map(|&i| &self.entities[i])
    }

    /// The type of this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Arc<EntityType>> {
        self.entities.iter().find(|entity| &*entity.name == name)
    }

    /// Every type, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<EntityType>> {
        self.entities.iter()
    }
}
