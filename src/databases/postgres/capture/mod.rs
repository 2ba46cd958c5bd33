//! Capture from PostgreSQL: one server, the leader, follows the replication stream and appends to the log. Holding the
//! replication slot makes it the leader; a fence in the log's own row makes a superseded one's next append fail. All
//! servers try for the slot now and then, so failing over is trying again.
//!
//! The stream's rows become [`change`]s, [`settle`] makes activities of them with what [`prior`] finds in the log,
//! [`append`] appends these. Where the stream lacks changes, the [`leader`] compares tables with the log.

mod append;
mod change;
mod differences;
mod failure;
mod leader;
mod new_activity;
mod prior;
mod retention;
mod scan;
mod settle;
mod sift;
mod slot;
mod unlogged;

use std::time::Duration;

use pgwire_replication::PgWireError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Inner;
use super::pgoutput::Malformed;
use failure::Remedy;
use leader::Leader;

/// Why a server does not lead, or not any more.
#[derive(Debug, thiserror::Error)]
enum CaptureError {
    /// Another server has taken over.
    #[error("another server captures now")]
    Fenced,
    /// Another server holds the slot, as is normal.
    #[error("another server captures")]
    Held,
    /// An operator must remove an obstacle; the text is for the operator.
    #[error("{0}")]
    Blocked(String),
    /// A row has more bytes than the log takes.
    #[error("a row is too large for the log")]
    TooLarge,
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
    /// The database sent nothing for so long that the connection is taken for dead.
    #[error("the database has sent nothing for {}", humantime::format_duration(*.0))]
    Silent(std::time::Duration),
    /// The server is to stop.
    #[error("the server stops")]
    Stopped,
}

impl CaptureError {
    /// The remedy for it.
    fn remedy(&self) -> Remedy {
        match self {
            CaptureError::TooLarge => Remedy::Row,
            CaptureError::Database(failure) => failure::of_statement(failure),
            CaptureError::Stream(failure) => failure::of_stream(failure, false),
            _ => Remedy::Retry,
        }
    }
}

/// The longest pause between two attempts to capture while something fails.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Captures whenever no other server does, until the server stops.
pub(super) async fn run(inner: &Inner, stop: &CancellationToken) {
    let first = inner.limits.follow_interval.get() / 2;
    let mut pause = first;
    // The failure that was logged last: it is retried all the time, and logged once.
    let mut logged = String::new();
    // The place where the stream failed last.
    let mut failed_at = None;
    loop {
        let lost = match Leader::begin(inner, stop).await {
            Ok(mut leader) => {
                tracing::info!("this server captures changes");
                let fence = leader.fence();
                let retention = retention::run(inner.clone(), fence, stop.clone());
                let retention = inner.supervisor.guard("retention", retention);
                let _retaining = AbortOnDropHandle::new(tokio::spawn(retention));
                logged = String::new();
                let began = Instant::now();
                let lost = leader.run().await;
                inner.shared.leading(false);
                if began.elapsed() > PAUSE_MAX {
                    pause = first;
                }
                let position = Some(leader.position());
                let remedy = match &lost {
                    CaptureError::Stream(failure) => failure::of_stream(failure, failed_at == position),
                    _ => Remedy::Retry,
                };
                failed_at = matches!(lost, CaptureError::Stream(_)).then_some(position).flatten();
                if !matches!(lost, CaptureError::Stopped) {
                    tracing::warn!(reason = %lost, "this server does not capture any more");
                }
                if matches!(lost, CaptureError::Stopped) || remedy == Remedy::Slot {
                    leader.release().await;
                }
                if remedy == Remedy::Slot {
                    slot::renew(inner).await;
                }
                lost
            }
            Err(lost) => lost,
        };
        match &lost {
            CaptureError::Stopped => return,
            CaptureError::Fenced | CaptureError::Held | CaptureError::Ended => {
                pause = first;
                inner.shared.capture_stands(None);
            }
            lost => {
                inner.shared.capture_stands(Some(failure::in_words(lost, inner, &mut logged)));
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}
