//! What may be done with stored streams, and the patterns of paths that it is given for.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What may be done with a stored stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
#[allow(missing_docs, reason = "each is the word for its letter")]
pub struct StreamRights {
    pub read: bool,
    pub append: bool,
    pub create: bool,
    pub delete: bool,
}

impl StreamRights {
    /// Both together.
    #[must_use]
    pub const fn and(self, other: StreamRights) -> StreamRights {
        StreamRights {
            read: self.read || other.read,
            append: self.append || other.append,
            create: self.create || other.create,
            delete: self.delete || other.delete,
        }
    }
}

impl FromStr for StreamRights {
    type Err = String;

    fn from_str(text: &str) -> Result<StreamRights, String> {
        let mut rights = StreamRights::default();
        for letter in text.chars() {
            let right = match letter {
                'r' => &mut rights.read,
                'a' => &mut rights.append,
                'c' => &mut rights.create,
                'd' => &mut rights.delete,
                _ => {
                    return Err(format!(
                        "`{text}` is not a right to streams; write letters of `racd`: read, append, create, delete"
                    ));
                }
            };
            if std::mem::replace(right, true) {
                return Err(format!("`{text}` has the letter `{letter}` twice"));
            }
        }
        Ok(rights)
    }
}

impl TryFrom<String> for StreamRights {
    type Error = String;
    fn try_from(text: String) -> Result<StreamRights, String> {
        text.parse()
    }
}

impl From<StreamRights> for String {
    fn from(rights: StreamRights) -> String {
        [(rights.read, 'r'), (rights.append, 'a'), (rights.create, 'c'), (rights.delete, 'd')]
            .into_iter()
            .filter_map(|(given, letter)| given.then_some(letter))
            .collect()
    }
}

/// Whether a text is a pattern of stream paths whose placeholders have a place of their own.
#[must_use]
pub fn is_stream_pattern(text: &str) -> bool {
    let mut rest = text.split('/').skip_while(|part| *part != "**");
    !text.split('/').any(str::is_empty) && !rest.any(|part| matches!(part, "{scope}" | "{sub}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_to_streams_are_letters() {
        let rights: StreamRights = "ra".parse().unwrap();
        assert!(rights.read && rights.append && !rights.create && !rights.delete);
        assert_eq!(String::from(rights), "ra");
        assert!("rr".parse::<StreamRights>().is_err());
        assert!("rw".parse::<StreamRights>().unwrap_err().contains("racd"));
    }
}
