//! The columns of a table, and which request bodies fit them.

use super::EntityType;
use super::column::{Column, ColumnKind};
use super::kept::KeptColumnNames;
use super::members::{Columns, printable};

/// A column of a set that must be unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueColumn {
    /// Its name.
    pub name: String,
    /// The collation that decides whether two values are equal.
    pub collation: String,
}

/// A table's columns, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSchema {
    /// The columns.
    pub columns: Vec<Column>,
    /// Which of them the server keeps.
    pub kept: KeptColumnNames,
    /// The sets of columns that must be unique, besides the text of the key; only those that a storage has to know.
    pub unique: Vec<Vec<UniqueColumn>>,
    /// Columns that look as if the server should keep them, and why it does not; text for the operator.
    pub left_alone: Vec<String>,
}

/// A request body did not fit the table; each names its column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// The table has no such column.
    #[error("there is no column `{0}`; the columns are {1}")]
    Unknown(String, String),
    /// The server keeps that column itself.
    #[error("`{0}` is kept by the server; leave it out (transaction and client ids go into headers)")]
    ReadOnly(String),
    /// The value does not fit.
    #[error("`{0}` must be {1}")]
    WrongType(String, String),
    /// The column must have a value.
    #[error("`{0}` must have a value")]
    Missing(String),
}

impl TableSchema {
    /// The schema of an entity type's table with these columns.
    ///
    /// # Errors
    /// When a column that the configuration names is missing or does not fit, in words.
    pub fn new(entity: &EntityType, mut columns: Vec<Column>) -> Result<TableSchema, String> {
        let (kept, left_alone) = KeptColumnNames::find(&entity.kept, &entity.table, &columns)?;
        let ids = columns.iter_mut().find(|column| kept.transactions.as_ref() == Some(&column.name));
        if let Some(column) = ids {
            column.kind = ColumnKind::Json;
        }
        Ok(TableSchema { columns, kept, unique: Vec::new(), left_alone })
    }

    /// The column of this name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether the table has a column of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.column(name).is_some()
    }

    /// Checks the columns that a request sets; `whole` when they are to become a new row.
    ///
    /// # Errors
    /// For the first column that is unknown, kept by the server, of the wrong type or missing.
    pub fn check(&self, values: &Columns, whole: bool) -> Result<(), ColumnError> {
        for (name, value) in values.iter() {
            let Some(column) = self.column(name) else {
                let known: Vec<_> = self.columns.iter().map(|column| column.name.as_str()).collect();
                return Err(ColumnError::Unknown(printable(name), known.join(", ")));
            };
            if column.generated || self.kept.is_read_only(name) {
                return Err(ColumnError::ReadOnly(name.to_owned()));
            }
            if value.is_null() {
                if column.required {
                    return Err(ColumnError::Missing(name.to_owned()));
                }
            } else if !column.kind.fits(value) {
                return Err(ColumnError::WrongType(name.to_owned(), column.kind.wanted().into()));
            }
        }
        let filled = |column: &Column| {
            let name = column.name.as_str();
            !column.required
                || column.has_default
                || column.generated
                || values.has(name)
                || self.kept.is_filled_in(name)
        };
        match self.columns.iter().find(|column| whole && !filled(column)) {
            Some(missing) => Err(ColumnError::Missing(missing.name.clone())),
            None => Ok(()),
        }
    }
}
