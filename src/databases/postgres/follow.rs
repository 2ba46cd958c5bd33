//! Following the log and the stored streams, on every server: a notification says what has grown, and a slow poll makes
//! up for lost notifications.

use std::collections::BTreeMap;
use std::time::Duration;

use bourn_protocol::Seq;
use pgwire_replication::Lsn;
use sqlx::Row;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connections::statement;
use super::log::history::{self, settled};
use super::log::{CHANNEL, read, stops};
use super::{Inner, error, refresh, streams};
use crate::feed::SlotStatus;
use crate::head::Head;

/// How soon the database is asked again while it does not answer or no notification can be heard, at the latest.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Follows until the server stops.
pub(super) async fn run(inner: &Inner, stop: &CancellationToken) {
    let direct = PgPoolOptions::new().max_connections(1).connect_lazy_with(inner.db.direct().clone());
    let mut due = Instant::now();
    let mut listener = None;
    loop {
        let heard = async {
            match &mut listener {
                // Not `recv`, which reconnects silently, so that missed notifications would go unnoticed.
                Some(listener) => PgListener::try_recv(listener).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = heard => match heard {
                Ok(Some(notification)) if notification.channel() == streams::CHANNEL => {
                    inner.stored.hear(notification.payload());
                }
                Ok(Some(notification)) if notification.payload() == history::CHANGED => {
                    // Later notifications are about the log as it is now.
                    if inner.db.within(look(inner)).await.is_err() {
                        due = Instant::now();
                    }
                }
                Ok(Some(notification)) => {
                    if let Some(head) = notification.payload().parse().ok().and_then(Seq::new) {
                        inner.shared.advance(head);
                    }
                }
                // Look now: notifications may be lost.
                lost => {
                    tracing::debug!(failure = ?lost.err(), "the connection that hears notifications is lost");
                    listener = None;
                    due = Instant::now();
                }
            },
            () = tokio::time::sleep_until(due) => {
                let interval = inner.limits.follow_interval.get();
                // No notification reports what was committed before the listener began.
                let heard_all = listener.is_some();
                if listener.is_none() {
                    let listening = tokio::time::timeout(inner.limits.connect_timeout.get(), listen(&direct));
                    listener = listening.await.ok().and_then(Result::ok);
                }
                let looked = async {
                    look(inner).await?;
                    inner.stored.look(&inner.db, heard_all).await?;
                    refresh::look(inner, false).await
                };
                let looked = inner.db.within(Box::pin(looked)).await;
                // No notification reports what was committed meanwhile.
                let again = if listener.is_none() || looked.is_err() { interval.min(TRY_AGAIN) } else { interval };
                due = Instant::now() + again;
                inner.shared.database_stands(looked.err().map(|failure| error::storage(&failure).to_string()));
            }
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    direct.close().await;
}

async fn listen(direct: &sqlx::PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(direct).await?;
    listener.eager_reconnect(false);
    listener.listen_all([CHANNEL, streams::CHANNEL]).await?;
    Ok(listener)
}

/// Asks the database how far the log reaches, how far it is behind, and which tables are being compared. Where the
/// database went back in time, that is settled first.
pub(super) async fn look(inner: &Inner) -> Result<(), sqlx::Error> {
    if !look_once(inner).await? {
        history::settle(inner, false).await?;
        if !look_once(inner).await? {
            return Err(error::Unsettled.into());
        }
    }
    Ok(())
}

/// Returns whether the log may be used as it is.
async fn look_once(inner: &Inner) -> Result<bool, sqlx::Error> {
    let mut reading = inner.db.single().await?;
    let connection = reading.connection();
    let row = statement(concat!(
        "SELECT head, position::text, generation, epoch, ",
        settled!(),
        ", (SELECT max(after) FROM bourn.gaps), CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END, s.wal_status, \
         CASE WHEN NOT pg_is_in_recovery() THEN greatest(0, pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn))::int8 END, coalesce(s.active, false) \
         FROM bourn.log l LEFT JOIN pg_replication_slots s ON s.slot_name = $1"
    ))
    .bind(&inner.limits.slot)
    .fetch_one(&mut *connection)
    .await?;
    let version = read::version_of(row.try_get(3)?, row.try_get(2)?)?;
    let head = Head { epoch: version.epoch, seq: Seq::from_i64(row.try_get(0)?).unwrap_or_default() };
    if !row.try_get::<bool, _>(4)? || !inner.shared.reaches_published(head) {
        return Ok(false);
    }
    // The version first: a reader that knows another version of the log discards what it knows.
    inner.shared.set_version_of_log(version);
    inner.shared.publish(head);
    if inner.shared.history_changed(version.epoch, row.try_get(5)?) {
        inner.stored.doubt();
    }
    let place = |at: usize| {
        let text: Option<String> = row.try_get(at)?;
        Ok::<_, sqlx::Error>(text.and_then(|text| Lsn::parse(&text).ok()))
    };
    let retained: Option<i64> = row.try_get(8)?;
    let slot = SlotStatus {
        retained_bytes: retained.and_then(|bytes| u64::try_from(bytes).ok()),
        wal_status: row.try_get(7)?,
        ..SlotStatus::default()
    };
    inner.shared.saw(place(1)?, place(6)?, row.try_get(9)?, slot);
    let rows = statement("SELECT entity_type, reconciled, compared FROM bourn.entities")
        .fetch_all(&mut *connection)
        .await?;
    let mut known = BTreeMap::new();
    for row in rows {
        known.insert(row.try_get::<String, _>(0)?, (row.try_get(1)?, row.try_get::<i64, _>(2)?));
    }
    let stops = stops::read(reading.connection()).await?;
    inner.shared.others_stop(&inner.catalog, stops);
    let mut progress = BTreeMap::new();
    for entity in inner.catalog.iter().filter(|entity| entity.schema().is_ok()) {
        // Tables that were never compared are still to be compared, too.
        let (reconciled, compared) = known.get(&*entity.name).copied().unwrap_or((false, 0));
        if !reconciled {
            progress.insert(entity.name.to_string(), u64::try_from(compared).unwrap_or_default());
        }
    }
    inner.shared.others_reconcile(progress);
    Ok(true)
}
