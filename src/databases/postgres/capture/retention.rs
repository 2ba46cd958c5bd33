//! Retention on PostgreSQL: past its time a version that a newer one has superseded leaves the streams, and so does a
//! deletion. The newest version of each living row stays, so reading from the start gives the whole state, shorter. The
//! leader does it beside capture, step by step, under the same fence; the activities that it removes are kept without
//! their payload, in a partition for each month.

use sqlx::{AssertSqlSafe, Row};
use tokio_util::sync::CancellationToken;

use super::CaptureError;
use crate::databases::postgres::Inner;
use crate::databases::postgres::connections::{Session, scalar, statement};
use crate::databases::postgres::log::walk::Walk;
use crate::feed::retention::Retention;

/// Activities looked at in one step.
const STEP: i64 = 2_000;

/// Works until the server does not lead any more.
pub(super) async fn run(inner: Inner, fence: i64, stop: CancellationToken) {
    let Some(retention) = Retention::of(&inner.limits) else { return };
    loop {
        tokio::select! {
            () = tokio::time::sleep(retention.interval) => {}
            () = stop.cancelled() => return,
        }
        match work(&inner, fence, &retention, &stop).await {
            Ok(()) => {}
            Err(CaptureError::Fenced) => return,
            Err(lost) => tracing::warn!(reason = %lost, "old activities cannot be taken out now"),
        }
    }
}

async fn work(
    inner: &Inner,
    fence: i64,
    retention: &Retention,
    stop: &CancellationToken,
) -> Result<(), CaptureError> {
    turn_month(inner, fence).await?;
    while !stop.is_cancelled() && step(inner, fence, retention).await? {}
    drop_months(inner, fence, retention).await
}

/// A transaction of the leader; `None` if this server is not the leader any more.
async fn fenced(inner: &Inner, fence: i64) -> Result<Session, CaptureError> {
    let mut transaction = inner.db.begin().await?;
    let leads: bool =
        scalar("SELECT fence = $1 FROM bourn.log").bind(fence).fetch_one(&mut *transaction).await?;
    if leads { Ok(transaction) } else { Err(CaptureError::Fenced) }
}

/// Transactions' last changes that have left, column by column.
#[derive(Default)]
struct Lasts {
    seq: Vec<i64>,
    entity_type: Vec<String>,
    feed_id: Vec<i32>,
    commit_id: Vec<i64>,
    last: Vec<i16>,
}

/// Does one step; returns whether there may be more to do.
async fn step(inner: &Inner, fence: i64, retention: &Retention) -> Result<bool, CaptureError> {
    let mut transaction = fenced(inner, fence).await?;
    // The newest activity stays whatever it is: the tails of streams are read from it.
    let row = statement(
        "SELECT l.pruned, max(p.seq) FILTER (WHERE p.old), count(*) FILTER (WHERE p.old) FROM bourn.log l LEFT JOIN LATERAL (\
           SELECT a.seq, bool_and(a.created_at < to_timestamp($1::float8 / 1000)) OVER (ORDER BY a.seq) AS old \
           FROM bourn.activities a WHERE a.seq > l.pruned AND a.seq < (SELECT max(seq) FROM bourn.activities) ORDER BY a.seq LIMIT $2) p ON true GROUP BY l.pruned",
    )
    .bind(millis(retention.history_bound()))
    .bind(STEP)
    .fetch_one(&mut *transaction)
    .await?;
    let (from, to, count): (i64, Option<i64>, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let Some(to) = to else { return Ok(false) };
    // For each row that was looked at: the versions that its newest one supersedes, and that one itself if it is a
    // deletion.
    let lasts = statement(
        "WITH newest AS (SELECT DISTINCT ON (entity_type, entity_id) entity_type, entity_id, seq, action FROM bourn.activities \
           WHERE seq > $1 AND seq <= $2 ORDER BY entity_type, entity_id, seq DESC), \
         gone AS (DELETE FROM bourn.activities a USING newest n WHERE hashtextextended(a.entity_id, 0) = hashtextextended(n.entity_id, 0) AND a.entity_id = n.entity_id AND a.entity_type = n.entity_type \
           AND a.seq <= n.seq AND (a.seq < n.seq OR n.action = 'delete') RETURNING a.*), \
         kept AS (INSERT INTO bourn.audit SELECT seq, action, entity_type, entity_id, organization_id, transaction_id, client_id, \
           changed_keys, commit_id, created_at, subject FROM gone WHERE seq >= (SELECT min(first_seq) FROM bourn.months)), \
         raised AS (UPDATE bourn.feeds f SET horizon = greatest(f.horizon, g.seq) FROM (SELECT feed_id, max(seq) AS seq FROM gone \
           WHERE action = 'delete' GROUP BY feed_id) g WHERE f.id = g.feed_id), \
         noted AS (UPDATE bourn.log SET pruned = $2, generation = generation + (SELECT least(count(*), 1) FROM gone), \
           horizon = greatest(horizon, (SELECT max(seq) FROM gone WHERE action = 'delete')) WHERE fence = $3 RETURNING 1) \
         SELECT (SELECT count(*) FROM noted), g.seq, g.entity_type, g.feed_id, g.commit_id, g.last \
         FROM (SELECT 1) one LEFT JOIN gone g ON g.last <> 0 ORDER BY g.seq DESC",
    )
    .bind(from)
    .bind(to)
    .bind(fence)
    .fetch_all(&mut *transaction)
    .await?;
    if lasts.first().is_none_or(|row| row.try_get::<i64, _>(0).unwrap_or_default() == 0) {
        return Err(CaptureError::Fenced);
    }
    let mut columns = Lasts::default();
    for row in &lasts {
        let Some(seq) = row.try_get::<Option<i64>, _>(1)? else { continue };
        columns.seq.push(seq);
        columns.entity_type.push(row.try_get(2)?);
        columns.feed_id.push(row.try_get(3)?);
        columns.commit_id.push(row.try_get(4)?);
        columns.last.push(row.try_get(5)?);
    }
    // A transaction's last change has left: the one before it is the last now.
    let sql = format!(
        "UPDATE bourn.activities a SET last = a.last | n.bits FROM (SELECT p.seq, bit_or(p.bits) AS bits FROM ( \
           SELECT x.seq, 2::int2 AS bits FROM unnest($1::int8[], $2::text[], $3::int4[], $4::int8[], $5::int2[]) g (seq, entity_type, feed_id, commit_id, last) \
           CROSS JOIN LATERAL ({}) x \
           WHERE x.commit_id = g.commit_id AND g.last & 2 <> 0 \
           UNION ALL SELECT x.seq, 1::int2 FROM unnest($1::int8[], $2::text[], $3::int4[], $4::int8[], $5::int2[]) g (seq, entity_type, feed_id, commit_id, last) \
           CROSS JOIN LATERAL ({}) x \
           WHERE x.commit_id = g.commit_id AND g.last & 1 <> 0) p GROUP BY p.seq) n WHERE a.seq = n.seq",
        Walk::of_type("b", "g.entity_type").newest("b.seq, b.commit_id", "g.seq"),
        Walk::of_feed("b", "g.feed_id").newest("b.seq, b.commit_id", "g.seq"),
    );
    statement(AssertSqlSafe(sql))
        .bind(columns.seq)
        .bind(columns.entity_type)
        .bind(columns.feed_id)
        .bind(columns.commit_id)
        .bind(columns.last)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(count == STEP)
}

/// Begins a partition of the audit trail when a month begins: the one before is closed where the log stands now.
async fn turn_month(inner: &Inner, fence: i64) -> Result<(), CaptureError> {
    let mut transaction = fenced(inner, fence).await?;
    let row = statement(
        "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM'), EXISTS (SELECT 1 FROM bourn.months \
           WHERE month = date_trunc('month', now() AT TIME ZONE 'UTC')::date), \
         (SELECT to_char(max(month), 'YYYY_MM') FROM bourn.months), (SELECT max(first_seq) FROM bourn.months), \
         (SELECT greatest(l.head + 1, coalesce((SELECT max(first_seq) + 1 FROM bourn.months), 0)) FROM bourn.log l)",
    )
    .fetch_one(&mut *transaction)
    .await?;
    if row.try_get(1)? {
        return Ok(());
    }
    let (month, before): (String, Option<String>) = (row.try_get(0)?, row.try_get(2)?);
    let mut sql = String::new();
    let first = match (before, row.try_get::<Option<i64>, _>(3)?) {
        (Some(before), Some(since)) => {
            let until: i64 = row.try_get(4)?;
            sql.push_str(&format!(
                "ALTER TABLE bourn.audit DETACH PARTITION bourn.audit_{before}; \
                 ALTER TABLE bourn.audit ATTACH PARTITION bourn.audit_{before} FOR VALUES FROM ({since}) TO ({until});"
            ));
            until
        }
        _ => 0,
    };
    sql.push_str(&format!(
        "CREATE TABLE bourn.audit_{month} PARTITION OF bourn.audit FOR VALUES FROM ({first}) TO (MAXVALUE); \
         INSERT INTO bourn.months VALUES (date_trunc('month', now() AT TIME ZONE 'UTC')::date, {first})"
    ));
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// Drops the months that are older than the audit trail is kept; never the newest.
async fn drop_months(inner: &Inner, fence: i64, retention: &Retention) -> Result<(), CaptureError> {
    let Some(bound) = retention.audit_bound() else { return Ok(()) };
    let mut transaction = fenced(inner, fence).await?;
    let old: Vec<String> = scalar(
        "SELECT to_char(m.month, 'YYYY_MM') FROM bourn.months m WHERE EXISTS (SELECT 1 FROM bourn.months n WHERE n.month > m.month \
         AND n.month <= to_timestamp($1::float8 / 1000) AT TIME ZONE 'UTC') ORDER BY m.month",
    )
    .bind(millis(bound))
    .fetch_all(&mut *transaction)
    .await?;
    for month in &old {
        let sql = format!(
            "DROP TABLE bourn.audit_{month}; DELETE FROM bourn.months WHERE to_char(month, 'YYYY_MM') = '{month}'"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds of this era fit")]
fn millis(number: i64) -> f64 {
    number as f64
}
