//! Walks along the indexes of the log, as SQL. The log is read in the order of its places, a few activities at a time.
//! The planner may then prefer to scan the whole log by place and to drop what does not match: it expects a match soon
//! where it knows of few entity types, feeds or rows. For a row that the log does not have, such a scan ends only at
//! the log's other end, and capture asks for thousands of rows at once. A condition and an order on all columns of an
//! index leave only that index.

/// The place before the first activity.
pub(in super::super) const START: &str = "0";
/// The place behind every activity.
pub(in super::super) const END: &str = "9223372036854775807";

/// A walk along an index.
pub(in super::super) struct Walk {
    /// The log's name in the statement.
    log: String,
    /// The index's columns before the place, and what they are compared with.
    columns: String,
    values: String,
    order: Vec<String>,
    /// The condition that the index does not cover.
    also: String,
}

impl Walk {
    /// The activities of a row. `log` is the name of the log in the statement.
    pub(in super::super) fn of_row(log: &str, entity_type: &str, key: &str) -> Walk {
        // The index has a hash of the key, which may be too long for it.
        let hash = |text: &str| format!("hashtextextended({text}, 0)");
        let columns = [hash(&format!("{log}.entity_id")), format!("{log}.entity_type")];
        let walk = Walk::new(log, &columns, &[hash(key), entity_type.to_owned()]);
        // Not an equality, from which the planner would expect a single activity and sort all of them.
        Walk { also: format!(" AND coalesce({log}.entity_id = {key}, false)"), ..walk }
    }

    /// The activities of an entity type.
    pub(in super::super) fn of_type(log: &str, entity_type: &str) -> Walk {
        Walk::new(log, &[format!("{log}.entity_type")], &[entity_type.to_owned()])
    }

    /// The activities of a feed.
    pub(in super::super) fn of_feed(log: &str, feed: &str) -> Walk {
        Walk::new(log, &[format!("{log}.feed_id")], &[feed.to_owned()])
    }

    /// The activities of a client.
    pub(in super::super) fn of_client(log: &str, client: &str) -> Walk {
        Walk::new(log, &[format!("{log}.client_id")], &[client.to_owned()])
    }

    fn new(log: &str, columns: &[String], values: &[String]) -> Walk {
        let order = columns.iter().cloned().chain([format!("{log}.seq")]).collect();
        let (columns, values) = (columns.join(", "), values.join(", "));
        Walk { log: log.to_owned(), columns, values, order, also: String::new() }
    }

    /// The condition: behind one place and before another.
    pub(in super::super) fn between(&self, after: &str, before: &str) -> String {
        let Walk { log, columns, values, also, .. } = self;
        format!(
            "({columns}, {log}.seq) > ({values}, {after}) AND ({columns}, {log}.seq) < ({values}, {before}){also}"
        )
    }

    /// Selects from the newest activity before a place.
    pub(in super::super) fn newest(&self, selected: &str, before: &str) -> String {
        let (log, condition, order) = (&self.log, self.between(START, before), self.newest_first());
        format!("SELECT {selected} FROM bourn.activities {log} WHERE {condition} {order} LIMIT 1")
    }

    /// The order that begins with the oldest.
    pub(in super::super) fn oldest_first(&self) -> String {
        format!("ORDER BY {}", self.order.join(", "))
    }

    /// The order that begins with the newest.
    pub(in super::super) fn newest_first(&self) -> String {
        format!("ORDER BY {} DESC", self.order.join(" DESC, "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_names_every_column_of_its_index() {
        let walk = Walk::of_type("a", "$1");
        assert_eq!(
            walk.between("$2", END),
            format!("(a.entity_type, a.seq) > ($1, $2) AND (a.entity_type, a.seq) < ($1, {END})")
        );
        assert_eq!(walk.oldest_first(), "ORDER BY a.entity_type, a.seq");
        let walk = Walk::of_row("a", "$1", "$2");
        assert_eq!(
            walk.newest_first(),
            "ORDER BY hashtextextended(a.entity_id, 0) DESC, a.entity_type DESC, a.seq DESC"
        );
        assert!(walk.between(START, "$3").ends_with(" AND coalesce(a.entity_id = $2, false)"));
    }
}
