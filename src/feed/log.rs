//! The log as its readers need it: activities, queries of them, and the trait of a database that has them.

use async_trait::async_trait;
use bourn_protocol::chunk::ChunkBuilder;
use bourn_protocol::{
    Action, ActivityRef, ClientId, EntityKey, EntityTypes, Epoch, Last, MessageKind, Scope, Selector, Seq,
    TransactionId,
};

use crate::access::{Denied, Guarded, Permitted, Right, Rights};
use crate::head::{Head, Version};
use crate::storage_error::StorageError;

/// What a read cannot give of a stream any more, in the read's own snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLosses {
    /// The content of the log that was read.
    pub version: Version,
    /// Offsets below this one are gone, because a deletion after them was removed. The start of the stream is not.
    pub horizon: Seq,
    /// The place where the read began lies in a part of the log that the database has lost.
    pub lost: bool,
    /// The read spans such a part: another body may have been served under the same URL before.
    pub spans: bool,
    /// Where the newest such part ends, if it lies ahead of the place where the read began.
    pub gap: Option<Seq>,
}

/// One activity, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "field by field the same as ActivityRef, where each is described")]
pub struct Activity {
    pub seq: Seq,
    pub action: Action,
    pub entity_type: String,
    pub entity_id: String,
    pub organization_id: Option<String>,
    pub transaction_id: Option<String>,
    pub client_id: Option<String>,
    pub changed_keys: Option<String>,
    pub value: Option<String>,
    pub previous_values: Option<String>,
    pub commit_id: i64,
    pub last: Last,
    pub created_at: String,
    pub subject: Option<String>,
}

impl Activity {
    /// A copy of a borrowed one.
    #[must_use]
    pub fn of(activity: &ActivityRef<'_>) -> Activity {
        Activity {
            seq: activity.seq,
            action: activity.action,
            entity_type: activity.entity_type.into(),
            entity_id: activity.entity_id.into(),
            organization_id: activity.organization_id.map(Into::into),
            transaction_id: activity.transaction_id.map(Into::into),
            client_id: activity.client_id.map(Into::into),
            changed_keys: activity.changed_keys.map(Into::into),
            value: activity.value.map(Into::into),
            previous_values: activity.previous_values.map(Into::into),
            commit_id: activity.commit_id,
            last: activity.last,
            created_at: activity.created_at.into(),
            subject: activity.subject.map(Into::into),
        }
    }

    /// The bytes of its rows, the one after the change and the one before.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        length(&self.value) + length(&self.previous_values)
    }

    /// The same activity, borrowed, as the encoders take it.
    #[must_use]
    pub fn as_ref(&self) -> ActivityRef<'_> {
        ActivityRef {
            seq: self.seq,
            action: self.action,
            entity_type: &self.entity_type,
            entity_id: &self.entity_id,
            organization_id: self.organization_id.as_deref(),
            transaction_id: self.transaction_id.as_deref(),
            client_id: self.client_id.as_deref(),
            changed_keys: self.changed_keys.as_deref(),
            value: self.value.as_deref(),
            previous_values: self.previous_values.as_deref(),
            commit_id: self.commit_id,
            last: self.last,
            created_at: &self.created_at,
            subject: self.subject.as_deref(),
        }
    }

    /// The id that a stream calls this activity's transaction by.
    #[must_use]
    pub fn txid(&self) -> String {
        self.transaction_id.clone().unwrap_or_else(|| self.commit_id.to_string())
    }
}

/// What the log has gained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gained {
    /// In the order of the log.
    pub activities: Vec<Activity>,
    /// A limit was reached: there may be more, and the last transaction may go on.
    pub cut: bool,
    /// The log that was read.
    pub epoch: Epoch,
    /// The place lies in a part of the log that the database has lost, or past its head: nothing follows it.
    pub lost: bool,
}

/// A query of the history: every given field must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActivityQuery {
    /// The mutation's id.
    pub transaction_id: Option<TransactionId>,
    /// The device.
    pub client_id: Option<ClientId>,
    /// The entity type's name.
    pub entity_type: Option<String>,
    /// The row's key.
    pub entity_id: Option<EntityKey>,
    /// The scope.
    pub organization_id: Option<Scope>,
    /// Only activities before this place; for the next page.
    pub before: Option<Seq>,
    /// Most activities in the answer.
    pub limit: usize,
}

impl ActivityQuery {
    /// The types whose activities are wanted.
    #[must_use]
    pub fn types(&self) -> EntityTypes {
        self.entity_type.as_deref().map_or(EntityTypes::All, |name| EntityTypes::One(name.into()))
    }
}

impl Guarded for ActivityQuery {
    fn check(&self, rights: &Rights) -> Result<(), Denied> {
        let wanted = Selector {
            kind: MessageKind::Activity,
            types: self.types(),
            scope: self.organization_id.clone(),
            old_values: true,
        };
        wanted.check(rights)
    }
}

/// What the server knows of a transaction id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionState {
    /// Nothing.
    Unknown,
    /// It is committed, but not yet in the log.
    Accepted,
    /// It is in the log; the place is that of its last activity.
    Confirmed(Seq),
}

/// What the log and the ledger have of a transaction: not to be disclosed before the caller's rights are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionRecord {
    /// What became of it.
    pub(crate) state: TransactionState,
    /// The caller whose token it was made with.
    pub(crate) subject: Option<String>,
    /// The types and scopes of the rows that it changed.
    pub(crate) touched: Vec<(String, Option<String>)>,
}

impl TransactionRecord {
    /// What a caller may see of it: nothing, unless it is the caller's own, or the caller may see all of its history.
    #[must_use]
    pub fn state_for(self, rights: &Rights) -> TransactionState {
        let own =
            self.subject.is_some() && self.subject.as_deref() == rights.subject().map(|subject| &**subject);
        let seen = |(entity_type, scope): &(String, Option<String>)| {
            rights.check_row(Right::History, entity_type, scope.as_deref()).is_ok()
        };
        let all_seen = (1..=TOUCHED_MAX).contains(&self.touched.len()) && self.touched.iter().all(seen);
        match rights.is_everything() || own || all_seen {
            true => self.state,
            false => TransactionState::Unknown,
        }
    }
}

/// Most pairs of type and scope by which the right to see a transaction is checked; its own caller is, however many
/// there are.
pub(crate) const TOUCHED_MAX: usize = 1_000;

/// The log, for reading.
#[async_trait]
pub trait Log: Send + Sync {
    /// How far the log reaches, as the database has it now.
    async fn bounds(&self) -> Result<Head, StorageError>;

    /// The place of the last activity in a stream, or its horizon where that is further; zero when it has neither.
    async fn stream_tail(&self, stream: &Selector) -> Result<Head, StorageError>;

    /// Fills the chunk with what follows its position, until it is done or the log ends; returns what the stream could
    /// not give at that moment, or shortly after.
    async fn fill(
        &self,
        stream: &Selector,
        chunk: ChunkBuilder,
    ) -> Result<(ChunkBuilder, ReadLosses), StorageError>;

    /// The activities after a place, in order: at most `rows`, and no more once their rows have `bytes`.
    async fn follow(&self, after: Seq, rows: usize, bytes: usize) -> Result<Gained, StorageError>;

    /// The activities that match, newest first.
    async fn activities(&self, query: &Permitted<ActivityQuery>) -> Result<Vec<Activity>, StorageError>;

    /// What is known of a transaction; `with_owner`: also what decides who may see it.
    async fn transaction(
        &self,
        id: &TransactionId,
        with_owner: bool,
    ) -> Result<TransactionRecord, StorageError>;
}
