//! Why a database could not be opened, and what checking one found.

/// Why a database could not be opened; the text is for the operator's terminal.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the database {database}: {reason}")]
pub struct OpenError {
    database: String,
    reason: String,
}

impl OpenError {
    /// The error of `database`, named as it may be shown, with its reason.
    pub(super) fn new(database: &dyn std::fmt::Display, reason: &dyn std::fmt::Display) -> OpenError {
        OpenError { database: database.to_string(), reason: reason.to_string() }
    }
}

/// One finding about a database, for its operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether the server can work without changing it.
    pub fine: bool,
    /// What was found, as text.
    pub text: String,
}
