//! Capture from PostgreSQL: one server, the leader, follows the replication stream and appends to the log. Holding
//! the replication slot makes it the leader; a fence in the log's own row makes a superseded one's next append
//! fail. All servers try for the slot now and then, so failing over is trying again.
//!
//! The stream's rows become [`change`]s, [`settle`] makes activities of them with what [`prior`] finds in the log,
//! [`append`] puts them there. [`reconcile`] compares tables with the log where the stream does not tell.

mod append;
mod change;
mod differences;
mod entry;
mod leader;
mod link;
mod pace;
mod prior;
mod reconcile;
mod retention;
mod scan;
mod settle;
mod slot;
mod stream;
mod unlogged;

use pgwire_replication::PgWireError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub(super) use append::CHANNEL;
use leader::Leader;

use super::Inner;
use super::pgoutput::Malformed;

/// Why a server does not lead, or not any more.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// Another server has taken over.
    #[error("another server captures now")]
    Fenced,
    /// Another server holds the slot: as it should be.
    #[error("another server captures")]
    Held,
    /// Something stands in the way that an operator must mend; in words for him.
    #[error("{0}")]
    Blocked(String),
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The replication stream failed.
    #[error("the replication stream failed: {0}")]
    Stream(#[from] PgWireError),
    /// The replication stream cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The replication stream has ended.
    #[error("the database has ended the replication stream")]
    Ended,
    /// The database sent nothing for so long that its end of the connection is taken for gone.
    #[error("the database has sent nothing for {}", humantime::format_duration(*.0))]
    Silent(std::time::Duration),
    /// The server is to stop.
    #[error("the server stops")]
    Stopped,
}

/// Captures whenever nobody else does, until the server stops.
pub(super) async fn run(inner: &Inner, stop: &CancellationToken) {
    let again = inner.limits.follow_interval.get() / 2;
    // What was logged last: it is tried again all the time, and logged once.
    let mut said = String::new();
    loop {
        let lost = match Leader::begin(inner, stop).await {
            Ok(mut leader) => {
                tracing::info!("this server captures changes");
                let fence = leader.fence();
                let retention = retention::run(inner.clone(), fence, stop.clone());
                let retention = inner.supervisor.guard("retention", retention);
                let _retaining = AbortOnDropHandle::new(tokio::spawn(retention));
                said = String::new();
                let lost = leader.run().await;
                inner.shared.leading(false);
                match &lost {
                    Lost::Stopped => leader.release().await,
                    Lost::Stream(error) if error.to_string().contains("SQLSTATE 42704") => {
                        leader.release().await;
                        slot::renew(inner).await;
                    }
                    lost => tracing::warn!(reason = %lost, "this server does not capture any more"),
                }
                lost
            }
            Err(lost) => lost,
        };
        match &lost {
            Lost::Stopped => return,
            Lost::Fenced | Lost::Held | Lost::Ended => inner.shared.capture_stands(None),
            lost => inner.shared.capture_stands(Some(in_words(lost, inner, &mut said))),
        }
        tokio::select! {
            () = tokio::time::sleep(again) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What an operator is told. The database's own words are in the log lines.
fn in_words(lost: &Lost, inner: &Inner, said: &mut String) -> String {
    let text = match lost {
        Lost::Blocked(reason) => {
            if said != reason {
                tracing::warn!(reason, "cannot capture");
                said.clone_from(reason);
            }
            return reason.clone();
        }
        Lost::Stream(error) => error.to_string(),
        Lost::Database(error) => {
            let code = super::error::code(error).unwrap_or_default();
            format!("{error} SQLSTATE {code}")
        }
        lost => return lost.to_string(),
    };
    if *said != text {
        tracing::warn!(error = text, "cannot capture");
        said.clone_from(&text);
    }
    let says = |code: &str| text.contains(&format!("SQLSTATE {code}"));
    let role = inner.db.direct().get_username();
    if says("28P01") || says("28000") || text.contains("authentication") {
        "the database refuses the server's user or password for replication; see pg_hba.conf".into()
    } else if says("42501") {
        format!(
            "the database role `{role}` may not replicate; a superuser grants it: ALTER ROLE {} REPLICATION",
            super::sql::ident(role)
        )
    } else if says("53300") {
        "the database has no more places for replication; raise max_wal_senders".into()
    } else if says("53400") {
        "the database has no more replication slots; raise max_replication_slots".into()
    } else if says("53100") {
        "the database's disk is full".into()
    } else if says("25006") {
        "the database can be read but not written; is it a standby?".into()
    } else {
        "the database is out of reach or fails; see the server's log".into()
    }
}
