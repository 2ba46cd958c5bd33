//! The feed of tables over HTTP: lists and rows, the streams of their changes, the history, and transactions.

pub(super) mod activities;
pub(super) mod changes;
pub(super) mod entities;
pub(super) mod transactions;

use std::sync::Arc;

use super::intake::BodyMemory;
use super::renderers::RenderContext;
use crate::access::{Access, Right, Rights};
use crate::feed::entity::{Catalog, EntityType};
use crate::feed::session::LogReader;
use crate::feed::tail::Tail;
use crate::feed::{Log, Tables, Writer};

/// What the feed's endpoints work with.
pub struct FeedContext {
    /// The streamed tables.
    pub catalog: Arc<Catalog>,
    /// Who may do what.
    pub access: Arc<Access>,
    /// The log of changes.
    pub log: Arc<dyn Log>,
    /// The rows.
    pub tables: Arc<dyn Tables>,
    /// Changes them.
    pub writer: Arc<dyn Writer>,
    /// Reads the streams that are derived from the log.
    pub reader: Arc<LogReader>,
    /// The live tail, for transactions that are waited for.
    pub tail: Arc<Tail>,
    /// Memory for the bodies of requests.
    pub bodies: BodyMemory,
    /// The path under which the server is reached; empty for the root.
    pub base_path: String,
    /// How what is read is delivered.
    pub render: RenderContext,
}

impl FeedContext {
    /// The entity types whose names a caller may see.
    fn readable(&self, rights: &Rights) -> impl Iterator<Item = &Arc<EntityType>> {
        self.catalog.iter().filter(|entity| rights.check_some(Right::Read, &entity.name).is_ok())
    }
}
