//! The application's tables as REST needs them: lists, rows and writes.

use std::sync::Arc;

use async_trait::async_trait;
use bourn_protocol::{EntityKey, Scope};
use bytes::Bytes;

use super::entity::EntityType;
use super::mutation::{Mutation, WriteError, Written};
use crate::access::{Denied, Guarded, Permitted, Right, Rights, Sealed};
use crate::head::Head;
use crate::storage_error::StorageError;

/// Which rows a list asks for.
#[derive(Debug, Clone)]
pub struct ListQuery {
    /// The table.
    pub entity: Arc<EntityType>,
    /// Only rows of this scope.
    pub scope: Option<Scope>,
    /// Only rows after this key.
    pub after: Option<EntityKey>,
    /// Most rows in the answer.
    pub limit: usize,
}

impl Guarded for ListQuery {
    fn check(&self, rights: &Rights) -> Result<(), Denied> {
        rights.check(Right::Read, &self.entity.name, self.scope.as_ref().map(Scope::as_str))
    }
}

/// A page of a table and the place in its stream from which everything it lacks still follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// A JSON array of rows, by key.
    pub rows: Bytes,
    /// The key of the last row, when there may be more rows.
    pub next_after: Option<String>,
    /// The tail of the list's stream, seen no later than the rows.
    pub tail: Head,
}

/// The application's tables, for reading: a writer reads its own writes.
#[async_trait]
pub trait Tables: Send + Sync {
    /// A page of living rows.
    async fn list(&self, query: &Permitted<ListQuery>) -> Result<ListPage, StorageError>;

    /// One living row as JSON.
    async fn row(
        &self,
        entity: &Arc<EntityType>,
        key: &EntityKey,
    ) -> Result<Option<Sealed<Bytes>>, StorageError>;
}

/// The application's tables, for writing. Concurrent writes may share a commit; each has its own answer, and
/// none is answered before it is durable.
#[async_trait]
pub trait Writer: Send + Sync {
    /// Does one mutation, once.
    async fn write(&self, mutation: Mutation) -> Result<Written, WriteError>;

    /// Does what is queued; later writes are refused.
    async fn close(&self);
}
