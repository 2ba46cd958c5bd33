//! The application's tables: what the catalogue says of them, the forms of their values, and reading their rows.

pub(super) mod catalog;
pub(super) mod layout;
pub(super) mod rows;
pub(super) mod sql;
pub(super) mod value;
