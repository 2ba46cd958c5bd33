//! Settling: what it means to the readers of a table's lists that a row was so and is so now. Both databases settle
//! changes by these rules: PostgreSQL's capture asks here, SQLite's triggers are generated to do the same (their tests
//! compare each transition), and both ask here when they compare a table with the log.

/// Where a visible row is found: under its key, in its scope's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowPlace<'a> {
    pub(crate) key: &'a str,
    pub(crate) scope: Option<&'a str>,
}

/// What a change is to the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    /// The row was in no list and is in none.
    Hidden,
    /// It enters a place: a create.
    Enters,
    /// It leaves its place: a delete.
    Leaves,
    /// It leaves one place and enters another: a delete, then a create.
    Moves,
    /// It stays where it is: an update, if a value differs.
    Stays,
}

impl Transition {
    /// The transition between two places; a row that does not exist, or is deleted softly, has none.
    pub(crate) fn between(before: Option<RowPlace<'_>>, after: Option<RowPlace<'_>>) -> Transition {
        match (before, after) {
            (None, None) => Transition::Hidden,
            (None, Some(_)) => Transition::Enters,
            (Some(_), None) => Transition::Leaves,
            (Some(before), Some(after)) if before == after => Transition::Stays,
            (Some(_), Some(_)) => Transition::Moves,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_moves_where_its_key_or_its_scope_changes() {
        let place = |key, scope| Some(RowPlace { key, scope });
        for (before, after, expected) in [
            (None, None, Transition::Hidden),
            (None, place("k", None), Transition::Enters),
            (place("k", Some("s")), None, Transition::Leaves),
            (place("k", Some("s")), place("k", Some("s")), Transition::Stays),
            (place("k", Some("s")), place("k", Some("t")), Transition::Moves),
            (place("k", Some("s")), place("k", None), Transition::Moves),
            (place("k", Some("s")), place("j", Some("s")), Transition::Moves),
        ] {
            assert_eq!(Transition::between(before, after), expected, "{before:?} to {after:?}");
        }
    }
}
