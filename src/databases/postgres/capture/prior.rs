//! What the log has of rows: looked up for many at once, when the replication stream does not send enough of them.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::settle::{Alive, LoggedRow, RowName};
use crate::databases::postgres::connections::statement;
use crate::databases::postgres::log::walk::{END, START, Walk};

/// What the log has of a row, and which transaction made its last activity.
#[derive(Debug, Clone)]
pub(super) struct Prior {
    pub(super) logged: LoggedRow,
    pub(super) commit_id: i64,
    pub(super) seq: i64,
}

/// What the log has of these rows; those it has nothing of are missing from the result.
pub(super) async fn look_up(
    connection: &mut PgConnection,
    rows: &[RowName],
) -> Result<HashMap<RowName, Prior>, sqlx::Error> {
    let types: Vec<&str> = rows.iter().map(|(name, _)| &**name).collect();
    let keys: Vec<&str> = rows.iter().map(|(_, key)| key.as_str()).collect();
    let of_row = |log: &str| Walk::of_row(log, "k.entity_type", "k.entity_id");
    let with_value = of_row("v");
    let sql = format!(
        "SELECT k.place, a.action <> 'delete', a.organization_id, a.value, a.commit_id, \
         CASE WHEN a.action = 'delete' THEN (SELECT v.value FROM bourn.activities v WHERE {} AND v.value IS NOT NULL {} LIMIT 1) END, a.seq \
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (entity_type, entity_id, place) \
         CROSS JOIN LATERAL ({}) a",
        with_value.between(START, END),
        with_value.newest_first(),
        of_row("a").newest("a.action, a.organization_id, a.value, a.commit_id, a.seq", END),
    );
    let found = statement(AssertSqlSafe(sql)).bind(types).bind(keys).fetch_all(connection).await?;
    let mut priors = HashMap::with_capacity(found.len());
    for row in found {
        let place: i64 = row.try_get(0)?;
        let Some(name) = usize::try_from(place - 1).ok().and_then(|place| rows.get(place)) else { continue };
        let value: Option<String> = row.try_get(3)?;
        let value: Option<Arc<str>> = value.map(Into::into);
        let alive = match (row.try_get(1)?, &value) {
            (true, Some(value)) => Some(Alive { scope: row.try_get(2)?, value: value.clone() }),
            _ => None,
        };
        let earlier: Option<String> = row.try_get(5)?;
        let (commit_id, seq) = (row.try_get(4)?, row.try_get(6)?);
        let logged =
            LoggedRow { alive, last_value: value.or(earlier.map(Into::into)), commit: Some(commit_id) };
        priors.insert(name.clone(), Prior { logged, commit_id, seq });
    }
    Ok(priors)
}
