//! Which history the log belongs to, and what is done when the database went back in time. Bourn keeps in the log's own
//! row what identifies a history: the cluster, the database, the timeline of its write-ahead log and when its server
//! was started, since a copy of a cluster's files has to be started before it can be used. Every server compares them
//! when it starts, takes over capture, and looks at the log.
//!
//! - Another cluster or another database: the log gets a new epoch, so that none of its offsets can be taken for an old one.
//! - The same cluster, but its last commits may be lost (a promoted standby, a restored copy, a restart after a crash): the
//!   log's head *leaps* past every place that can have been served. Offsets up to the old head stay valid;
//!   those inside the gap are gone for ever. Stored streams go on under new numbers, which their offsets carry.

use std::time::{SystemTime, UNIX_EPOCH};

use bourn_protocol::{Epoch, Seq};
use sqlx::{PgConnection, Row};

use super::CHANNEL;
use crate::config::{DatabaseUrl, Limits};
use crate::databases::OpenError;
use crate::databases::postgres::connections::{Db, Session, scalar, statement};
use crate::databases::postgres::names::ident;
use crate::databases::postgres::{Inner, error, migrate};

/// The notification that the log's epoch or version has changed; other notifications say how far it reaches.
pub(in super::super) const CHANGED: &str = "history";
/// Places that a millisecond of the clock stands for when the head leaps. No log gains a million changes in a second, so
/// the place that stands for now lies past every place that was given out before, whatever was restored since. Between two
/// starts of a database lie many milliseconds, so that no two of its lives leap to one place.
const PLACES_A_MILLISECOND: i64 = 1_000;
/// The head leaps to a multiple of this where the log is further than the clock: a second's places.
const PLACES_A_SECOND: i64 = 1_000 * PLACES_A_MILLISECOND;
/// Where that count begins: 2025 in Unix milliseconds. The last place is reached after 316 years.
const COUNTED_FROM: i64 = 1_735_689_600_000;

/// Whether the database still is the one whose history the log belongs to, as an expression over `bourn.log l`. A
/// standby counts as the same: it cannot be written. It reads nothing but what every role may read.
macro_rules! settled {
    () => {
        "(pg_is_in_recovery() OR (coalesce(l.started = pg_postmaster_start_time(), false) AND coalesce(split_part(l.source, ' ', 2) \
         = (SELECT d.oid::text FROM pg_database d WHERE d.datname = current_database()), false)))"
    };
}
pub(in super::super) use settled;

/// Fails where the database is not the one whose history the log belongs to.
pub(in super::super) async fn must_be_settled(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let settled: bool =
        scalar(concat!("SELECT ", settled!(), " FROM bourn.log l")).fetch_one(connection).await?;
    if settled { Ok(()) } else { Err(error::Unsettled.into()) }
}

/// The functions that distinguish one history from another. Every role may execute them, unless an operator has revoked
/// it.
const FUNCTIONS: [&str; 4] = [
    "pg_control_system()",
    "pg_current_wal_insert_lsn()",
    "pg_walfile_name(pg_lsn)",
    "pg_postmaster_start_time()",
];

/// Which of these functions the session's role may not execute, as text with the SQL that grants it.
pub(in super::super) async fn forbidden(
    connection: &mut PgConnection,
) -> Result<Option<String>, sqlx::Error> {
    let row = statement(
        "SELECT current_user::text, string_agg('pg_catalog.' || f, ', ') FROM unnest($1::text[]) f \
         WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')",
    )
    .bind(&FUNCTIONS[..])
    .fetch_one(connection)
    .await?;
    let (role, functions): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(functions.map(|functions| {
        let role_name = ident(&role);
        format!("role `{role}` may not tell which database this is: GRANT EXECUTE ON FUNCTION {functions} TO {role_name}")
    }))
}

/// The log and the database that holds it.
struct ObservedHistory {
    head: i64,
    epoch: String,
    source: Option<String>,
    timeline: Option<String>,
    /// Whether the database's server has run without a restart since; `None` where that is not known.
    running: Option<bool>,
    /// The log's position is past the end of the write-ahead log.
    ahead: bool,
    now_source: String,
    now_timeline: String,
}

async fn look(transaction: &mut Session) -> Result<ObservedHistory, sqlx::Error> {
    let row = statement(
        "SELECT l.head, l.epoch, l.source, l.timeline, l.started = pg_postmaster_start_time(), \
         coalesce(l.position > pg_current_wal_insert_lsn(), false), \
         (SELECT system_identifier::text FROM pg_control_system()) || ' ' || (SELECT oid::text FROM pg_database WHERE datname = current_database()), \
         left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) FROM bourn.log l FOR UPDATE",
    )
    .fetch_one(&mut **transaction)
    .await?;
    Ok(ObservedHistory {
        head: row.try_get(0)?,
        epoch: row.try_get(1)?,
        source: row.try_get(2)?,
        timeline: row.try_get(3)?,
        running: row.try_get(4)?,
        ahead: row.try_get(5)?,
        now_source: row.try_get(6)?,
        now_timeline: row.try_get(7)?,
    })
}

/// Compares the database with the history that the log belongs to, and makes sure that old offsets never stand for
/// other content. `slot_skipped`: the slot cannot give all that follows the log's position.
pub(in super::super) async fn settle(inner: &Inner, slot_skipped: bool) -> Result<(), sqlx::Error> {
    let published = *inner.shared.head().borrow();
    let mut transaction = inner.db.capturing().begin().await?;
    let standby: bool = scalar("SELECT pg_is_in_recovery()").fetch_one(&mut *transaction).await?;
    if standby {
        return Ok(());
    }
    let found = look(&mut transaction).await?;
    let served = published.seq.as_i64();
    let moved = found.source.as_ref().is_some_and(|source| *source != found.now_source);
    let changed = |known: &Option<String>, now: &str| known.as_ref().is_some_and(|known| known != now);
    let reason = if published.epoch.as_str() == found.epoch && found.head < served {
        Some("the log reached further")
    } else if changed(&found.timeline, &found.now_timeline) {
        Some("another timeline")
    } else if found.ahead {
        Some("the write-ahead log reached further")
    } else if slot_skipped {
        Some("the slot is another one")
    } else if found.running == Some(false) {
        Some("the database's server was started again")
    } else {
        None
    };
    if moved {
        let epoch = Epoch::draw();
        tracing::warn!(
            %epoch,
            "the database is not the one that the log was captured from: the log gets a new epoch, clients start again, and every table is compared with it"
        );
        renew(&mut transaction, epoch).await?;
        // The position is one of another write-ahead log; the transactions so far are another database's.
        statement("UPDATE bourn.log SET position = NULL, foreign_until = head")
            .execute(&mut *transaction)
            .await?;
        compare_all(&mut transaction).await?;
    } else if let Some(reason) = reason {
        let to = leap(&mut transaction, found.head, found.head.max(served), reason).await?;
        tracing::info!(
            reason,
            from = found.head,
            to,
            "the log's last changes may be lost: it goes on behind every place that can have been served"
        );
        // Without a restart only the log was changed, by hand: its position may claim more than it holds.
        if found.ahead || (found.head < served && found.running == Some(true)) {
            statement("UPDATE bourn.log SET position = NULL").execute(&mut *transaction).await?;
            compare_all(&mut transaction).await?;
        }
    }
    let known = found.timeline.is_some() && found.source.is_some() && found.running == Some(true);
    if moved || reason.is_some() || !known {
        statement("UPDATE bourn.log SET source = $1, timeline = $2, started = pg_postmaster_start_time()")
            .bind(&found.now_source)
            .bind(&found.now_timeline)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

async fn compare_all(transaction: &mut Session) -> Result<(), sqlx::Error> {
    statement("UPDATE bourn.entities SET reconciled = false, signature = '', whole = false")
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Gives the log another epoch; a server that captures finds that it is superseded.
async fn renew(transaction: &mut Session, epoch: Epoch) -> Result<(), sqlx::Error> {
    statement("UPDATE bourn.log SET epoch = $1, fence = fence + 1, generation = generation + 1")
        .bind(epoch.as_str())
        .execute(&mut **transaction)
        .await?;
    renumber_streams(transaction).await?;
    announce(transaction).await
}

/// A table was emptied before the log had all of its rows. Lists may have shown rows whose deletion cannot be logged,
/// as the log does not know them: the log gets a new epoch, so that clients list again.
pub(in super::super) async fn truncated(transaction: &mut Session, entity: &str) -> Result<(), sqlx::Error> {
    let epoch = Epoch::draw();
    let renewed = statement(
        "UPDATE bourn.log SET epoch = $1, generation = generation + 1 \
         WHERE NOT coalesce((SELECT whole FROM bourn.entities WHERE entity_type = $2), false)",
    )
    .bind(epoch.as_str())
    .bind(entity)
    .execute(&mut **transaction)
    .await?
    .rows_affected();
    if renewed > 0 {
        tracing::warn!(entity, %epoch, "the table was truncated before the log had all of its rows: the log gets a new epoch, clients start again");
        announce(transaction).await?;
    }
    Ok(())
}

/// Moves the head past every place that can have been served, and remembers the gap; returns the new head.
async fn leap(transaction: &mut Session, before: i64, known: i64, reason: &str) -> Result<i64, sqlx::Error> {
    let now: i64 = scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8")
        .fetch_one(&mut **transaction)
        .await?;
    let here = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let to = beyond(known, now.max(i64::try_from(here).unwrap_or(0)));
    statement("INSERT INTO bourn.gaps (before, after, reason) VALUES ($1, $2, $3)")
        .bind(before)
        .bind(to)
        .bind(reason)
        .execute(&mut **transaction)
        .await?;
    statement("UPDATE bourn.log SET head = $1, fence = fence + 1, generation = generation + 1")
        .bind(to)
        .execute(&mut **transaction)
        .await?;
    renumber_streams(transaction).await?;
    announce(transaction).await?;
    Ok(to)
}

/// The place behind a gap: past every place that is known to have been served, or can have been by now.
fn beyond(known: i64, unix_millis: i64) -> i64 {
    let next = (known / PLACES_A_SECOND + 1).saturating_mul(PLACES_A_SECOND);
    let clock = (unix_millis - COUNTED_FROM).max(0).saturating_mul(PLACES_A_MILLISECOND);
    next.max(clock).min(Seq::MAX.as_i64())
}

async fn announce(transaction: &mut Session) -> Result<(), sqlx::Error> {
    statement("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(CHANGED).execute(&mut **transaction).await?;
    Ok(())
}

/// Gives stored streams whose appends may have been lost other numbers, as forks of what is left: an offset names the
/// stream that the bytes before it were appended to, so an offset of lost bytes never names the bytes that replace
/// them.
async fn renumber_streams(transaction: &mut Session) -> Result<(), sqlx::Error> {
    // Numbers that were used since are not used again.
    statement(
        "SELECT setval(pg_get_serial_sequence('bourn.streams', 'id'), 1 + floor(random() * 4e15)::bigint)",
    )
    .execute(&mut **transaction)
    .await?;
    // Appends wait until it is done.
    statement("SELECT 1 FROM bourn.streams WHERE state = 0 ORDER BY id FOR UPDATE")
        .execute(&mut **transaction)
        .await?;
    // The streams that own nothing under their number: no appends, no forks, no producers.
    statement(
        "UPDATE bourn.streams s SET id = DEFAULT WHERE state = 0 AND tail = base \
         AND NOT EXISTS (SELECT 1 FROM bourn.streams f WHERE f.source_id = s.id) \
         AND NOT EXISTS (SELECT 1 FROM bourn.stream_producers p WHERE p.stream_id = s.id)",
    )
    .execute(&mut **transaction)
    .await?;
    // The others leave what they own to a row without a path, which is kept for them as for any fork. It is made under
    // the negative of its number, until that is free.
    let kept = statement(
        "INSERT INTO bourn.streams (id, path, state, content_type, tail, closed, source_id, base) \
         SELECT -id, NULL, 1, content_type, tail, closed, source_id, base FROM bourn.streams s WHERE state = 0 \
         AND (tail > base OR EXISTS (SELECT 1 FROM bourn.streams f WHERE f.source_id = s.id) \
           OR EXISTS (SELECT 1 FROM bourn.stream_producers p WHERE p.stream_id = s.id))",
    )
    .execute(&mut **transaction)
    .await?
    .rows_affected();
    if kept == 0 {
        return Ok(());
    }
    statement(
        "UPDATE bourn.streams s SET id = DEFAULT, source_id = s.id, base = s.tail FROM bourn.streams k WHERE s.state = 0 AND k.id = -s.id",
    )
    .execute(&mut **transaction)
    .await?;
    statement(
        "UPDATE bourn.stream_producers p SET stream_id = s.id FROM bourn.streams s, bourn.streams k \
         WHERE k.id < 0 AND p.stream_id = -k.id AND s.source_id = -k.id AND s.state = 0",
    )
    .execute(&mut **transaction)
    .await?;
    statement("UPDATE bourn.streams SET id = -id WHERE id < 0").execute(&mut **transaction).await?;
    statement("UPDATE bourn.stream_writers SET streams = streams + $1 WHERE id = 0")
        .bind(i64::try_from(kept).unwrap_or(i64::MAX))
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Gives the log a new epoch by hand: every client starts again.
///
/// # Errors
/// When the database cannot be reached or written, or has no log.
pub async fn renew_log(url: &str, limits: &Limits) -> Result<(), OpenError> {
    let shown = DatabaseUrl::Postgres(url.into()).shown();
    let failed = |e: sqlx::Error| OpenError::new(&shown, &error::advice(&e));
    let db = Db::new(url, limits).map_err(failed)?;
    let mut connection = db.connect_directly().await.map_err(failed)?;
    if let Some(reason) = migrate::unfit(&mut connection).await.map_err(failed)? {
        return Err(OpenError::new(&shown, &reason));
    }
    if migrate::migrated(&mut connection).await.map_err(failed)? == 0 {
        return Err(OpenError::new(&shown, &"it holds no log yet"));
    }
    migrate::migrate(&db, false).await.map_err(failed)?;
    let renewing = async {
        let mut transaction = db.capturing().begin().await?;
        let before: String =
            scalar("SELECT epoch FROM bourn.log FOR UPDATE").fetch_one(&mut *transaction).await?;
        let before: Epoch = before.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let mut epoch = Epoch::draw();
        while epoch == before {
            epoch = Epoch::draw();
        }
        renew(&mut transaction, epoch).await?;
        transaction.commit().await
    };
    let renewed = renewing.await.map_err(failed);
    db.close();
    renewed
}

/// Settles the history at a start; a database that is read-only is served as it is.
pub(in super::super) async fn settle_at_start(inner: &Inner) -> Result<(), sqlx::Error> {
    match settle(inner, false).await {
        Err(failure) if error::read_only(&failure) => Ok(()),
        settled => settled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_leaps_past_what_was_known_and_past_what_the_clock_allows() {
        let now = COUNTED_FROM + 60_000;
        assert_eq!(beyond(0, now), 60 * PLACES_A_SECOND);
        // A log that is further than the clock says, as after a leap under a clock that ran ahead.
        assert_eq!(beyond(70 * PLACES_A_SECOND, now), 71 * PLACES_A_SECOND);
        assert_eq!(beyond(70 * PLACES_A_SECOND + 5, now), 71 * PLACES_A_SECOND);
        assert_eq!(beyond(5, COUNTED_FROM - 60_000), PLACES_A_SECOND);
        assert_eq!(beyond(Seq::MAX.as_i64(), now), Seq::MAX.as_i64());
    }

    #[test]
    fn a_copy_that_is_restored_twice_never_gives_a_place_twice() {
        // No database restarts faster than this.
        let milliseconds = 50;
        let first = beyond(5, COUNTED_FROM + 1_000_000);
        let second = beyond(5, COUNTED_FROM + 1_000_000 + milliseconds);
        assert_eq!(
            second - first,
            milliseconds * PLACES_A_MILLISECOND,
            "what the first may have appended since"
        );
    }
}
