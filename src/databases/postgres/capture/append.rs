//! Appending activities to the log: one statement appends a batch, moves the head and the position and notifies the
//! other servers, or does nothing at all where the fence or the head is not what it should be. What does not fit into
//! one batch goes in parts, inside one database transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::{Action, Seq};
use pgwire_replication::Lsn;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};
use tokio::time::Instant;

use super::CaptureError;
use super::new_activity::{CommitMark, NewActivity};
use crate::databases::postgres::connections::{Db, Session, statement};
use crate::databases::postgres::log::CHANNEL;
use crate::feed::entity::EntityType;

/// Most feeds whose numbers are kept in memory.
const FEEDS_MAX: usize = 100_000;

/// The one appender.
pub(super) struct Appender {
    pub(super) db: Db,
    /// The fence that the log must still have for this server to append.
    pub(super) fence: i64,
    pub(super) head: Seq,
    /// The log has everything that was committed before this place.
    pub(super) position: Lsn,
    feeds: HashMap<(Arc<str>, String), i32>,
}

/// The columns of a batch.
#[derive(Default)]
struct ActivityColumns<'a> {
    seq: Vec<i64>,
    action: Vec<&'static str>,
    entity_type: Vec<&'a str>,
    entity_id: Vec<&'a str>,
    feed_id: Vec<i32>,
    organization_id: Vec<Option<&'a str>>,
    transaction_id: Vec<Option<&'a str>>,
    client_id: Vec<Option<&'a str>>,
    changed_keys: Vec<Option<&'a str>>,
    value: Vec<Option<&'a str>>,
    previous_values: Vec<Option<&'a str>>,
    commit_id: Vec<i64>,
    last: Vec<i16>,
    created_at: Vec<i64>,
    subject: Vec<Option<&'a str>>,
}

const INSERT: &str = "INSERT INTO bourn.activities (seq, action, entity_type, entity_id, feed_id, organization_id, \
     transaction_id, client_id, changed_keys, value, previous_values, commit_id, last, created_at, subject) \
     SELECT u.seq, u.action, u.entity_type, u.entity_id, u.feed_id, u.organization_id, u.transaction_id, u.client_id, \
     u.changed_keys, u.value, u.previous_values, u.commit_id, u.last, \
     'epoch'::timestamptz + u.created_at * interval '1 microsecond', u.subject FROM ";
const UNNEST: &str = "unnest($1::int8[], $2::text[], $3::text[], $4::text[], $5::int4[], $6::text[], $7::text[], \
     $8::text[], $9::text[], $10::text[], $11::text[], $12::int8[], $13::int2[], $14::int8[], $15::text[]) \
     AS u (seq, action, entity_type, entity_id, feed_id, organization_id, transaction_id, client_id, changed_keys, value, \
     previous_values, commit_id, last, created_at, subject)";

impl Appender {
    pub(super) fn new(db: Db, fence: i64, head: Seq, position: Lsn) -> Appender {
        Appender { db, fence, head, position, feeds: HashMap::new() }
    }

    /// Appends whole transactions and moves the position.
    pub(super) async fn append(
        &mut self,
        activities: &[NewActivity],
        position: Lsn,
    ) -> Result<(), CaptureError> {
        if activities.is_empty() {
            return self.move_position(position).await;
        }
        if activities.iter().any(NewActivity::is_too_large) {
            return Err(CaptureError::TooLarge);
        }
        let mut transaction = self.db.single().await?;
        self.number_feeds(transaction.connection(), activities).await?;
        let columns = self.columns(activities, self.head);
        let head = after(self.head, activities.len());
        let sql = format!(
            "WITH moved AS (UPDATE bourn.log SET head = $16, position = $17::text::pg_lsn WHERE fence = $18 AND head = $19 RETURNING 1), \
             appended AS ({INSERT} moved, {UNNEST}) SELECT pg_notify($20, $16::text) FROM moved"
        );
        let statement = columns
            .bind(statement(sqlx::AssertSqlSafe(sql)))
            .bind(head.as_i64())
            .bind(position.to_pg_string())
            .bind(self.fence)
            .bind(self.head.as_i64())
            .bind(CHANNEL);
        let moved = statement.fetch_optional(transaction.connection()).await?;
        transaction.commit().await?;
        if moved.is_none() {
            return Err(CaptureError::Fenced);
        }
        self.head = head;
        self.position = position;
        Ok(())
    }

    /// Notes that these mutations make no activities.
    pub(super) async fn confirm(&self, transactions: &[String]) -> Result<(), CaptureError> {
        let mut transaction = self.db.single().await?;
        statement(
            "UPDATE bourn.ledger SET confirmed = $1 WHERE transaction_id = ANY ($2) AND confirmed IS NULL",
        )
        .bind(self.head.as_i64())
        .bind(transactions)
        .execute(transaction.connection())
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Moves the position past transactions that have nothing for the log.
    pub(super) async fn move_position(&mut self, position: Lsn) -> Result<(), CaptureError> {
        let mut transaction = self.db.single().await?;
        let moved =
            statement("UPDATE bourn.log SET position = $1::text::pg_lsn WHERE fence = $2 AND head = $3")
                .bind(position.to_pg_string())
                .bind(self.fence)
                .bind(self.head.as_i64())
                .execute(transaction.connection())
                .await?;
        transaction.commit().await?;
        if moved.rows_affected() == 0 {
            return Err(CaptureError::Fenced);
        }
        self.position = position;
        Ok(())
    }

    /// Begins a transaction that appends in parts.
    pub(super) async fn begin(&self, silence: Duration) -> Result<AppendInParts, CaptureError> {
        let mut transaction = self.db.begin().await?;
        // If this server hangs, the database does not wait for it.
        let limit = format!("{}ms", silence.as_millis());
        statement("SELECT set_config('idle_in_transaction_session_timeout', $1, true)")
            .bind(limit)
            .execute(&mut *transaction)
            .await?;
        Ok(AppendInParts {
            transaction,
            head: self.head,
            feeds: HashMap::new(),
            types: HashMap::new(),
            used: Instant::now(),
        })
    }

    /// Appends a part. Where the log refuses it, the transaction is as it was before.
    pub(super) async fn append_part(
        &mut self,
        parts: &mut AppendInParts,
        activities: &[NewActivity],
    ) -> Result<(), CaptureError> {
        if activities.is_empty() {
            return Ok(());
        }
        if activities.iter().any(NewActivity::is_too_large) {
            return Err(CaptureError::TooLarge);
        }
        parts.used = Instant::now();
        statement("SAVEPOINT part").execute(&mut *parts.transaction).await?;
        let inserted = self.insert(&mut parts.transaction, activities, parts.head).await;
        let end = if inserted.is_ok() { "RELEASE SAVEPOINT part" } else { "ROLLBACK TO SAVEPOINT part" };
        statement(end).execute(&mut *parts.transaction).await?;
        if inserted.is_err() {
            self.forget_feeds();
        }
        for (seq, (feed, activity)) in (parts.head.as_i64() + 1..).zip(inserted?.into_iter().zip(activities))
        {
            parts.feeds.insert(feed, seq);
            parts.types.insert(activity.entity.name.clone(), seq);
        }
        parts.head = after(parts.head, activities.len());
        Ok(())
    }

    /// Inserts activities behind a place; returns the feed of each.
    pub(super) async fn insert(
        &mut self,
        transaction: &mut PgConnection,
        activities: &[NewActivity],
        behind: Seq,
    ) -> Result<Vec<i32>, CaptureError> {
        self.number_feeds(transaction, activities).await?;
        let columns = self.columns(activities, behind);
        let sql = format!("{INSERT} {UNNEST}");
        columns.bind(statement(sqlx::AssertSqlSafe(sql))).execute(transaction).await?;
        Ok(columns.feed_id)
    }

    /// Forgets the numbers of feeds: some of them may have been rolled back.
    pub(super) fn forget_feeds(&mut self) {
        self.feeds.clear();
    }

    /// Appends a deletion of every row that the log has alive of an entity type.
    pub(super) async fn append_truncation(
        &mut self,
        parts: &mut AppendInParts,
        entity: &EntityType,
        ids: (Option<&str>, Option<&str>),
        commit: CommitMark,
    ) -> Result<(), CaptureError> {
        // Without a join: where the database has few statistics of the log yet, it expects few rows and compares each
        // with each.
        let done = statement(
            "INSERT INTO bourn.activities (seq, action, entity_type, entity_id, feed_id, organization_id, transaction_id, client_id, \
             previous_values, commit_id, last, created_at) \
             SELECT $1 + row_number() OVER (ORDER BY n.seq), 'delete', n.entity_type, n.entity_id, n.feed_id, n.organization_id, $2, $3, \
             CASE WHEN $4 THEN n.value END, $5, 0, 'epoch'::timestamptz + $6 * interval '1 microsecond' \
             FROM (SELECT DISTINCT ON (a.entity_id) a.* FROM bourn.activities a WHERE a.entity_type = $7 \
             ORDER BY a.entity_id, a.seq DESC) n WHERE n.action <> 'delete'",
        )
        .bind(parts.head.as_i64())
        .bind(ids.0)
        .bind(ids.1)
        .bind(entity.previous_values)
        .bind(commit.id)
        .bind(commit.micros)
        .bind(&*entity.name)
        .execute(&mut *parts.transaction)
        .await?
        .rows_affected();
        let before = parts.head;
        parts.head = after(before, usize::try_from(done).unwrap_or(usize::MAX));
        let ends =
            statement("SELECT feed_id, max(seq) FROM bourn.activities WHERE seq > $1 GROUP BY feed_id")
                .bind(before.as_i64())
                .fetch_all(&mut *parts.transaction)
                .await?;
        for row in &ends {
            parts.feeds.insert(row.try_get(0)?, row.try_get(1)?);
        }
        if done > 0 {
            parts.types.insert(entity.name.clone(), parts.head.as_i64());
        }
        Ok(())
    }

    /// Ends a transaction that appended in parts, and moves the position.
    pub(super) async fn commit(&mut self, parts: AppendInParts, position: Lsn) -> Result<(), CaptureError> {
        let AppendInParts { mut transaction, head, feeds, types, .. } = parts;
        let mut bits: HashMap<i64, i16> = HashMap::new();
        for seq in feeds.into_values() {
            *bits.entry(seq).or_default() |= 1;
        }
        for seq in types.into_values() {
            *bits.entry(seq).or_default() |= 2;
        }
        let (seqs, bits): (Vec<i64>, Vec<i16>) = bits.into_iter().unzip();
        statement("UPDATE bourn.activities a SET last = u.bits FROM unnest($1::int8[], $2::int2[]) u (seq, bits) WHERE a.seq = u.seq")
            .bind(seqs)
            .bind(bits)
            .execute(&mut *transaction)
            .await?;
        let moved = statement(
            "WITH moved AS (UPDATE bourn.log SET head = $1, position = $2::text::pg_lsn WHERE fence = $3 AND head = $4 RETURNING 1) \
             SELECT pg_notify($5, $1::text) FROM moved",
        )
        .bind(head.as_i64())
        .bind(position.to_pg_string())
        .bind(self.fence)
        .bind(self.head.as_i64())
        .bind(CHANNEL)
        .fetch_optional(&mut *transaction)
        .await?;
        if moved.is_none() {
            return Err(CaptureError::Fenced);
        }
        transaction.commit().await?;
        self.head = head;
        self.position = position;
        Ok(())
    }

    /// Makes sure that every feed of these has its number.
    async fn number_feeds(
        &mut self,
        connection: &mut PgConnection,
        activities: &[NewActivity],
    ) -> Result<(), CaptureError> {
        if self.feeds.len() > FEEDS_MAX {
            self.feeds.clear();
        }
        let mut missing: Vec<(&str, &str)> = activities
            .iter()
            .filter(|activity| !self.feeds.contains_key(&feed_of(activity)))
            .map(|activity| (&*activity.entity.name, activity.scope.as_deref().unwrap_or_default()))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let (types, scopes): (Vec<&str>, Vec<&str>) = missing.into_iter().unzip();
        statement("INSERT INTO bourn.feeds (entity_type, scope) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING")
            .bind(&types)
            .bind(&scopes)
            .execute(&mut *connection)
            .await?;
        let rows = statement(
            "SELECT f.entity_type, f.scope, f.id FROM unnest($1::text[], $2::text[]) u (entity_type, scope) \
             JOIN bourn.feeds f ON f.scope = u.scope AND f.entity_type = u.entity_type",
        )
        .bind(&types)
        .bind(&scopes)
        .fetch_all(connection)
        .await?;
        for row in rows {
            let name: String = row.try_get(0)?;
            self.feeds.insert((name.into(), row.try_get(1)?), row.try_get(2)?);
        }
        Ok(())
    }

    /// The columns of these activities as they are appended behind a place.
    fn columns<'a>(&self, activities: &'a [NewActivity], behind: Seq) -> ActivityColumns<'a> {
        let mut columns = ActivityColumns::default();
        let mut seq = behind.as_i64();
        for activity in activities {
            seq += 1;
            columns.seq.push(seq);
            columns.action.push(Action::as_str(activity.action));
            columns.entity_type.push(&activity.entity.name);
            columns.entity_id.push(&activity.key);
            columns.feed_id.push(self.feeds.get(&feed_of(activity)).copied().unwrap_or_default());
            columns.organization_id.push(activity.scope.as_deref());
            columns.transaction_id.push(activity.transaction.as_deref());
            columns.client_id.push(activity.client.as_deref());
            columns.changed_keys.push(activity.changed_keys.as_deref());
            columns.value.push(activity.value.as_deref());
            columns.previous_values.push(activity.previous.as_deref());
            columns.commit_id.push(activity.commit.id);
            columns.last.push(activity.last);
            columns.created_at.push(activity.commit.micros);
            columns.subject.push(activity.subject.as_deref());
        }
        columns
    }
}

fn feed_of(activity: &NewActivity) -> (Arc<str>, String) {
    (activity.entity.name.clone(), activity.scope.clone().unwrap_or_default())
}

fn after(head: Seq, count: usize) -> Seq {
    u64::try_from(count)
        .ok()
        .and_then(|count| head.get().checked_add(count))
        .and_then(Seq::new)
        .unwrap_or(head)
}

impl<'a> ActivityColumns<'a> {
    fn bind<'q>(
        self: &'q ActivityColumns<'a>,
        query: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        query
            .bind(&self.seq)
            .bind(&self.action)
            .bind(&self.entity_type)
            .bind(&self.entity_id)
            .bind(&self.feed_id)
            .bind(&self.organization_id)
            .bind(&self.transaction_id)
            .bind(&self.client_id)
            .bind(&self.changed_keys)
            .bind(&self.value)
            .bind(&self.previous_values)
            .bind(&self.commit_id)
            .bind(&self.last)
            .bind(&self.created_at)
            .bind(&self.subject)
    }
}

/// A transaction that appends in parts. None of it is visible before its end.
pub(super) struct AppendInParts {
    pub(super) transaction: Session,
    pub(super) head: Seq,
    /// The last change of each feed, and of each entity type.
    feeds: HashMap<i32, i64>,
    types: HashMap<Arc<str>, i64>,
    /// When it last ran a statement.
    used: Instant,
}

impl AppendInParts {
    /// Runs a statement now and then, so that the database does not end the transaction as idle while the stream brings
    /// nothing for it.
    pub(super) async fn keep(&mut self, every: Duration) -> Result<(), CaptureError> {
        if self.used.elapsed() >= every {
            statement("SELECT 1").execute(&mut *self.transaction).await?;
            self.used = Instant::now();
        }
        Ok(())
    }
}
