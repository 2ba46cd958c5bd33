//! What may be done with stored streams, and the patterns of paths that it is given for.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::values::from_string;

/// For read, append, create and delete.
const LETTERS: [char; 4] = ['r', 'a', 'c', 'd'];

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

/// Which of the letters a text has, each once at most; else the letter that is another one, or there twice.
pub(crate) fn each_once<const N: usize>(text: &str, letters: [char; N]) -> Result<[bool; N], char> {
    let mut found = [false; N];
    for letter in text.chars() {
        let at = letters.iter().position(|known| *known == letter).ok_or(letter)?;
        if std::mem::replace(&mut found[at], true) {
            return Err(letter);
        }
    }
    Ok(found)
}

impl FromStr for StreamRights {
    type Err = String;

    fn from_str(text: &str) -> Result<StreamRights, String> {
        match each_once(text, LETTERS) {
            Ok([read, append, create, delete]) => Ok(StreamRights { read, append, create, delete }),
            Err(letter) if LETTERS.contains(&letter) => {
                Err(format!("`{text}` has the letter `{letter}` twice"))
            }
            Err(_) => Err(format!(
                "`{text}` is not a right to streams; write letters of `racd`: read, append, create, delete"
            )),
        }
    }
}

from_string!(StreamRights);

impl From<StreamRights> for String {
    fn from(rights: StreamRights) -> String {
        let given = [rights.read, rights.append, rights.create, rights.delete];
        LETTERS.into_iter().zip(given).filter_map(|(letter, given)| given.then_some(letter)).collect()
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
