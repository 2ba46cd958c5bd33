//! Comparing a row with what the log has of it, whatever the database.

use serde_json::Value;

/// Whether two rows are the same but for columns that one lacks and that are null in the other: a column that
/// was added says nothing yet.
pub(super) fn same(logged: Option<&str>, row: &str) -> bool {
    if logged == Some(row) {
        return true;
    }
    let parse = |json: &str| match serde_json::from_str(json) {
        Ok(Value::Object(map)) => {
            Some(map.into_iter().filter(|(_, value)| !value.is_null()).collect::<Vec<_>>())
        }
        _ => None,
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
}
