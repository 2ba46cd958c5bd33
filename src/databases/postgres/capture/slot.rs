//! The replication slot: that it exists, that it is ours, and that nothing was skipped between it and the log.

use pgwire_replication::Lsn;
use sqlx::{PgConnection, Row};

use super::CaptureError;
use crate::databases::postgres::Inner;
use crate::databases::postgres::connections::{APPLICATION, scalar, statement};
use crate::databases::postgres::log::history;

/// The first version of PostgreSQL with slots that standbys keep in step.
const FAILOVER_SLOTS_SINCE: i32 = 170_000;

/// The slot as the database has it.
#[derive(Debug)]
struct Slot {
    plugin: String,
    here: bool,
    lost: bool,
    holder: Option<String>,
    confirmed: Option<Lsn>,
}

async fn look(connection: &mut PgConnection, name: &str) -> Result<Option<Slot>, sqlx::Error> {
    let row = statement(
        "SELECT s.plugin::text, s.database = current_database(), coalesce(s.wal_status = 'lost', false), \
         CASE WHEN s.active THEN coalesce(a.application_name, '?') END, s.confirmed_flush_lsn::text \
         FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1",
    )
    .bind(name)
    .fetch_optional(connection)
    .await?;
    let read = |row: sqlx::postgres::PgRow| {
        let confirmed: Option<String> = row.try_get(4)?;
        Ok(Slot {
            plugin: row.try_get::<Option<String>, _>(0)?.unwrap_or_default(),
            here: row.try_get::<Option<bool>, _>(1)?.unwrap_or_default(),
            lost: row.try_get(2)?,
            holder: row.try_get(3)?,
            confirmed: confirmed.and_then(|text| Lsn::parse(&text).ok()),
        })
    };
    row.map(read).transpose()
}

/// Makes sure that there is a slot that this server may try to hold. Servers that find it held ask again and again:
/// they do so by way of the pool, and open a connection of its own only where the slot is to be made.
pub(super) async fn prepare(inner: &Inner) -> Result<(), CaptureError> {
    let (name, publication) = (&inner.limits.slot, &inner.limits.publication);
    let mut reading = inner.db.single().await?;
    let connection = reading.connection();
    let level: String = scalar("SELECT current_setting('wal_level')").fetch_one(&mut *connection).await?;
    if level != "logical" {
        return Err(CaptureError::Blocked(format!(
            "the database's wal_level is `{level}`; set it and restart the database: ALTER SYSTEM SET wal_level = 'logical'"
        )));
    }
    let published = published(connection, publication).await?;
    if !published {
        return Err(CaptureError::Blocked(format!(
            "the database has no publication `{publication}` that names the streamed tables; `bourn prepare --apply` makes it"
        )));
    }
    let slot = look(connection, name).await?;
    reading.commit().await?;
    match slot {
        Some(slot) if !slot.here => Err(CaptureError::Blocked(format!(
            "the replication slot `{name}` belongs to another database of this server; name another with `slot`"
        ))),
        Some(slot) if slot.plugin != "pgoutput" => Err(CaptureError::Blocked(format!(
            "the replication slot `{name}` is for the plugin `{}`; name another with `slot`, or drop it",
            slot.plugin
        ))),
        Some(slot) if slot.holder.as_deref().is_some_and(|holder| holder == APPLICATION) => {
            Err(CaptureError::Held)
        }
        Some(Slot { holder: Some(holder), .. }) => Err(CaptureError::Blocked(format!(
            "the replication slot `{name}` is held by another program (`{holder}`); stop that, or name another slot with `slot`"
        ))),
        Some(slot) if slot.lost => {
            tracing::warn!(
                slot = name,
                "the database has given up the slot; every table will be compared with the log"
            );
            let mut connection = inner.db.connect_directly().await?;
            drop_slot(inner, &mut connection).await?;
            create(inner, &mut connection).await
        }
        Some(_) => Ok(()),
        None => create(inner, &mut inner.db.connect_directly().await?).await,
    }
}

async fn published(connection: &mut PgConnection, publication: &str) -> Result<bool, sqlx::Error> {
    scalar(
        "SELECT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = $1 AND pubinsert AND pubupdate AND pubdelete AND pubtruncate)",
    )
    .bind(publication)
    .fetch_one(connection)
    .await
}

async fn create(inner: &Inner, connection: &mut PgConnection) -> Result<(), CaptureError> {
    let name = &inner.limits.slot;
    inner.shared.capture_stands(Some(
        "the replication slot is being made; that waits for transactions that are open now".into(),
    ));
    let version: i32 =
        scalar("SELECT current_setting('server_version_num')::int").fetch_one(&mut *connection).await?;
    // A slot that standbys may keep in step: capture goes on from it where one of them is promoted.
    let sql = match version >= FAILOVER_SLOTS_SINCE {
        true => "SELECT 1 FROM pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)",
        false => "SELECT 1 FROM pg_create_logical_replication_slot($1, 'pgoutput')",
    };
    let created = statement(sql).bind(name).execute(connection).await;
    match created {
        Ok(_) => {
            tracing::info!(slot = name, "the replication slot was made");
            Ok(())
        }
        // Another server was faster.
        Err(error) if super::super::error::code(&error).as_deref() == Some("42710") => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Called when the stream cannot be read from where the slot stands: the publication did not exist when some of it was
/// written, which the database reports as a failure for ever. If the publication exists now, the slot is recreated.
pub(super) async fn renew(inner: &Inner) {
    let renewing = async {
        let mut connection = inner.db.connect_directly().await?;
        if published(&mut connection, &inner.limits.publication).await? {
            tracing::warn!(
                "the publication was away for a while; the slot is recreated and every table compared with the log"
            );
            drop_slot(inner, &mut connection).await?;
        }
        Ok::<_, CaptureError>(())
    };
    if let Err(lost) = renewing.await {
        tracing::warn!(reason = %lost, "the slot cannot be recreated now");
    }
}

/// Drops the slot; every table is compared with the log once it is recreated.
pub(super) async fn drop_slot(inner: &Inner, connection: &mut PgConnection) -> Result<(), CaptureError> {
    statement("SELECT pg_drop_replication_slot($1)").bind(&inner.limits.slot).execute(connection).await?;
    Ok(())
}

/// Where the log and the slot stand, once this server holds the slot.
pub(super) struct Standing {
    pub(super) fence: i64,
    pub(super) head: i64,
    pub(super) position: Lsn,
    /// Transactions of activities up to here were another source's.
    pub(super) foreign_until: i64,
}

/// Settles the log's history, then raises the fence, so that the previous holder of the slot can append no more. If the
/// slot is ahead of the log, something was skipped: every table is to be compared.
pub(super) async fn take_over(
    inner: &Inner,
    connection: &mut PgConnection,
) -> Result<Standing, CaptureError> {
    let slot = look(connection, &inner.limits.slot).await?;
    let confirmed = slot.and_then(|slot| slot.confirmed).ok_or(CaptureError::Ended)?;
    let skipped: bool =
        scalar("SELECT coalesce(position < $1::text::pg_lsn, false) AND head > 0 FROM bourn.log")
            .bind(confirmed.to_pg_string())
            .fetch_one(&mut *connection)
            .await?;
    if let Some(forbidden) = history::forbidden(connection).await? {
        return Err(CaptureError::Blocked(forbidden));
    }
    history::settle(inner, skipped).await?;
    let row = statement(
        "UPDATE bourn.log SET fence = fence + 1 RETURNING fence, head, position::text, foreign_until",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (fence, head): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let position: Option<String> = row.try_get(2)?;
    let position = position.and_then(|text| Lsn::parse(&text).ok());
    let foreign_until: i64 = row.try_get(3)?;
    if let Some(position) = position.filter(|position| *position >= confirmed) {
        return Ok(Standing { fence, head, position, foreign_until });
    }
    if position.is_some() {
        tracing::warn!("the slot is ahead of the log: every table is compared with the log");
    }
    // In one statement: a position that is up to date means that no table is to be compared.
    statement(
        "WITH moved AS (UPDATE bourn.log SET position = $1::text::pg_lsn, told_from = $1::text::pg_lsn WHERE fence = $2 RETURNING 1) \
         UPDATE bourn.entities SET reconciled = false, signature = '', whole = false WHERE EXISTS (SELECT 1 FROM moved)",
    )
    .bind(confirmed.to_pg_string())
    .bind(fence)
    .execute(connection)
    .await?;
    Ok(Standing { fence, head, position: confirmed, foreign_until })
}

/// The database's process that sends a slot's stream, if there is one.
pub(super) async fn sender(connection: &mut PgConnection, slot: &str) -> Result<Option<i32>, sqlx::Error> {
    let found: Option<Option<i32>> =
        scalar("SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1")
            .bind(slot)
            .fetch_optional(connection)
            .await?;
    Ok(found.flatten())
}
