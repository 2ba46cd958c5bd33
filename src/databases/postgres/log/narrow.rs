//! A query of the history as conditions on the log and the audit trail.

use super::walk::{START, Walk};
use crate::feed::ActivityQuery;

/// The conditions on activities. They lie before the place `$1`.
pub(in super::super) struct Narrowing {
    /// The columns that the query names, in the order of their values, which begin at `$2`.
    columns: Vec<&'static str>,
    pub(in super::super) values: Vec<String>,
}

/// A condition and an order.
type Where = (String, String);

impl Narrowing {
    pub(in super::super) fn of(query: &ActivityQuery) -> Narrowing {
        let given = [
            ("transaction_id", query.transaction_id.as_ref().map(ToString::to_string)),
            ("client_id", query.client_id.as_ref().map(ToString::to_string)),
            ("entity_id", query.entity_id.as_ref().map(ToString::to_string)),
            ("entity_type", query.entity_type.clone()),
            ("organization_id", query.organization_id.as_ref().map(ToString::to_string)),
        ];
        let given = given.into_iter().filter_map(|(column, value)| Some((column, value?)));
        let (columns, values) = given.unzip();
        Narrowing { columns, values }
    }

    fn parameter(&self, column: &str) -> Option<String> {
        let at = self.columns.iter().position(|name| *name == column)?;
        Some(format!("${}", at + 2))
    }

    /// Whether an index leads to few of the log's activities.
    pub(in super::super) fn is_by_index(&self) -> bool {
        self.columns.iter().any(|column| ["transaction_id", "client_id", "entity_id"].contains(column))
    }

    /// The condition on the log.
    pub(in super::super) fn in_log(&self) -> Where {
        let of = |column| self.parameter(column);
        match (of("transaction_id"), of("entity_id"), of("client_id"), of("entity_type")) {
            (Some(_), ..) | (None, Some(_), _, None) => self.sorted(),
            (None, Some(key), _, Some(name)) => {
                self.along(&Walk::of_row("a", &name, &key), &["entity_id", "entity_type"])
            }
            (None, None, Some(client), _) => self.along(&Walk::of_client("a", &client), &["client_id"]),
            (None, None, None, Some(name)) => self.along(&Walk::of_type("a", &name), &["entity_type"]),
            (None, None, None, None) => self.by_place(),
        }
    }

    /// The condition on the audit trail.
    pub(in super::super) fn in_audit(&self) -> Where {
        let of = |column| self.parameter(column);
        match (of("transaction_id").or(of("entity_id")), of("client_id")) {
            (Some(_), _) => self.sorted(),
            (None, Some(client)) => self.along(&Walk::of_client("a", &client), &["client_id"]),
            (None, None) => self.by_place(),
        }
    }

    /// The newest activities along an index that compares some of the columns.
    pub(in super::super) fn along(&self, walk: &Walk, compared: &[&str]) -> Where {
        let conditions = self.conditions(walk.between(START, "$1"), compared);
        (conditions, walk.newest_first())
    }

    /// The newest activities by place.
    fn by_place(&self) -> Where {
        (self.conditions("a.seq < $1".into(), &[]), "ORDER BY a.seq DESC".into())
    }

    /// The newest of few activities. Ordered by an expression that no index has: otherwise the planner may search the
    /// whole log.
    fn sorted(&self) -> Where {
        let mut conditions = self.conditions("a.seq < $1".into(), &[]);
        if let Some(key) = self.parameter("entity_id") {
            conditions += &format!(" AND hashtextextended(a.entity_id, 0) = hashtextextended({key}, 0)");
        }
        (conditions, "ORDER BY a.seq + 0 DESC".into())
    }

    fn conditions(&self, first: String, compared: &[&str]) -> String {
        let rest = self.columns.iter().zip(2..).filter(|(column, _)| !compared.contains(column));
        rest.fold(first, |all, (column, place)| format!("{all} AND a.{column} = ${place}"))
    }
}
