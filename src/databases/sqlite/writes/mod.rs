//! Mutations: done once, inside the writer's transaction, and undone. This module has what both share.

mod expect;
pub(super) mod mutate;
mod rollback;

use bourn_protocol::{ClientId, TransactionId};
use rusqlite::Connection;
use rusqlite::types::Value as Sql;

use crate::access::WritePermit;
use crate::feed::entity::{Catalog, Column};

/// A value that a column is set to: the parameter, and the expression that takes it.
struct Assignment<'a> {
    column: &'a Column,
    source: &'static str,
    value: Sql,
}

impl<'a> Assignment<'a> {
    fn new(column: &'a Column, value: Sql) -> Assignment<'a> {
        Assignment { column, source: "?", value }
    }
}

/// What a mutation needs to run.
struct WriteContext<'a> {
    connection: &'a Connection,
    catalog: &'a Catalog,
    transaction: &'a TransactionId,
    client: Option<&'a ClientId>,
    permit: &'a WritePermit,
}
