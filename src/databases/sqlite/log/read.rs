//! Reading the log.

use std::sync::Arc;

use bourn_protocol::chunk::{ChunkBuilder, Feed};
use bourn_protocol::limits::ANSWER_MAX_BYTES;
use bourn_protocol::{Action, ActivityRef, Last, Selector, Seq, TransactionId};
use rusqlite::types::{Null, Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, Rows, ToSql, params, params_from_iter};

use crate::databases::sqlite::file::beside::Marks;
use crate::databases::sqlite::file::history::History;
use crate::databases::sqlite::file::{sequencer, versions};
use crate::databases::sqlite::sql::{bytes, literal, lossy};
use crate::databases::sqlite::{ledger, payload};
use crate::feed::{
    Activity, ActivityQuery, Gained, ReadLosses, TOUCHED_MAX, TransactionRecord, TransactionState,
};
use crate::head::{Head, Version};

/// The columns of an activity, in the order [`read_activity`] and [`with_ref`] take them.
pub(in super::super) const COLUMNS: &str = "seq, action, entity_type, entity_id, organization_id, transaction_id, client_id, \
     changed_keys, value, previous_values, coalesce(commit_id, 0), last, created_at, subject";

/// Rows read at a time while a chunk is filled.
const FILL_ROWS: usize = 1_100;

/// A snapshot of the log, up to the last activity that has its transaction's number.
pub(in super::super) struct LogSnapshot<'a> {
    pub(in super::super) snapshot: &'a Connection,
    marks: Arc<Marks>,
    /// The head of the log.
    pub(in super::super) sealed: Seq,
    pub(in super::super) version: Version,
}

impl<'a> LogSnapshot<'a> {
    /// Begins the snapshot with the first look at the database, after the marks were taken, so that they agree.
    pub(in super::super) fn of(
        snapshot: &'a Connection,
        history: &History,
    ) -> rusqlite::Result<LogSnapshot<'a>> {
        let (served, marks) = (history.served(), history.beside.marks());
        history.verify(snapshot, &served)?;
        let (sealed, marks) = sequencer::sealed(snapshot, marks)?;
        Ok(LogSnapshot { snapshot, marks, sealed, version: versions::of_log(snapshot)? })
    }

    /// How far the log reaches, for readers.
    pub(in super::super) fn head(&self) -> Head {
        Head { epoch: self.version.epoch, seq: self.sealed }
    }

    /// The number of the activity's transaction, and whether the activity is its last change in its feed (1) and in its
    /// entity type (2); from the marks where the database does not have them yet.
    fn ends(&self, row: &Row<'_>) -> rusqlite::Result<(i64, i64)> {
        let (seq, commit_id, last): (i64, i64, i64) = (row.get(0)?, row.get(10)?, row.get(11)?);
        let mark = Seq::from_i64(seq).filter(|_| commit_id == 0).and_then(|seq| self.marks.of(seq));
        let Some(mark) = mark else { return Ok((commit_id, last)) };
        let sql = format!("SELECT {} FROM activities a WHERE a.seq = ?1", sequencer::last_of("a", "?2"));
        let last = self
            .snapshot
            .prepare_cached(&sql)?
            .query_row([seq, mark.to.as_i64()], |row| row.get(0))
            .optional()?;
        Ok((mark.to.as_i64(), last.unwrap_or_default()))
    }
}

/// A row as an owned activity, where the database has its number already.
pub(in super::super) fn read_activity(row: &Row<'_>) -> rusqlite::Result<Activity> {
    with_ref(row, (row.get(10)?, row.get(11)?), Activity::of)
}

/// Passes a row to `take` as a borrowed activity, to copy no more than needed.
fn with_ref<T>(
    row: &Row<'_>,
    (commit_id, last): (i64, i64),
    take: impl FnOnce(&ActivityRef<'_>) -> T,
) -> rusqlite::Result<T> {
    // Another process may have written text that is not UTF-8; the invalid parts are replaced.
    let text = |i: usize| -> rusqlite::Result<Option<std::borrow::Cow<'_, str>>> {
        Ok(match row.get_ref(i)? {
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes)),
            ValueRef::Integer(number) => Some(number.to_string().into()),
            _ => None,
        })
    };
    let broken = |i: usize| rusqlite::Error::InvalidColumnType(i, "activities".into(), Type::Null);
    let seq = Seq::from_i64(row.get(0)?).ok_or_else(|| broken(0))?;
    let action = text(1)?.and_then(|word| Action::from_log(&word)).ok_or_else(|| broken(1))?;
    let (entity_type, entity_id) = (text(2)?.unwrap_or_default(), text(3)?.unwrap_or_default());
    let (organization_id, transaction_id, client_id) = (text(4)?, text(5)?, text(6)?);
    let payload = |i| Ok::<_, rusqlite::Error>(bytes(row, i)?.map(payload::json));
    let (changed_keys, value, previous_values, created_at) =
        (text(7)?, payload(8)?, payload(9)?, text(12)?.unwrap_or_default());
    let subject = text(13)?;
    Ok(take(&ActivityRef {
        seq,
        action,
        entity_type: &entity_type,
        entity_id: &entity_id,
        organization_id: organization_id.as_deref(),
        transaction_id: transaction_id.as_deref(),
        client_id: client_id.as_deref(),
        changed_keys: changed_keys.as_deref(),
        value: value.as_deref(),
        previous_values: previous_values.as_deref(),
        commit_id,
        last: Last::from_log(last),
        created_at: &created_at,
        subject: subject.as_deref(),
    }))
}

/// The parts of the log that together make up a stream, each with an index of its own.
enum Parts {
    Whole,
    Types(Vec<Arc<str>>),
    Feeds(Vec<i64>),
}

impl Parts {
    fn of(connection: &Connection, stream: &Selector) -> rusqlite::Result<Parts> {
        match (&stream.scope, stream.types.names()) {
            (Some(_), _) => feeds(connection, stream).map(Parts::Feeds),
            (None, Some(names)) => Ok(Parts::Types(names.to_vec())),
            (None, None) => Ok(Parts::Whole),
        }
    }

    /// The condition for one part, whose value is `?`.
    const fn condition(&self) -> &'static str {
        match self {
            Parts::Whole => "? IS NULL AND",
            Parts::Types(_) => "entity_type = ? AND",
            Parts::Feeds(_) => "feed_id = ? AND",
        }
    }

    fn values(&self) -> Vec<&dyn ToSql> {
        match self {
            Parts::Whole => vec![&Null],
            Parts::Types(names) => names.iter().map(|name| name as &dyn ToSql).collect(),
            Parts::Feeds(feeds) => feeds.iter().map(|feed| feed as &dyn ToSql).collect(),
        }
    }
}

/// The feeds of a scope that make up a stream.
fn feeds(connection: &Connection, stream: &Selector) -> rusqlite::Result<Vec<i64>> {
    let (condition, values) = of_stream(stream);
    connection
        .prepare_cached(&format!("SELECT id FROM bourn_feeds WHERE {condition}"))?
        .query_map(params_from_iter(values), |row| row.get(0))?
        .collect()
}

/// The condition on the feeds that a stream has a part of, and its values.
fn of_stream(stream: &Selector) -> (String, Vec<String>) {
    let (mut conditions, mut values) = (Vec::new(), Vec::new());
    if let Some(scope) = &stream.scope {
        conditions.push("scope = ?".to_owned());
        values.push(scope.to_string());
    }
    if let Some(names) = stream.types.names() {
        conditions.push(format!("entity_type IN ({})", vec!["?"; names.len()].join(", ")));
        values.extend(names.iter().map(ToString::to_string));
    }
    (conditions.join(" AND "), values)
}

/// The place of the last activity of a stream.
pub(in super::super) fn stream_tail(view: &LogSnapshot<'_>, stream: &Selector) -> rusqlite::Result<Seq> {
    let parts = Parts::of(view.snapshot, stream)?;
    let condition = parts.condition();
    let mut newest = view.snapshot.prepare_cached(&format!(
        "SELECT seq FROM activities WHERE {condition} seq <= ? ORDER BY seq DESC LIMIT 1"
    ))?;
    let mut tail = kept(view, stream)?.horizon;
    for part in parts.values() {
        let mut rows = newest.query([part, &view.sealed.as_i64()])?;
        let seq = rows.next()?.map(|row| row.get(0)).transpose()?.and_then(Seq::from_i64);
        tail = tail.max(seq.unwrap_or_default());
    }
    Ok(tail)
}

/// What a read cannot give of a stream any more.
pub(in super::super) fn kept(view: &LogSnapshot<'_>, stream: &Selector) -> rusqlite::Result<ReadLosses> {
    let connection = view.snapshot;
    let horizon: Option<i64> = match of_stream(stream) {
        (_, values) if values.is_empty() => {
            connection.prepare_cached("SELECT horizon FROM bourn_log")?.query_row([], |row| row.get(0))?
        }
        (condition, values) => connection
            .prepare_cached(&format!("SELECT max(horizon) FROM bourn_feeds WHERE {condition}"))?
            .query_row(params_from_iter(values), |row| row.get(0))?,
    };
    let horizon = horizon.and_then(Seq::from_i64).unwrap_or_default();
    Ok(ReadLosses { version: view.version, horizon, lost: false, spans: false, gap: None })
}

/// Fills the chunk with what follows its position, until it is done or the stream ends.
pub(in super::super) fn fill(
    view: &LogSnapshot<'_>,
    stream: &Selector,
    mut chunk: ChunkBuilder,
) -> rusqlite::Result<ChunkBuilder> {
    let parts = Parts::of(view.snapshot, stream)?;
    let (condition, values) = (parts.condition(), parts.values());
    let limit = i64::try_from(FILL_ROWS).unwrap_or(i64::MAX);
    let range = "seq > ? AND seq <= ? ORDER BY seq LIMIT ?";
    let sql = match values.len() {
        0 => return Ok(chunk),
        1 => format!("SELECT {COLUMNS} FROM activities WHERE {condition} {range}"),
        // In the order of the log: each part is read by its own index, as far as the furthest of them could matter.
        count => {
            let one =
                format!("SELECT * FROM (SELECT seq AS place FROM activities WHERE {condition} {range})");
            let union = vec![one; count].join(" UNION ALL ");
            format!(
                "SELECT {COLUMNS} FROM ({union} ORDER BY place LIMIT {FILL_ROWS}) CROSS JOIN activities ON seq = place ORDER BY place"
            )
        }
    };
    let mut statement = view.snapshot.prepare_cached(&sql)?;
    loop {
        let (after, sealed) = (chunk.position().as_i64(), view.sealed.as_i64());
        let values = values.iter().flat_map(|part| [*part, &after as &dyn ToSql, &sealed, &limit]);
        let (rows, done) = push_all(view, statement.query(params_from_iter(values))?, &mut chunk)?;
        if done || rows < FILL_ROWS {
            return Ok(chunk);
        }
    }
}

/// Pushes these rows into the chunk; returns how many it took and whether it is done.
fn push_all(
    view: &LogSnapshot<'_>,
    mut rows: Rows<'_>,
    chunk: &mut ChunkBuilder,
) -> rusqlite::Result<(usize, bool)> {
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        if with_ref(row, view.ends(row)?, |activity| chunk.push(activity))? == Feed::Done {
            return Ok((count, true));
        }
    }
    Ok((count, false))
}

/// The activities after a place, in order, within limits.
pub(in super::super) fn follow(
    view: &LogSnapshot<'_>,
    after: Seq,
    most_rows: usize,
    most_bytes: usize,
) -> rusqlite::Result<Gained> {
    let epoch = view.version.epoch;
    let sql = format!("SELECT {COLUMNS} FROM activities WHERE seq > ?1 AND seq <= ?2 ORDER BY seq");
    let mut statement = view.snapshot.prepare_cached(&sql)?;
    let mut rows = statement.query([after.as_i64(), view.sealed.as_i64()])?;
    let (mut activities, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let activity = with_ref(row, view.ends(row)?, Activity::of)?;
        bytes += activity.row_bytes();
        activities.push(activity);
        if activities.len() >= most_rows || bytes >= most_bytes {
            return Ok(Gained { activities, cut: true, epoch, lost: false });
        }
    }
    Ok(Gained { activities, cut: false, epoch, lost: after > view.sealed })
}

/// The activities that match, newest first.
pub(in super::super) fn query(
    view: &LogSnapshot<'_>,
    query: &ActivityQuery,
) -> rusqlite::Result<Vec<Activity>> {
    let connection = view.snapshot;
    let mut conditions = vec![format!("seq <= {}", view.sealed.as_i64())];
    let mut values: Vec<Arc<dyn ToSql>> = Vec::new();
    let mut given = |column: &str, operator: &str, value: Option<String>| {
        if let Some(value) = value {
            values.push(Arc::new(value));
            conditions.push(format!("{column} {operator} ?{}", values.len()));
        }
    };
    given("transaction_id", "=", query.transaction_id.as_ref().map(ToString::to_string));
    given("client_id", "=", query.client_id.as_ref().map(ToString::to_string));
    given("entity_id", "=", query.entity_id.as_ref().map(ToString::to_string));
    // A narrower index is there: `+` keeps the planner from taking the type's.
    let narrowed = query.transaction_id.is_some() || query.client_id.is_some() || query.entity_id.is_some();
    given(if narrowed { "+entity_type" } else { "entity_type" }, "=", query.entity_type.clone());
    if narrowed {
        given("organization_id", "=", query.organization_id.as_ref().map(ToString::to_string));
    }
    if let Some(before) = query.before {
        values.push(Arc::new(before.as_i64()));
        conditions.push(format!("seq < ?{}", values.len()));
    }
    // An answer does not have the row itself; an activity that has left the streams has lost the rest of its payload,
    // too.
    let columns = COLUMNS.replace(" value,", " NULL,");
    let bare = columns.replace(" previous_values,", " NULL,").replace(" last,", " 0,");
    let read = |columns: &str, table: &str, condition: &str| -> rusqlite::Result<Vec<Activity>> {
        let sql = format!(
            "SELECT {columns} FROM {table} WHERE {condition} ORDER BY seq DESC LIMIT {}",
            query.limit
        );
        let values: Vec<&dyn ToSql> = values.iter().map(|value| &**value).collect();
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(values.as_slice())?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let activity = with_ref(row, view.ends(row)?, Activity::of)?;
            bytes += activity.row_bytes();
            found.push(activity);
            if bytes > ANSWER_MAX_BYTES {
                break;
            }
        }
        Ok(found)
    };
    let conditions = conditions.join(" AND ");
    let mut found = match query.organization_id.clone().filter(|_| !narrowed) {
        None => {
            let mut found = read(&columns, "activities", &conditions)?;
            found.extend(read(&bare, "bourn_audit", &conditions)?);
            found
        }
        Some(scope) => {
            let of_scope = format!("{conditions} AND organization_id = {}", literal(scope.as_str()));
            let mut found = read(&bare, "bourn_audit", &of_scope)?;
            // A scope's newest activities are the newest of its feeds, one index seek each.
            let stream = Selector {
                kind: bourn_protocol::MessageKind::Activity,
                types: query.types(),
                scope: Some(scope),
                old_values: true,
            };
            let conditions = conditions.replace("entity_type", "+entity_type");
            for feed in feeds(connection, &stream)? {
                found.extend(read(&columns, "activities", &format!("feed_id = {feed} AND {conditions}"))?);
            }
            found
        }
    };
    found.sort_by_key(|activity| std::cmp::Reverse(activity.seq));
    found.truncate(query.limit);
    Ok(found)
}

/// What is known of a transaction; `with_owner`: also what decides who may see it.
pub(in super::super) fn transaction(
    view: &LogSnapshot<'_>,
    id: &TransactionId,
    with_owner: bool,
) -> rusqlite::Result<TransactionRecord> {
    let state = state(view, id)?;
    let mut record = TransactionRecord { state, subject: None, touched: Vec::new() };
    if !with_owner {
        return Ok(record);
    }
    record.subject = ledger::subject(view.snapshot, id)?;
    let sql = format!(
        "SELECT DISTINCT entity_type, organization_id, subject FROM (\
         SELECT entity_type, organization_id, subject FROM activities WHERE transaction_id = ?1 \
         UNION ALL SELECT entity_type, organization_id, subject FROM bourn_audit WHERE transaction_id = ?1) LIMIT {}",
        TOUCHED_MAX + 1
    );
    let mut select = view.snapshot.prepare_cached(&sql)?;
    let mut rows = select.query([id.as_str()])?;
    while let Some(row) = rows.next()? {
        record.touched.push((lossy(row, 0)?.unwrap_or_default(), lossy(row, 1)?));
        record.subject = record.subject.take().or(lossy(row, 2)?);
    }
    Ok(record)
}

fn state(view: &LogSnapshot<'_>, id: &TransactionId) -> rusqlite::Result<TransactionState> {
    let connection = view.snapshot;
    let logged: Option<i64> = connection
        .prepare_cached(
            "SELECT max(seq) FROM (SELECT max(seq) AS seq FROM activities WHERE transaction_id = ?1 AND seq <= ?2 \
             UNION ALL SELECT max(seq) FROM bourn_audit WHERE transaction_id = ?1)",
        )?
        .query_row(params![id.as_str(), view.sealed.as_i64()], |row| row.get(0))?;
    if let Some(seq) = logged.and_then(Seq::from_i64) {
        return Ok(TransactionState::Confirmed(seq));
    }
    // It may have made no activity; then it is confirmed once the log has passed the place where it was done.
    match ledger::place(connection, id)? {
        Some(place) if place <= view.sealed => Ok(TransactionState::Confirmed(place)),
        Some(_) => Ok(TransactionState::Accepted),
        None => {
            let pending = "SELECT 1 FROM activities WHERE transaction_id = ?1 LIMIT 1";
            Ok(match connection.prepare_cached(pending)?.exists([id.as_str()])? {
                true => TransactionState::Accepted,
                false => TransactionState::Unknown,
            })
        }
    }
}
