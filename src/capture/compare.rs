//! Comparing a row with what the log has of it, whatever the database.

use crate::feed::entity::Columns;

/// Whether two rows are the same but for columns that one lacks and that are null in the other: a column that
/// was added says nothing yet.
pub(crate) fn same(logged: Option<&str>, row: &str) -> bool {
    if logged == Some(row) {
        return true;
    }
    // Values are compared as they are written: both were written by the same rules.
    let parse = |json: &str| {
        let mut columns = Columns::parse(json.as_bytes()).ok()?;
        columns.retain(|_, value| !value.is_null());
        Some(columns.canonical())
    };
    match (logged.and_then(parse), parse(row)) {
        (Some(logged), Some(row)) => logged == row,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_added_column_without_values_is_no_change() {
        assert!(same(Some(r#"{"id":1,"a":"x"}"#), r#"{"id":1,"a":"x","b":null}"#));
        assert!(!same(Some(r#"{"id":1,"a":"x"}"#), r#"{"id":1,"a":"x","b":0}"#));
        assert!(!same(Some(r#"{"id":1,"a":"x"}"#), r#"{"id":1,"a":null}"#));
    }

    #[test]
    fn a_value_of_any_depth_is_the_same_as_itself() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert!(same(Some(&format!(r#"{{"a":{deep}}}"#)), &format!(r#"{{"a":{deep},"b":null}}"#)));
    }
}
