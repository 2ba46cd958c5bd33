//! Retention on SQLite: past its time a version that a newer one has superseded leaves the streams, and so does a
//! deletion. The newest version of each living row stays, so reading from the start gives the whole state, shorter. It
//! works in small steps inside the writer's transactions; the activities that it removes are kept without their
//! payload, as the audit trail.

use rusqlite::{Connection, params};

use crate::databases::sqlite::file::sequencer;

/// Activities looked at in one step.
const STEP: usize = 500;
/// Rows of the audit trail removed in one step.
const AUDIT_STEP: i64 = 5_000;

/// The bounds of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Bounds {
    /// Older activities may leave the streams; ISO 8601.
    pub(in super::super) history: String,
    /// Older activities may leave the audit trail, too.
    pub(in super::super) audit: Option<String>,
}

/// An activity that leaves.
struct Leaving {
    seq: i64,
    entity_type: String,
    feed_id: i64,
    commit_id: i64,
    last: i64,
    deletion: bool,
}

/// Does one step inside the caller's write transaction; returns whether there may be more to do.
pub(in super::super) fn step(connection: &Connection, bounds: &Bounds) -> rusqlite::Result<bool> {
    let pruned: i64 =
        connection.prepare_cached("SELECT pruned FROM bourn_log")?.query_row([], |row| row.get(0))?;
    // The newest activity stays whatever it is: it says how far the log reaches. So do activities that have no number
    // in the database yet: their marks are folded first.
    let head = sequencer::head(connection)?.as_i64();
    let looked_at: Vec<(i64, bool, String, String, bool)> = connection
        .prepare_cached(&format!(
            "SELECT seq, created_at < ?3 AND commit_id IS NOT NULL, entity_type, entity_id, action = 'delete' FROM activities \
             WHERE seq > ?1 AND seq < ?2 ORDER BY seq LIMIT {STEP}"
        ))?
        .query_map(params![pruned, head, bounds.history], |row| {
            let text = |i| Ok::<_, rusqlite::Error>(crate::databases::sqlite::sql::lossy(row, i)?.unwrap_or_default());
            Ok((row.get(0)?, row.get(1)?, text(2)?, text(3)?, row.get(4)?))
        })?
        .take_while(|row| !matches!(row, Ok((_, false, ..))))
        .collect::<Result<_, _>>()?;
    let Some(&(to, ..)) = looked_at.last() else { return expire_audit(connection, bounds) };
    let mut left = false;
    for (seq, _, entity_type, entity_id, deletion) in &looked_at {
        // The versions that this one supersedes, and itself if it is a deletion: newest first, so that the mark of a
        // transaction's last change finds the one that is the last now.
        let leaving: Vec<Leaving> = connection
            .prepare_cached(
                "SELECT seq, feed_id, commit_id, last, action = 'delete' FROM activities \
                 WHERE entity_id = ?1 AND entity_type = ?2 AND seq <= ?3 AND (seq < ?3 OR ?4) ORDER BY seq DESC",
            )?
            .query_map(params![entity_id, entity_type, seq, deletion], |row| {
                Ok(Leaving {
                    seq: row.get(0)?,
                    entity_type: entity_type.clone(),
                    feed_id: row.get(1)?,
                    commit_id: row.get(2)?,
                    last: row.get(3)?,
                    deletion: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        left |= !leaving.is_empty();
        for activity in &leaving {
            take_out(connection, activity, bounds)?;
        }
    }
    connection
        .prepare_cached("UPDATE bourn_log SET pruned = ?1, generation = generation + ?2")?
        .execute(params![to, left])?;
    Ok(looked_at.len() == STEP)
}

fn take_out(connection: &Connection, activity: &Leaving, bounds: &Bounds) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO bourn_audit SELECT seq, action, entity_type, entity_id, organization_id, transaction_id, client_id, \
             changed_keys, commit_id, created_at, subject FROM activities WHERE seq = ?1 AND (?2 IS NULL OR created_at >= ?2)",
        )?
        .execute(params![activity.seq, bounds.audit])?;
    connection.prepare_cached("DELETE FROM activities WHERE seq = ?1")?.execute([activity.seq])?;
    if activity.deletion {
        connection
            .prepare_cached("UPDATE bourn_feeds SET horizon = max(horizon, ?1) WHERE id = ?2")?
            .execute([activity.seq, activity.feed_id])?;
        connection
            .prepare_cached("UPDATE bourn_log SET horizon = max(horizon, ?1)")?
            .execute([activity.seq])?;
    }
    // A transaction's last change has left: the one before it is the last now.
    if activity.last & 2 != 0 {
        connection
            .prepare_cached(
                "UPDATE activities SET last = last | 2 WHERE commit_id = ?3 AND seq = \
                 (SELECT max(seq) FROM activities WHERE entity_type = ?1 AND seq < ?2)",
            )?
            .execute(params![activity.entity_type, activity.seq, activity.commit_id])?;
    }
    if activity.last & 1 != 0 {
        connection
            .prepare_cached(
                "UPDATE activities SET last = last | 1 WHERE commit_id = ?3 AND seq = \
                 (SELECT max(seq) FROM activities WHERE feed_id = ?1 AND seq < ?2)",
            )?
            .execute([activity.feed_id, activity.seq, activity.commit_id])?;
    }
    Ok(())
}

fn expire_audit(connection: &Connection, bounds: &Bounds) -> rusqlite::Result<bool> {
    let Some(audit) = &bounds.audit else { return Ok(false) };
    let removed = connection
        .prepare_cached(&format!(
            "DELETE FROM bourn_audit WHERE seq IN (SELECT seq FROM bourn_audit WHERE created_at < ?1 LIMIT {AUDIT_STEP})"
        ))?
        .execute([audit])?;
    Ok(i64::try_from(removed) == Ok(AUDIT_STEP))
}
