//! Columns that the server keeps itself. Each has a usual name, which the configuration can change or switch off; and a
//! column of the usual name whose type does not fit belongs to the application, and is left alone.

use super::column::{Column, ColumnKind};
use crate::config::{KeptColumn, KeptColumns};

/// The names of the columns that the server keeps in one table; nothing where the table has none for the purpose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeptColumnNames {
    /// The ids of the transactions that made, changed and deleted the row.
    pub transactions: Option<String>,
    /// The device that wrote the row last.
    pub last_client_id: Option<String>,
    /// When the row was created.
    pub created_at: Option<String>,
    /// When the row last changed.
    pub modified_at: Option<String>,
    /// When the row was deleted; a table that has it deletes softly.
    pub deleted_at: Option<String>,
}

impl KeptColumnNames {
    /// Whether no request body may set the column.
    #[must_use]
    pub fn is_read_only(&self, column: &str) -> bool {
        self.is_bookkeeping(column) || self.deleted_at.as_deref() == Some(column)
    }

    /// Whether `changed_keys` leaves the column out: bookkeeping, not content.
    #[must_use]
    pub fn is_bookkeeping(&self, column: &str) -> bool {
        [&self.transactions, &self.last_client_id, &self.modified_at]
            .into_iter()
            .any(|name| name.as_deref() == Some(column))
    }

    /// Whether the server fills the column in when a row is created.
    #[must_use]
    pub fn is_filled_in(&self, column: &str) -> bool {
        self.is_read_only(column) || self.created_at.as_deref() == Some(column)
    }

    /// Finds the columns in a table of entity type `table`; also returns, as text for the operator, the columns that it
    /// left alone.
    ///
    /// # Errors
    /// When a column that the configuration names is missing or does not fit, in words.
    pub(super) fn find(
        config: &KeptColumns,
        table: &str,
        columns: &[Column],
    ) -> Result<(KeptColumnNames, Vec<String>), String> {
        let mut left_alone = Vec::new();
        let mut find = |purpose: Purpose, configured: &KeptColumn| {
            let (name, given) = match configured {
                KeptColumn::Off => return Ok(None),
                KeptColumn::Named(name) => (name.as_str(), true),
                KeptColumn::Usual => (purpose.name(), false),
            };
            let Some(column) = columns.iter().find(|column| column.name == name) else {
                return match given {
                    true => Err(format!(
                        "table `{table}` has no column `{name}`, which the configuration names as its `{}`",
                        purpose.name()
                    )),
                    false => Ok(None),
                };
            };
            match purpose.misfit(column) {
                None => Ok(Some(column.name.clone())),
                Some(why) if given => Err(format!(
                    "column `{name}` of table `{table}` cannot be its `{}`: {why}",
                    purpose.name()
                )),
                Some(why) => {
                    left_alone.push(format!(
                        "column `{name}` is left alone, as an ordinary column: {why}; `{} = false` in the configuration \
                         says so without this notice, and a name instead of `false` makes another column serve",
                        purpose.name()
                    ));
                    Ok(None)
                }
            }
        };
        let kept = KeptColumnNames {
            transactions: find(Purpose::Transactions, &config.transactions)?,
            last_client_id: find(Purpose::LastClientId, &config.last_client_id)?,
            created_at: find(Purpose::CreatedAt, &config.created_at)?,
            modified_at: find(Purpose::ModifiedAt, &config.modified_at)?,
            deleted_at: find(Purpose::DeletedAt, &config.deleted_at)?,
        };
        Ok((kept, left_alone))
    }
}

/// What a column is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Transactions,
    LastClientId,
    CreatedAt,
    ModifiedAt,
    DeletedAt,
}

impl Purpose {
    /// The usual name of the column, and its key in the configuration.
    const fn name(self) -> &'static str {
        match self {
            Purpose::Transactions => "transactions",
            Purpose::LastClientId => "last_client_id",
            Purpose::CreatedAt => "created_at",
            Purpose::ModifiedAt => "modified_at",
            Purpose::DeletedAt => "deleted_at",
        }
    }

    /// Why the column cannot serve, if it cannot.
    fn misfit(self, column: &Column) -> Option<&'static str> {
        let kinds: &[ColumnKind] = match self {
            Purpose::Transactions => &[ColumnKind::Json, ColumnKind::Text, ColumnKind::Any],
            Purpose::LastClientId => &[ColumnKind::Text, ColumnKind::Any],
            Purpose::CreatedAt | Purpose::ModifiedAt | Purpose::DeletedAt => {
                &[ColumnKind::Timestamp, ColumnKind::Text, ColumnKind::Any]
            }
        };
        if column.generated {
            return Some("the database computes it");
        }
        if !kinds.contains(&column.kind) {
            return Some(match self {
                Purpose::Transactions => "its type is neither JSON nor text",
                Purpose::LastClientId => "its type is not text",
                _ => "its type is neither a time nor text",
            });
        }
        let always_set = self == Purpose::DeletedAt && column.required;
        always_set.then_some("it is NOT NULL, so that rows that are not deleted have a value, too")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: ColumnKind, required: bool) -> Column {
        Column {
            name: name.into(),
            kind,
            required,
            has_default: false,
            generated: false,
            rowid: false,
            never_number: false,
        }
    }

    #[test]
    fn a_column_of_a_usual_name_serves_only_if_its_type_fits() {
        let columns = [
            column("transactions", ColumnKind::Integer, false),
            column("created_at", ColumnKind::Integer, false),
            column("modified_at", ColumnKind::Timestamp, false),
            column("deleted_at", ColumnKind::Text, true),
        ];
        let (kept, left_alone) = KeptColumnNames::find(&KeptColumns::default(), "t", &columns).unwrap();
        assert_eq!(
            kept,
            KeptColumnNames { modified_at: Some("modified_at".into()), ..KeptColumnNames::default() }
        );
        assert_eq!(left_alone.len(), 3, "{left_alone:?}");
        assert!(!kept.is_read_only("transactions") && kept.is_read_only("modified_at"));
    }

    #[test]
    fn names_are_configured_and_what_is_configured_must_be_there_and_fit() {
        let columns = [
            column("removed", ColumnKind::Timestamp, false),
            column("deleted_at", ColumnKind::Timestamp, false),
            column("n", ColumnKind::Integer, false),
        ];
        let named =
            |name: &str| KeptColumns { deleted_at: KeptColumn::Named(name.into()), ..KeptColumns::default() };
        let find = |config: &KeptColumns| KeptColumnNames::find(config, "t", &columns);
        assert_eq!(find(&named("removed")).unwrap().0.deleted_at.as_deref(), Some("removed"));
        assert!(find(&named("gone")).unwrap_err().contains("has no column `gone`"));
        assert!(find(&named("n")).unwrap_err().contains("neither a time nor text"));
        let off = KeptColumns { deleted_at: KeptColumn::Off, ..KeptColumns::default() };
        assert_eq!(find(&off).unwrap(), (KeptColumnNames::default(), Vec::new()));
    }
}
