//! Comparing a table with the log, for any database: how far it has come, and how a row differs from the log's version of
//! it. The databases read; the decisions are here.

use bourn_protocol::Seq;

use super::settle::{RowPlace, Transition};
use crate::feed::entity::Columns;

/// How far the comparing of a table has come. `K` is a key as the database orders it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Position<K> {
    /// Among the rows of the table, after this key: does the log have them as they are?
    Rows(Option<K>),
    /// Among the activities of the log, after this one: do the rows that they leave alive exist?
    Activities(Seq),
    /// All of it was compared.
    Done,
}

impl<K> Position<K> {
    /// The position after a step among the rows that ended with this key; `None` where no row follows. Against a log
    /// that had nothing of the table, the rows are all there is to compare.
    pub(crate) fn after_rows(last: Option<K>, from_empty: bool) -> Position<K> {
        match last {
            Some(last) => Position::Rows(Some(last)),
            None if from_empty => Position::Done,
            None => Position::Activities(Seq::ZERO),
        }
    }

    /// The position after a step among the activities that ended with this one; `None` where none follows.
    pub(crate) fn after_activities(last: Option<Seq>) -> Position<K> {
        last.map_or(Position::Done, Position::Activities)
    }
}

/// The log's last version of a row that it has alive, or the row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowVersion<'a> {
    pub(crate) scope: Option<&'a str>,
    /// The row as JSON.
    pub(crate) json: &'a str,
}

/// What the log lacks of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Difference {
    Nothing,
    Create,
    Update,
    Delete,
    /// A deletion in one scope and a creation in another.
    Move,
}

/// What the log lacks to have the row as the table has it.
pub(crate) fn difference<'a>(
    key: &'a str,
    logged: Option<RowVersion<'a>>,
    row: Option<RowVersion<'a>>,
) -> Difference {
    let place = |version: RowVersion<'a>| RowPlace { key, scope: version.scope };
    match Transition::between(logged.map(place), row.map(place)) {
        Transition::Hidden => Difference::Nothing,
        Transition::Enters => Difference::Create,
        Transition::Leaves => Difference::Delete,
        Transition::Moves => Difference::Move,
        Transition::Stays => match (logged, row) {
            (Some(logged), Some(row)) if !same(logged.json, row.json) => Difference::Update,
            _ => Difference::Nothing,
        },
    }
}

/// Whether two rows are equal. A column that one of them lacks counts as null: an added column alone is no change.
fn same(logged: &str, row: &str) -> bool {
    if logged == row {
        return true;
    }
    // Values are compared as text: the same rules wrote both.
    let parse = |json: &str| {
        let mut columns = Columns::parse(json.as_bytes()).ok()?;
        columns.retain(|_, value| !value.is_null());
        Some(columns.canonical())
    };
    match (parse(logged), parse(row)) {
        (Some(logged), Some(row)) => logged == row,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version<'a>(scope: Option<&'a str>, json: &'a str) -> Option<RowVersion<'a>> {
        Some(RowVersion { scope, json })
    }

    #[test]
    fn the_log_gets_what_it_lacks_of_a_row() {
        let (one, two) = (r#"{"id":1}"#, r#"{"id":2}"#);
        for (logged, row, expected) in [
            (None, None, Difference::Nothing),
            (None, version(None, one), Difference::Create),
            (version(Some("a"), one), None, Difference::Delete),
            (version(Some("a"), one), version(Some("b"), one), Difference::Move),
            (version(Some("a"), one), version(Some("a"), one), Difference::Nothing),
            (version(Some("a"), one), version(Some("a"), two), Difference::Update),
        ] {
            assert_eq!(difference("k", logged, row), expected, "{logged:?} to {row:?}");
        }
    }

    #[test]
    fn rows_are_compared_before_activities_and_an_empty_log_has_none() {
        assert_eq!(Position::after_rows(Some("k"), true), Position::Rows(Some("k")));
        assert_eq!(Position::<&str>::after_rows(None, true), Position::Done);
        assert_eq!(Position::<&str>::after_rows(None, false), Position::Activities(Seq::ZERO));
        let seq = Seq::new(7);
        assert_eq!(Position::<&str>::after_activities(seq), Position::Activities(seq.unwrap()));
        assert_eq!(Position::<&str>::after_activities(None), Position::Done);
    }

    #[test]
    fn an_added_column_without_values_is_no_change_and_a_dropped_one_with_values_is() {
        assert!(same(r#"{"id":1,"a":"x"}"#, r#"{"id":1,"a":"x","b":null}"#));
        assert!(!same(r#"{"id":1,"a":"x"}"#, r#"{"id":1,"a":"x","b":0}"#));
        assert!(!same(r#"{"id":1,"a":"x"}"#, r#"{"id":1,"a":null}"#));
        assert!(!same(r#"{"id":1,"a":"x"}"#, r#"{"id":1}"#));
    }

    #[test]
    fn a_value_of_any_depth_is_the_same_as_itself() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert!(same(&format!(r#"{{"a":{deep}}}"#), &format!(r#"{{"a":{deep},"b":null}}"#)));
    }
}
