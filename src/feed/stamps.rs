//! What a mutation sets in the columns that the server keeps, planned once for every database; how a value is written is the
//! database's own business.

use super::entity::TableSchema;

/// What a kept column is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// The mutation's id, in the field of what it does (see [`bourn_protocol::Action::operation`]); the other fields are as they were, and null in a new row.
    Transaction,
    /// The client that sent it, or null.
    Client,
    /// The time.
    Now,
}

/// What is set in a new row beside the given columns.
pub(crate) fn of_new_row(
    schema: &TableSchema,
    given: impl Fn(&str) -> bool,
) -> impl Iterator<Item = (&str, Stamp)> {
    let kept = &schema.kept;
    let required = |name: &str| schema.column(name).is_some_and(|column| column.required);
    planned([
        (kept.transactions.as_deref(), Stamp::Transaction),
        (kept.last_client_id.as_deref(), Stamp::Client),
        (kept.created_at.as_deref().filter(|name| !given(name)), Stamp::Now),
        // A new row has no time of change, unless its table requires one.
        (kept.modified_at.as_deref().filter(|name| required(name)), Stamp::Now),
    ])
}

/// What is set in a changed row beside the given columns; an undo may set kept columns, too.
pub(crate) fn of_change(
    schema: &TableSchema,
    set: impl Fn(&str) -> bool,
) -> impl Iterator<Item = (&str, Stamp)> {
    let kept = &schema.kept;
    planned([
        (kept.transactions.as_deref().filter(|name| !set(name)), Stamp::Transaction),
        (kept.last_client_id.as_deref().filter(|name| !set(name)), Stamp::Client),
        (kept.modified_at.as_deref().filter(|name| !set(name)), Stamp::Now),
    ])
}

fn planned<const N: usize>(columns: [(Option<&str>, Stamp); N]) -> impl Iterator<Item = (&str, Stamp)> {
    columns.into_iter().filter_map(|(name, stamp)| Some((name?, stamp)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::entity::{Column, ColumnKind, KeptColumnNames};

    fn schema(modified_at_is_required: bool) -> TableSchema {
        let column = |name: &str, required| Column {
            name: name.into(),
            kind: ColumnKind::Text,
            required,
            has_default: false,
            generated: false,
            rowid: false,
            never_number: false,
        };
        let name = |name: &str| Some(name.to_owned());
        TableSchema {
            columns: vec![column("changed", modified_at_is_required), column("made", false)],
            kept: KeptColumnNames {
                transactions: name("txs"),
                last_client_id: None,
                created_at: name("made"),
                modified_at: name("changed"),
                deleted_at: name("gone"),
            },
            unique: Vec::new(),
            left_alone: Vec::new(),
        }
    }

    #[test]
    fn a_new_row_is_stamped_and_dated_unless_a_date_was_given() {
        let stamps = |schema: &TableSchema, given: &[&str]| -> Vec<(String, Stamp)> {
            of_new_row(schema, |name| given.contains(&name))
                .map(|(name, stamp)| (name.into(), stamp))
                .collect()
        };
        let stamped = ("txs".to_owned(), Stamp::Transaction);
        let made = ("made".to_owned(), Stamp::Now);
        assert_eq!(stamps(&schema(false), &[]), [stamped.clone(), made.clone()]);
        assert_eq!(
            stamps(&schema(false), &["made", "txs"]),
            std::slice::from_ref(&stamped),
            "an id is not taken from a client"
        );
        assert_eq!(stamps(&schema(true), &[]), [stamped, made, ("changed".to_owned(), Stamp::Now)]);
    }

    #[test]
    fn a_change_stamps_what_it_does_not_set_itself() {
        let schema = schema(false);
        let all: Vec<_> = of_change(&schema, |_| false).collect();
        assert_eq!(all, [("txs", Stamp::Transaction), ("changed", Stamp::Now)]);
        let undone: Vec<_> = of_change(&schema, |name| name == "changed").collect();
        assert_eq!(undone, [("txs", Stamp::Transaction)]);
    }
}
