//! Whether the database still sends this server the replication stream. A connection may be half open: requests on it
//! are never answered, and no error reports that. The database drops such a stream by itself, so the server asks it
//! whether it has.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use pgwire_replication::ReplicationClient;
use tokio::time::Instant;

use crate::databases::postgres::Inner;
use crate::databases::postgres::capture::{CaptureError, failure, slot};

/// The database sends a sign of life twice within the leader's patience; after so many times without one it may be
/// gone.
const SILENCE: u32 = 2;

/// The database's process that sends the stream.
pub(in super::super) struct WalSender {
    /// Its number; `None` where the database did not say.
    pub(in super::super) process: Option<i32>,
    /// When it last sent something, without the time that the server itself was busy.
    pub(in super::super) heard: Instant,
}

impl WalSender {
    pub(in super::super) fn new(process: Option<i32>) -> WalSender {
        WalSender { process, heard: Instant::now() }
    }
}

/// For how long the database may send nothing, or not answer, before it is asked whether it still sends.
pub(in super::super) fn silence(inner: &Inner) -> Duration {
    inner.limits.leader_timeout.get() * SILENCE
}

/// Connects to the replication stream.
pub(in super::super) async fn connect(inner: &Inner) -> Result<ReplicationClient, CaptureError> {
    inner.shared.connects();
    let most = inner.limits.connect_timeout.get() + silence(inner);
    tokio::time::timeout(most, start(inner)).await.unwrap_or(Err(CaptureError::Silent(most)))
}

async fn start(inner: &Inner) -> Result<ReplicationClient, CaptureError> {
    let mut client = ReplicationClient::connect_gated(inner.db.replication(&inner.limits)).await?;
    client.start().await?;
    match client.wait_started().await {
        Ok(()) => Ok(client),
        Err(error) if failure::stream_code(&error) == Some("55006") => Err(CaptureError::Held),
        Err(error) => Err(error.into()),
    }
}

/// Does a piece of the leader's work for as long as the database sends it the stream. A statement whose connection is
/// half open never ends; then the database has dropped the stream's connection, too.
pub(in super::super) async fn attended<T>(
    inner: &Inner,
    sender: Option<i32>,
    work: impl Future<Output = Result<T, CaptureError>>,
) -> Result<T, CaptureError> {
    let every = silence(inner);
    let mut work = pin!(work);
    loop {
        match tokio::time::timeout(every, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) if still_sends(inner, sender).await => {}
            Err(_) => return Err(CaptureError::Silent(every)),
        }
    }
}

/// Whether the database still sends this server the stream, as the database itself says.
pub(in super::super) async fn still_sends(inner: &Inner, sender: Option<i32>) -> bool {
    let ask = async {
        let mut reading = inner.db.watching().single().await?;
        slot::sender(reading.connection(), &inner.limits.slot).await
    };
    let asked = tokio::time::timeout(inner.limits.leader_timeout.get(), ask).await;
    matches!(asked, Ok(Ok(now)) if now.is_some() && now == sender)
}
