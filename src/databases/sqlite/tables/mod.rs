//! The application's tables: their columns, the forms of their values, reading their rows, and comparing them with the log.

pub(super) mod introspect;
pub(super) mod reconcile;
pub(super) mod rows;
