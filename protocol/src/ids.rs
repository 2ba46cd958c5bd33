//! The identifiers that clients choose: transaction ids, client ids, row keys and scopes. Each is checked
//! once, here, and carried as a type from then on.

use std::fmt;
use std::sync::Arc;

use crate::limits::KEY_MAX_BYTES;

/// Why an identifier was refused, as words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {rule}")]
pub struct InvalidId {
    what: &'static str,
    rule: &'static str,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes an identifier.
            ///
            /// # Errors
            /// [`InvalidId`] with the rule that the text breaks.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(InvalidId { what: $what, rule: $rule }) }
            }

            /// The identifier's text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn visible_ascii(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn printable(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Whether a database may hold the text and a URL can carry it.
fn found(text: &str) -> bool {
    (1..=KEY_MAX_BYTES).contains(&text.len()) && !text.contains('\0')
}

identifier!(
    /// The client's id of one mutation (`X-Transaction-Id`); opaque.
    TransactionId, "a transaction id", "1 to 128 visible ASCII characters", visible_ascii
);
identifier!(
    /// The device a mutation came from (`X-Client-Id`); opaque.
    ClientId, "a client id", "1 to 128 visible ASCII characters", visible_ascii
);
identifier!(
    /// The key of one row, as text: any key that the rows of a table may have.
    EntityKey, "a row's id", "1 to 4096 bytes of text without NUL", found
);
identifier!(
    /// The value of the column that splits an entity type's stream.
    Scope, "organizationId", "1 to 4096 bytes of text without NUL", found
);

impl EntityKey {
    /// The key of a row that a client creates, by stricter rules: it must be easy to name in a URL.
    ///
    /// # Errors
    /// [`InvalidId`] with the rule that the text breaks.
    pub fn for_new_row(text: &str) -> Result<EntityKey, InvalidId> {
        let rule = match text {
            // Clients resolve these as steps in the path.
            "." | ".." => "something else than `.` and `..`, which cannot stand in a URL",
            _ if !printable(text) => "1 to 255 bytes of text without control characters",
            _ => return EntityKey::new(text),
        };
        Err(InvalidId { what: "a new row's id", rule })
    }
}

impl TransactionId {
    /// Makes an id for a mutation that came without one: `{milliseconds in base 36}-{12 random characters}`.
    #[must_use]
    pub fn generate(unix_millis: u64) -> TransactionId {
        let mut text = base36(unix_millis);
        text.push('-');
        text.push_str(&random_text(12));
        TransactionId(text.into())
    }
}

/// A random text of letters and digits, for ids that the server makes itself.
#[must_use]
pub fn random_text(length: usize) -> String {
    (0..length).map(|_| char::from(rand::Rng::sample(&mut rand::rng(), rand::distr::Alphanumeric))).collect()
}

fn base36(mut value: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(u32::try_from(value % 36).unwrap_or(0), 36).unwrap_or('0'));
        value /= 36;
        if value == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_id_is_visible_ascii_of_bounded_length() {
        assert!(TransactionId::new("lz2x8g-a1b2c3d4e5f6").is_ok());
        for bad in ["", "two words", "tab\t", "ümlaut", &"x".repeat(129)] {
            let error = TransactionId::new(bad).unwrap_err();
            assert_eq!(error.to_string(), "a transaction id must be 1 to 128 visible ASCII characters");
        }
    }

    #[test]
    fn whatever_a_table_holds_can_be_named_and_new_ids_are_plain() {
        for odd in ["tab\tbed", "..", &"x".repeat(4096)] {
            assert!(EntityKey::new(odd).is_ok(), "{odd}");
            assert!(EntityKey::for_new_row(odd).is_err(), "{odd}");
        }
        for impossible in ["", "nul\0", &"x".repeat(4097)] {
            assert!(EntityKey::new(impossible).is_err(), "{impossible}");
        }
        assert_eq!(EntityKey::for_new_row("é/ 1").unwrap().as_str(), "é/ 1");
    }

    #[test]
    fn a_made_id_tells_its_time_and_passes_its_own_check() {
        let id = TransactionId::generate(1_700_000_000_000);
        assert!(id.as_str().starts_with("loyw3v28-"), "{id}");
        assert_eq!(id.as_str().len(), "loyw3v28-".len() + 12);
        assert!(TransactionId::new(id.as_str()).is_ok());
    }
}
