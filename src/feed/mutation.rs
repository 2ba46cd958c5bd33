//! Mutations: what a client may ask to be written, and what may come of it.

use std::sync::Arc;

use bourn_protocol::{Action, ClientId, EntityKey, TransactionId};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::entity::{Columns, ConflictPolicy, EntityType, Kind};
use crate::access::{Denied, WritePermit};
use crate::storage_error::StorageError;

/// One mutation of one client.
#[derive(Debug, Clone)]
pub struct Mutation {
    /// Its id: the same id again is the same mutation again.
    pub transaction_id: TransactionId,
    /// The device it comes from.
    pub client_id: Option<ClientId>,
    /// What to do.
    pub operation: Operation,
    /// That the caller may do something like it; rows are checked by it as they are written.
    pub permit: WritePermit,
}

/// Distinguishes mutations that were sent under the same id.
pub type Fingerprint = [u8; 16];

impl Mutation {
    /// Covers what the mutation does, to which row, with which values, and for which caller. The expected transaction is not
    /// part of it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let done = self.operation.fingerprint();
        match self.permit.subject() {
            Some(subject) => digest(&[b"subject", subject.as_bytes(), &done]),
            None => done,
        }
    }

    /// Whether the caller may write in the scope that the row is given: checked before anything of other rows is disclosed. The scope
    /// that is stored in the end is checked, too.
    pub(crate) fn check_given_scope(&self) -> Result<(), WriteError> {
        let (Operation::Create { entity, columns, .. } | Operation::Update { entity, columns, .. }) =
            &self.operation
        else {
            return Ok(());
        };
        let Some(given) = entity.scope.as_deref().and_then(|column| columns.get(column)) else {
            return Ok(());
        };
        let scope = match given.kind() {
            Kind::Text(text) => Some(text.into_owned()),
            Kind::Number(number) => Some(number.to_owned()),
            _ => None,
        };
        Ok(self.permit.check_row(&entity.name, scope.as_deref())?)
    }
}

impl Operation {
    fn fingerprint(&self) -> Fingerprint {
        let (kind, name, key, columns) = match self {
            Operation::Create { entity, key, columns } => {
                ("create", &*entity.name, key.as_ref(), Some(columns))
            }
            Operation::Update { entity, key, columns, .. } => {
                ("update", &*entity.name, Some(key), Some(columns))
            }
            Operation::Delete { entity, key, .. } => ("delete", &*entity.name, Some(key), None),
            Operation::Rollback { target, cascade } => {
                let kind = if *cascade { "rollback cascade" } else { "rollback" };
                return digest(&[kind.as_bytes(), target.as_str().as_bytes()]);
            }
        };
        let columns = columns.map(Columns::canonical).unwrap_or_default();
        let key = key.map_or("", |key| key.as_str());
        digest(&[kind.as_bytes(), name.as_bytes(), key.as_bytes(), &columns])
    }
}

fn digest(parts: &[&[u8]]) -> Fingerprint {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part);
    }
    let full = hash.finalize();
    let mut short = Fingerprint::default();
    short.copy_from_slice(&full[..16]);
    short
}

/// What a mutation does.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Makes a row; columns are checked against the table's schema already.
    Create {
        /// The table.
        entity: Arc<EntityType>,
        /// The row's key; made up where the client gave none.
        key: Option<EntityKey>,
        /// The other columns.
        columns: Columns,
    },
    /// Changes columns of a row.
    Update {
        /// The table.
        entity: Arc<EntityType>,
        /// The row's key.
        key: EntityKey,
        /// The columns that change.
        columns: Columns,
        /// The row's transaction as the client knows it.
        expected: Option<TransactionId>,
    },
    /// Deletes a row, softly where the table has a column for it.
    Delete {
        /// The table.
        entity: Arc<EntityType>,
        /// The row's key.
        key: EntityKey,
        /// The row's transaction as the client knows it.
        expected: Option<TransactionId>,
    },
    /// Undoes a transaction.
    Rollback {
        /// The one to undo.
        target: TransactionId,
        /// Undo what built upon it, too.
        cascade: bool,
    },
}

impl Operation {
    /// Whether it changes or deletes a row that must exist.
    #[must_use]
    pub const fn changes(&self) -> bool {
        matches!(self, Operation::Update { .. } | Operation::Delete { .. })
    }

    /// The word by which the ledger and the metrics know the operation.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Operation::Create { .. } => "create",
            Operation::Update { .. } => "update",
            Operation::Delete { .. } => "delete",
            Operation::Rollback { .. } => "rollback",
        }
    }
}

/// A change that the log has under a transaction's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoggedChange {
    pub(crate) action: Action,
    pub(crate) entity_type: String,
    pub(crate) entity_id: String,
}

impl LoggedChange {
    /// Whether a mutation like this makes such a change.
    pub(crate) fn may_be_of(&self, operation: &Operation) -> bool {
        let (entity, key, action) = match operation {
            Operation::Create { entity, key, .. } => (entity, key.as_ref(), Action::Create),
            Operation::Update { entity, key, .. } => (entity, Some(key), Action::Update),
            Operation::Delete { entity, key, .. } => (entity, Some(key), Action::Delete),
            Operation::Rollback { .. } => return true,
        };
        // An update that moves a row to another scope is logged as a creation there.
        let fits = self.action == action || (action == Action::Update && self.action == Action::Create);
        fits && *self.entity_type == *entity.name && key.is_none_or(|key| key.as_str() == self.entity_id)
    }
}

/// A mutation was done, now or before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// It had been done before; nothing was done now.
    pub repeated: bool,
    /// The row as JSON: after a create or an update, and as it last was for a delete.
    pub row: Option<Bytes>,
    /// The row's key; for a rollback, nothing.
    pub key: Option<String>,
    /// What a rollback undid, newest first.
    pub undone: Vec<Undone>,
}

/// One change that a rollback undid.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Undone {
    /// The transaction it belonged to.
    pub transaction_id: String,
    /// The row's type.
    pub entity_type: String,
    /// The row's key.
    pub entity_id: String,
    /// What the change had been.
    pub action: &'static str,
}

/// A later change of a row that is to be rolled back.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependent {
    /// The transaction it belongs to.
    pub transaction_id: String,
    /// The row's type.
    pub entity_type: String,
    /// The row's key.
    pub entity_id: String,
    /// What the change was.
    pub action: &'static str,
    /// Its place in the log.
    pub seq: u64,
}

/// Why a mutation was not done; nothing was written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No living row has the key.
    #[error("no row has the id `{0}`")]
    NotFound(String),
    /// Another transaction made a row of this key.
    #[error("another transaction made a row with the id `{0}`; choose another id, or update that row")]
    AlreadyExists(String),
    /// The row's transaction is not the expected one.
    #[error("the row's transaction is not the expected one")]
    Conflict {
        /// The row as it is.
        row: Bytes,
        /// What the client expected.
        expected: String,
        /// What the row has.
        actual: Option<String>,
    },
    /// The entity type requires the client to name the version of the row that it changes.
    #[error(
        "this entity type is changed under an optimistic lock; send X-Expected-Transaction-Id with the row's transaction id"
    )]
    ExpectationRequired,
    /// The transaction id had been used for another mutation.
    #[error(
        "this transaction id was used for another mutation; make a new one for each mutation, and repeat it only for retries of the same"
    )]
    Reused,
    /// Another row has the value of a column that must be unique.
    #[error("another row has the same value in a column, or columns, that must be unique")]
    NotUnique,
    /// The database's own rules refuse the row.
    #[error("{0}")]
    Constraint(&'static str),
    /// The log has no such transaction to undo.
    #[error("the log has no transaction `{0}`")]
    UnknownTransaction(String),
    /// The previous versions of the rows are not known.
    #[error("{0}")]
    NotReversible(String),
    /// Later transactions touched the same rows.
    #[error("later transactions changed the same rows; undo them first, or all together with ?cascade=true")]
    Blocked(Vec<Dependent>),
    /// More would be undone than one rollback may.
    #[error("this would undo more than {0} changes at once")]
    TooLarge(usize),
    /// The caller may not do it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Whether the caller may change a row of this scope. Nothing of a row that it may not see is disclosed.
pub(crate) fn may_change(
    permit: &WritePermit,
    entity: &EntityType,
    scope: Option<&str>,
    key: &str,
) -> Result<(), WriteError> {
    permit.check_row(&entity.name, scope).map_err(|denied| match permit.may_see(&entity.name, scope) {
        true => WriteError::Denied(denied),
        false => WriteError::NotFound(key.to_owned()),
    })
}

/// What to check of a row before it is changed; `None` where the last write wins.
pub(crate) fn expectation<'a>(
    entity: &EntityType,
    expected: Option<&'a TransactionId>,
) -> Result<Option<&'a TransactionId>, WriteError> {
    match entity.conflict {
        ConflictPolicy::OptimisticLock if expected.is_none() => Err(WriteError::ExpectationRequired),
        ConflictPolicy::OptimisticLock | ConflictPolicy::LastWriteWins => Ok(expected),
    }
}
