//! The remedies for failures of capture, and their words for an operator. The database's SQLSTATE codes decide, never
//! its error texts.

use pgwire_replication::PgWireError;

use super::CaptureError;
use crate::databases::postgres::{Inner, error, names};

/// Classes of SQLSTATE by which the database refuses the content of a row: data, constraints, triggers and limits.
const OF_A_ROW: [&str; 7] = ["22", "23", "38", "39", "44", "54", "P0"];
/// Violations of the log's own keys, because another server has appended at the same place; they say nothing of a row.
const OF_THE_LOG: [&str; 2] = ["23505", "23P01"];
/// An internal error of the database, such as a value too large for its memory.
const INTERNAL: &str = "XX000";

/// The remedy for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// It passes, or an operator removes its cause: the same work is tried again after a pause.
    Retry,
    /// The database refuses a row: that row is found, and its entity type stopped or the row passed over.
    Row,
    /// The slot cannot give what follows: it is recreated, and every table is compared with the log.
    Slot,
}

/// The remedy for a failed statement.
pub(super) fn of_statement(failure: &sqlx::Error) -> Remedy {
    match error::code(failure) {
        Some(code) if is_of_a_row(&code) => Remedy::Row,
        _ => Remedy::Retry,
    }
}

/// The remedy for a failure of the replication stream; `again` when it failed at the same place before.
pub(super) fn of_stream(failure: &PgWireError, again: bool) -> Remedy {
    match stream_code(failure) {
        // The publication did not exist when some of the stream was written.
        Some("42704") => Remedy::Slot,
        Some(code) if again && is_of_a_row(code) => Remedy::Slot,
        _ => Remedy::Retry,
    }
}

fn is_of_a_row(code: &str) -> bool {
    let of_a_row = code.get(..2).is_some_and(|class| OF_A_ROW.contains(&class));
    code == INTERNAL || (of_a_row && !OF_THE_LOG.contains(&code))
}

/// The SQLSTATE of an error of the replication stream. The client has it only at the end of the error's text.
pub(super) fn stream_code(failure: &PgWireError) -> Option<&str> {
    let PgWireError::Server(text) = failure else { return None };
    let (_, code) = text.trim_end().strip_suffix(')')?.rsplit_once("(SQLSTATE ")?;
    (code.len() == 5).then_some(code)
}

/// Why the log refuses a row, by the code of the refusal.
pub(super) fn why_refused(code: &str) -> String {
    let why = match code.get(..2) {
        Some("54") => "it is too large",
        Some("23" | "44" | "P0" | "38" | "39") => {
            "a constraint or a trigger on the log's tables does not let it in"
        }
        Some("22") => "the database does not take one of its values as text",
        _ => "the database fails with it",
    };
    format!("the log refuses the row: {why} (SQLSTATE {code})")
}

/// Why a row of a table cannot be read, by the code of the failure.
pub(super) fn why_unreadable(code: &str) -> String {
    let why = match code.get(..2) {
        Some("54") => "it is too large",
        Some("22") => "one of its values cannot be given as text in UTF-8",
        _ => "the database fails with it",
    };
    format!("the row cannot be read: {why} (SQLSTATE {code})")
}

/// Why a server does not capture, as text for its operator. The database's own words are logged alone; a failure that
/// is retried all the time is logged once.
pub(super) fn in_words(lost: &CaptureError, inner: &Inner, logged: &mut String) -> String {
    let (text, code) = match lost {
        CaptureError::Blocked(reason) => {
            if logged != reason {
                tracing::warn!(reason, "cannot capture");
                logged.clone_from(reason);
            }
            return reason.clone();
        }
        CaptureError::Stream(failure) => {
            (failure.to_string(), stream_code(failure).unwrap_or_default().to_owned())
        }
        CaptureError::Database(failure) => (failure.to_string(), error::code(failure).unwrap_or_default()),
        lost => return lost.to_string(),
    };
    if *logged != text {
        tracing::warn!(error = text, code, "cannot capture");
        logged.clone_from(&text);
    }
    let role = inner.db.direct().get_username();
    match code.as_str() {
        "28P01" | "28000" => {
            "the database refuses the server's user or password for replication; see pg_hba.conf".into()
        }
        "42501" => format!(
            "the database role `{role}` may not replicate; a superuser grants it: ALTER ROLE {} REPLICATION",
            names::ident(role)
        ),
        "53300" => "the database has no more places for replication; raise max_wal_senders".into(),
        "53400" => "the database has no more replication slots; raise max_replication_slots".into(),
        "53100" => "the database's disk is full".into(),
        "25006" => "the database can be read but not written; is it a standby?".into(),
        _ if matches!(lost, CaptureError::Stream(PgWireError::Auth(_))) => {
            "the database refuses the server's user or password for replication; see pg_hba.conf".into()
        }
        _ => "the database is out of reach or fails; see the server's log".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_stream_error_is_its_own_and_not_one_that_a_row_brings() {
        let failure = |text: &str| PgWireError::Server(text.into());
        assert_eq!(stream_code(&failure("slot is active (SQLSTATE 55006)")), Some("55006"));
        assert_eq!(stream_code(&failure("value (SQLSTATE 42704) is odd (SQLSTATE 22P02)")), Some("22P02"));
        assert_eq!(stream_code(&failure("value (SQLSTATE 42704)  is odd")), None);
        assert_eq!(stream_code(&PgWireError::Protocol("(SQLSTATE 42704)".into())), None);
    }

    #[test]
    fn a_place_that_another_server_has_taken_is_no_fault_of_a_row() {
        assert!(is_of_a_row("23514") && is_of_a_row("22P05") && is_of_a_row("54000") && is_of_a_row("XX000"));
        assert!(
            !is_of_a_row("23505") && !is_of_a_row("42703") && !is_of_a_row("57014") && !is_of_a_row("XX001")
        );
    }

    #[test]
    fn a_stream_that_fails_with_a_row_gets_another_slot_only_when_it_fails_again() {
        let refused = PgWireError::Server("bad (SQLSTATE 22P05)".into());
        assert_eq!(of_stream(&refused, false), Remedy::Retry);
        assert_eq!(of_stream(&refused, true), Remedy::Slot);
        let unpublished = PgWireError::Server("bad (SQLSTATE 42704)".into());
        assert_eq!(of_stream(&unpublished, false), Remedy::Slot);
    }
}
