//! Reading the log.

use bourn_protocol::chunk::{ChunkBuilder, Feed};
use bourn_protocol::limits::ANSWER_MAX_BYTES;
use bourn_protocol::{Action, ActivityRef, Epoch, Last, Scope, Selector, Seq, TransactionId};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row};
use tokio_stream::StreamExt as _;

use super::narrow::Narrowing;
use super::walk::{END, Walk};
use crate::databases::postgres::connections::{scalar, statement};
use crate::databases::postgres::error;
use crate::feed::{Activity, ActivityQuery, ReadLosses, TOUCHED_MAX, TransactionRecord, TransactionState};
use crate::head::{Head, Version};

/// The columns of an activity, in the order [`with_ref`] takes them.
pub(in super::super) const COLUMNS: &str = "seq, action, entity_type, entity_id, organization_id, transaction_id, client_id, \
     changed_keys, value, previous_values, commit_id, last, \
     to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), subject";

/// Rows read at a time while a chunk is filled.
const FILL_ROWS: usize = 1_100;
/// Bytes of values read at a time while a chunk is filled; a single row may have more.
const FILL_BYTES: i64 = 2 << 20;

/// A row as an owned activity.
pub(in super::super) fn read_activity(row: &PgRow) -> Result<Activity, sqlx::Error> {
    with_ref(row, Activity::of)
}

/// Passes a row to `take` as a borrowed activity, to copy no more than needed.
fn with_ref<T>(row: &PgRow, take: impl FnOnce(&ActivityRef<'_>) -> T) -> Result<T, sqlx::Error> {
    let broken = |what: &str| sqlx::Error::Decode(format!("the log holds an impossible {what}").into());
    Ok(take(&ActivityRef {
        seq: Seq::from_i64(row.try_get(0)?).ok_or_else(|| broken("seq"))?,
        action: Action::from_log(row.try_get(1)?).ok_or_else(|| broken("action"))?,
        entity_type: row.try_get(2)?,
        entity_id: row.try_get(3)?,
        organization_id: row.try_get(4)?,
        transaction_id: row.try_get(5)?,
        client_id: row.try_get(6)?,
        changed_keys: row.try_get(7)?,
        value: row.try_get(8)?,
        previous_values: row.try_get(9)?,
        commit_id: row.try_get(10)?,
        last: Last::from_log(row.try_get::<i16, _>(11)?.into()),
        created_at: row.try_get(12)?,
        subject: row.try_get(13)?,
    }))
}

/// The parts of the log that together make up a stream, each with an index of its own.
enum Parts {
    Whole,
    Types(Vec<String>),
    Feeds(Vec<i32>),
}

impl Parts {
    async fn of(connection: &mut PgConnection, stream: &Selector) -> Result<Parts, sqlx::Error> {
        Ok(match (&stream.scope, names(stream)) {
            (Some(_), _) => Parts::Feeds(feeds(connection, stream).await?),
            (None, Some(names)) => Parts::Types(names),
            (None, None) => Parts::Whole,
        })
    }

    /// The parts `$1` as a table `p`, and the walk along one of them; none where there is one part, the log.
    fn walks(&self) -> Option<(&'static str, Walk)> {
        match self {
            Parts::Whole => None,
            Parts::Types(_) => Some(("unnest($1::text[]) p", Walk::of_type("a", "p"))),
            Parts::Feeds(_) => Some(("unnest($1::int4[]) p", Walk::of_feed("a", "p"))),
        }
    }

    /// A statement of this SQL, with the parts as its first value.
    fn statement<'q>(&'q self, sql: &'q str) -> Query<'q, Postgres, PgArguments> {
        let statement = statement(AssertSqlSafe(sql));
        match self {
            Parts::Whole => statement,
            Parts::Types(names) => statement.bind(names),
            Parts::Feeds(feeds) => statement.bind(feeds),
        }
    }
}

/// The names of the types that a stream reads, unless it reads all.
fn names(stream: &Selector) -> Option<Vec<String>> {
    stream.types.names().map(|names| names.iter().map(ToString::to_string).collect())
}

/// The feeds of a scope that make up a stream.
async fn feeds(connection: &mut PgConnection, stream: &Selector) -> Result<Vec<i32>, sqlx::Error> {
    scalar("SELECT id FROM bourn.feeds WHERE scope = $1 AND ($2::text[] IS NULL OR entity_type = ANY ($2)) ORDER BY id")
        .bind(stream.scope.as_ref().map(Scope::as_str))
        .bind(names(stream))
        .fetch_all(connection)
        .await
}

/// The place of the last activity of a stream before a place.
pub(in super::super) async fn stream_tail(
    connection: &mut PgConnection,
    stream: &Selector,
    before: i64,
) -> Result<Seq, sqlx::Error> {
    let parts = Parts::of(connection, stream).await?;
    let sql = match parts.walks() {
        None => "SELECT max(seq) FROM bourn.activities WHERE seq < $1".to_owned(),
        Some((parts, walk)) => {
            format!("SELECT max(n.seq) FROM {parts} CROSS JOIN LATERAL ({}) n", walk.newest("a.seq", "$2"))
        }
    };
    let newest: Option<i64> =
        parts.statement(&sql).bind(before).fetch_one(&mut *connection).await?.try_get(0)?;
    let tail = newest.and_then(Seq::from_i64).unwrap_or_default();
    Ok(tail.max(horizon(connection, stream).await?.horizon))
}

/// What a read cannot give of a stream any more, without the lost parts of the log.
async fn horizon(connection: &mut PgConnection, stream: &Selector) -> Result<ReadLosses, sqlx::Error> {
    let nowhere = Head { epoch: Epoch::draw(), seq: Seq::ZERO };
    kept(connection, stream, nowhere, (Seq::ZERO, Seq::ZERO)).await
}

/// What a read cannot give of a stream any more. `published`: how far this server knew the log to reach before the
/// read; `read`: where the read began, and the last place that it has seen.
pub(in super::super) async fn kept(
    connection: &mut PgConnection,
    stream: &Selector,
    published: Head,
    read: (Seq, Seq),
) -> Result<ReadLosses, sqlx::Error> {
    let row = statement(
        "SELECT CASE WHEN $1::text IS NOT NULL THEN (SELECT max(horizon) FROM bourn.feeds WHERE scope = $1 AND ($2::text[] IS NULL OR entity_type = ANY ($2))) \
         WHEN $2 IS NOT NULL THEN (SELECT max(horizon) FROM bourn.feeds WHERE entity_type = ANY ($2)) ELSE horizon END, generation, epoch, head, \
         EXISTS (SELECT 1 FROM bourn.gaps WHERE before < $3 AND after > $3), \
         (SELECT min(before) FROM bourn.gaps WHERE before >= $3), (SELECT max(after) FROM bourn.gaps WHERE before >= $3) FROM bourn.log",
    )
    .bind(stream.scope.as_ref().map(Scope::as_str))
    .bind(names(stream))
    .bind(read.0.as_i64())
    .fetch_one(connection)
    .await?;
    let horizon: Option<i64> = row.try_get(0)?;
    let version = version_of(row.try_get(2)?, row.try_get(1)?)?;
    must_reach(Head { epoch: version.epoch, seq: seq_of(row.try_get(3)?) }, published)?;
    let gap: Option<i64> = row.try_get(5)?;
    Ok(ReadLosses {
        version,
        horizon: seq_of(horizon),
        lost: row.try_get(4)?,
        spans: gap.is_some_and(|before| before < read.1.as_i64()),
        gap: row.try_get::<Option<i64>, _>(6)?.and_then(Seq::from_i64),
    })
}

fn seq_of(column: Option<i64>) -> Seq {
    column.and_then(Seq::from_i64).unwrap_or_default()
}

/// Fails where the log ends before the head that this server has published.
fn must_reach(head: Head, published: Head) -> Result<(), sqlx::Error> {
    match head.epoch == published.epoch && head.seq < published.seq {
        true => Err(error::Unsettled.into()),
        false => Ok(()),
    }
}

/// The log's epoch, and whether a place lies in a part of it that was lost, or past its head.
pub(in super::super) async fn reaches(
    connection: &mut PgConnection,
    published: Head,
    place: Seq,
) -> Result<(Epoch, bool), sqlx::Error> {
    let row = statement(
        "SELECT epoch, head, head < $1 OR EXISTS (SELECT 1 FROM bourn.gaps WHERE before < $1 AND after > $1) FROM bourn.log",
    )
    .bind(place.as_i64())
    .fetch_one(connection)
    .await?;
    let epoch = version_of(row.try_get(0)?, 0)?.epoch;
    must_reach(Head { epoch, seq: seq_of(row.try_get(1)?) }, published)?;
    Ok((epoch, row.try_get(2)?))
}

/// The version of the log, from its columns.
pub(in super::super) fn version_of(epoch: &str, removals: i64) -> Result<Version, sqlx::Error> {
    let epoch = epoch.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Version { epoch, removals: u64::try_from(removals).unwrap_or_default() })
}

/// How far the log reaches.
pub(in super::super) async fn head(connection: &mut PgConnection) -> Result<Head, sqlx::Error> {
    let row = statement("SELECT epoch, head FROM bourn.log").fetch_one(connection).await?;
    let epoch = version_of(row.try_get(0)?, 0)?.epoch;
    Ok(Head { epoch, seq: Seq::from_i64(row.try_get(1)?).unwrap_or_default() })
}

/// Fills the chunk with what follows its position, until it is done or the stream ends; returns the last place that it
/// was shown.
pub(in super::super) async fn fill(
    connection: &mut PgConnection,
    stream: &Selector,
    mut chunk: ChunkBuilder,
) -> Result<(ChunkBuilder, Seq), sqlx::Error> {
    let mut seen = chunk.position();
    let parts = Parts::of(connection, stream).await?;
    let limit = as_i64(FILL_ROWS);
    let sql = match parts.walks() {
        // Keeps the planner from expecting few rows where the index has many: the order and the limit are inside, where
        // each part has its own.
        Some((parts, walk)) => {
            let (condition, order) = (walk.between("$2", END), walk.oldest_first());
            let one = format!("SELECT a.* FROM bourn.activities a WHERE {condition} {order} LIMIT $3");
            let all = format!("SELECT n.* FROM {parts} CROSS JOIN LATERAL ({one}) n ORDER BY n.seq LIMIT $3");
            within_bytes(&all, "$4")
        }
        None => within_bytes(EVERYTHING, "$3"),
    };
    loop {
        let select = parts.statement(&sql).bind(chunk.position().as_i64()).bind(limit).bind(FILL_BYTES);
        let (more, done) = push_all(connection, select, &mut chunk, &mut seen).await?;
        if done || !more {
            return Ok((chunk, seen));
        }
    }
}

/// Every activity after a place.
const EVERYTHING: &str = "SELECT * FROM bourn.activities WHERE seq > $1 ORDER BY seq LIMIT $2";

/// Selects the first of these activities that together have that many bytes of values, and at least one; with each, the
/// bytes of it and those before it. A statement that has begun is read to its end, so values that the reader has no
/// room for would be read and sent in vain. Lengths are known without unpacking the values.
fn within_bytes(activities: &str, bytes: &str) -> String {
    let length = "coalesce(octet_length(value), 0) + coalesce(octet_length(previous_values), 0)";
    format!(
        "SELECT {COLUMNS}, bytes FROM (SELECT n.*, sum({length}) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) AS bytes \
         FROM ({activities}) n) n WHERE bytes - ({length}) < {bytes} ORDER BY seq"
    )
}

/// Whether [`within_bytes`] may have left out what follows this activity.
fn is_cut(row: &PgRow, bytes: i64) -> Result<bool, sqlx::Error> {
    Ok(row.try_get::<i64, _>("bytes")? >= bytes)
}

fn as_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Pushes these rows into the chunk; returns whether there may be more rows, and whether the chunk is done.
async fn push_all(
    connection: &mut PgConnection,
    select: Query<'_, Postgres, PgArguments>,
    chunk: &mut ChunkBuilder,
    seen: &mut Seq,
) -> Result<(bool, bool), sqlx::Error> {
    let mut rows = select.fetch(connection);
    let (mut count, mut cut) = (0, false);
    while let Some(row) = rows.try_next().await? {
        count += 1;
        cut = is_cut(&row, FILL_BYTES)?;
        let push = |activity: &ActivityRef<'_>| {
            *seen = activity.seq;
            chunk.push(activity)
        };
        if with_ref(&row, push)? == Feed::Done {
            return Ok((true, true));
        }
    }
    Ok((cut || count >= FILL_ROWS, false))
}

/// The activities after a place, in order, within limits; and whether a limit was reached.
pub(in super::super) async fn follow(
    connection: &mut PgConnection,
    after: Seq,
    most_rows: usize,
    most_bytes: usize,
) -> Result<(Vec<Activity>, bool), sqlx::Error> {
    let limit = as_i64(most_bytes);
    let mut rows = statement(AssertSqlSafe(within_bytes(EVERYTHING, "$3")))
        .bind(after.as_i64())
        .bind(as_i64(most_rows))
        .bind(limit)
        .fetch(connection);
    let (mut activities, mut bytes, mut cut) = (Vec::new(), 0, false);
    while let Some(row) = rows.try_next().await? {
        cut = is_cut(&row, limit)?;
        let activity = read_activity(&row)?;
        bytes += activity.row_bytes();
        activities.push(activity);
        if activities.len() >= most_rows || bytes >= most_bytes {
            return Ok((activities, true));
        }
    }
    Ok((activities, cut))
}

/// The activities that match, newest first.
pub(in super::super) async fn query(
    connection: &mut PgConnection,
    query: &ActivityQuery,
) -> Result<Vec<Activity>, sqlx::Error> {
    let stream = Selector {
        kind: bourn_protocol::MessageKind::Activity,
        types: query.types(),
        scope: query.organization_id.clone(),
        old_values: true,
    };
    let feeds = match &stream.scope {
        Some(_) => Some(feeds(connection, &stream).await?),
        None => None,
    };
    let narrowing = Narrowing::of(query);
    // An answer does not have the row itself.
    let columns = COLUMNS.replace(" value,", " NULL::text AS value,");
    let select = |columns: &str, table: &str, (condition, order): (String, String)| {
        let limit = query.limit;
        format!("SELECT {columns} FROM bourn.{table} a WHERE {condition} {order} LIMIT {limit}")
    };
    // An activity that has left the streams has lost its payload.
    let bare = columns.replace(" previous_values,", " NULL::text,").replace(" last,", " 0::int2,");
    let audit = select(&bare, "audit", narrowing.in_audit());
    let sql = match feeds {
        // A scope's newest activities are the newest of its feeds, one index each.
        Some(feeds) if !narrowing.is_by_index() => {
            let feeds: Vec<String> = feeds.iter().map(ToString::to_string).collect();
            format!(
                "SELECT n.* FROM unnest('{{{}}}'::int4[]) f CROSS JOIN LATERAL ({}) n",
                feeds.join(","),
                select(&columns, "activities", narrowing.along(&Walk::of_feed("a", "f"), &[])),
            )
        }
        _ => select(&columns, "activities", narrowing.in_log()),
    };
    let sql =
        format!("SELECT u.* FROM (({sql}) UNION ALL ({audit})) u ORDER BY u.seq DESC LIMIT {}", query.limit);
    let mut select = statement(AssertSqlSafe(sql)).bind(query.before.map_or(i64::MAX, Seq::as_i64));
    for value in narrowing.values {
        select = select.bind(value);
    }
    let mut rows = select.persistent(false).fetch(connection);
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let activity = read_activity(&row)?;
        bytes += activity.row_bytes();
        found.push(activity);
        if bytes > ANSWER_MAX_BYTES {
            break;
        }
    }
    Ok(found)
}

/// What is known of a transaction; `with_owner`: also what decides who may see it.
pub(in super::super) async fn transaction(
    connection: &mut PgConnection,
    id: &TransactionId,
    with_owner: bool,
) -> Result<TransactionRecord, sqlx::Error> {
    let row = statement(
        "SELECT greatest((SELECT max(seq) FROM bourn.activities WHERE transaction_id = $1), \
           (SELECT max(seq) FROM bourn.audit WHERE transaction_id = $1), \
           (SELECT confirmed FROM bourn.ledger WHERE transaction_id = $1), \
           (SELECT l.head FROM bourn.ledger d, bourn.log l WHERE d.transaction_id = $1 AND d.position < l.told_from \
             AND NOT EXISTS (SELECT 1 FROM bourn.entities WHERE NOT reconciled))), \
         EXISTS (SELECT 1 FROM bourn.ledger WHERE transaction_id = $1), \
         (SELECT subject FROM bourn.ledger WHERE transaction_id = $1)",
    )
    .bind(id.as_str())
    .fetch_one(&mut *connection)
    .await?;
    let state = match (row.try_get::<Option<i64>, _>(0)?, row.try_get(1)?) {
        (Some(seq), _) => TransactionState::Confirmed(Seq::from_i64(seq).unwrap_or_default()),
        (None, true) => TransactionState::Accepted,
        (None, false) => TransactionState::Unknown,
    };
    let mut record = TransactionRecord { state, subject: row.try_get(2)?, touched: Vec::new() };
    if !with_owner {
        return Ok(record);
    }
    let rows = statement(
        "SELECT DISTINCT entity_type, organization_id, subject FROM (\
         SELECT entity_type, organization_id, subject FROM bourn.activities WHERE transaction_id = $1 \
         UNION ALL SELECT entity_type, organization_id, subject FROM bourn.audit WHERE transaction_id = $1) a LIMIT $2",
    )
    .bind(id.as_str())
    .bind(as_i64(TOUCHED_MAX + 1))
    .fetch_all(connection)
    .await?;
    for row in rows {
        record.touched.push((row.try_get(0)?, row.try_get(1)?));
        let subject: Option<String> = row.try_get(2)?;
        record.subject = record.subject.take().or(subject);
    }
    Ok(record)
}
