//! What opening a database, or looking at it, comes to beside what is asked for.

/// Why a database could not be opened; the text is for the operator's terminal.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the database {database}: {reason}")]
pub struct OpenError {
    database: String,
    reason: String,
}

impl OpenError {
    /// Of this database, as it may be shown, for this reason.
    pub(super) fn new(database: &dyn std::fmt::Display, reason: &dyn std::fmt::Display) -> OpenError {
        OpenError { database: database.to_string(), reason: reason.to_string() }
    }
}

/// One thing that an operator is told of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Serving works without a change of it.
    pub fine: bool,
    /// What was found, in words.
    pub text: String,
}
