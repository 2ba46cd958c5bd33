//! Compares a row with the log's version of it, for any database.

use crate::feed::entity::Columns;

/// Whether two rows are equal. A column that one of them lacks counts as null: an added column alone is no change.
pub(crate) fn same(logged: Option<&str>, row: &str) -> bool {
    if logged == Some(row) {
        return true;
    }
    // Values are compared as text: the same rules wrote both.
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
