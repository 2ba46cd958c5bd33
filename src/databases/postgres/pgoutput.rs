//! The messages of PostgreSQL's output plugin `pgoutput`, protocol version 1: the changes of one committed transaction,
//! row by row, in text. The replication client `pgwire-replication` decodes beginnings, ends and logical messages, and gives
//! the rest as bytes, which are read here.

use bytes::{Buf, Bytes};

/// A message could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a message of the replication stream is not understood: {0}")]
pub(super) struct Malformed(&'static str);

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// The shape of a table's rows from here on.
    Relation(Relation),
    /// A new row.
    Insert { relation: u32, new: Tuple },
    /// A changed row; the old one as far as the table's replica identity has it.
    Update { relation: u32, old: Option<OldTuple>, new: Tuple },
    /// A deleted row.
    Delete { relation: u32, old: OldTuple },
    /// All rows of these tables were deleted.
    Truncate { relations: Vec<u32> },
    /// A message that is not needed: types and origins.
    Other,
}

/// A table as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) id: u32,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) columns: Vec<RelationColumn>,
}

/// A column as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RelationColumn {
    pub(super) name: String,
    pub(super) type_id: u32,
}

/// The values of a row, in the order of its relation's columns.
pub(super) type Tuple = Vec<Cell>;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    /// Null.
    Null,
    /// A large value that this change left as it was, and does not repeat.
    Unchanged,
    /// Its text.
    Text(Bytes),
}

/// The old version of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OldTuple {
    /// Whether it is all of the row, and not the columns of the replica identity alone.
    pub(super) whole: bool,
    /// The values; of a partial row, the others are null.
    pub(super) tuple: Tuple,
}

/// Reads one message.
pub(super) fn decode(mut data: Bytes) -> Result<Message, Malformed> {
    Ok(match byte(&mut data)? {
        b'R' => {
            let (id, schema, name) = (number(&mut data)?, text(&mut data)?, text(&mut data)?);
            let _replica_identity = byte(&mut data)?;
            let columns = (0..short(&mut data)?).map(|_| {
                let _is_key = byte(&mut data)?;
                let (name, type_id) = (text(&mut data)?, number(&mut data)?);
                let _type_modifier = number(&mut data)?;
                Ok(RelationColumn { name, type_id })
            });
            let columns = columns.collect::<Result<_, Malformed>>()?;
            Message::Relation(Relation { id, schema, name, columns })
        }
        b'I' => {
            let relation = number(&mut data)?;
            match byte(&mut data)? {
                b'N' => Message::Insert { relation, new: tuple(&mut data)? },
                _ => return Err(Malformed("an insert without a row")),
            }
        }
        b'U' => {
            let relation = number(&mut data)?;
            let mut mark = byte(&mut data)?;
            let mut old = None;
            if matches!(mark, b'K' | b'O') {
                old = Some(OldTuple { whole: mark == b'O', tuple: tuple(&mut data)? });
                mark = byte(&mut data)?;
            }
            match mark {
                b'N' => Message::Update { relation, old, new: tuple(&mut data)? },
                _ => return Err(Malformed("an update without a row")),
            }
        }
        b'D' => {
            let relation = number(&mut data)?;
            let mark = byte(&mut data)?;
            if !matches!(mark, b'K' | b'O') {
                return Err(Malformed("a delete without a row"));
            }
            Message::Delete { relation, old: OldTuple { whole: mark == b'O', tuple: tuple(&mut data)? } }
        }
        b'T' => {
            let count = number(&mut data)?;
            let _options = byte(&mut data)?;
            let relations = (0..count).map(|_| number(&mut data)).collect::<Result<_, _>>()?;
            Message::Truncate { relations }
        }
        b'Y' | b'O' => Message::Other,
        _ => return Err(Malformed("an unknown kind")),
    })
}

const SHORT: Malformed = Malformed("it is too short");

fn byte(data: &mut Bytes) -> Result<u8, Malformed> {
    data.try_get_u8().map_err(|_| SHORT)
}

fn short(data: &mut Bytes) -> Result<u16, Malformed> {
    data.try_get_u16().map_err(|_| SHORT)
}

fn number(data: &mut Bytes) -> Result<u32, Malformed> {
    data.try_get_u32().map_err(|_| SHORT)
}

fn text(data: &mut Bytes) -> Result<String, Malformed> {
    let end = data.iter().position(|&byte| byte == 0).ok_or(SHORT)?;
    let text = data.split_to(end);
    data.advance(1);
    String::from_utf8(text.to_vec()).map_err(|_| Malformed("a name is not UTF-8"))
}

fn tuple(data: &mut Bytes) -> Result<Tuple, Malformed> {
    let count = short(data)?;
    let cells = (0..count).map(|_| match byte(data)? {
        b'n' => Ok(Cell::Null),
        b'u' => Ok(Cell::Unchanged),
        b't' => {
            let length = usize::try_from(number(data)?).map_err(|_| SHORT)?;
            if data.remaining() < length {
                return Err(SHORT);
            }
            let text = data.split_to(length);
            // Checked once, here: everything after takes it for text.
            std::str::from_utf8(&text).map_err(|_| Malformed("a value is not UTF-8"))?;
            Ok(Cell::Text(text))
        }
        _ => Err(Malformed("a value of an unknown kind")),
    });
    cells.collect()
}

impl Cell {
    /// The value as text; `None` where it is null or not repeated.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Cell::Text(bytes) => std::str::from_utf8(bytes).ok(),
            Cell::Null | Cell::Unchanged => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(parts: &[&[u8]]) -> Bytes {
        parts.concat().into()
    }

    #[test]
    fn an_update_has_its_old_row_where_the_identity_gives_it() {
        let row: &[u8] = b"\0\x03t\0\0\0\x02p1nu";
        let whole = bytes(&[b"U\0\0\0\x07O", row, b"N", row]);
        let cells = vec![Cell::Text(Bytes::from_static(b"p1")), Cell::Null, Cell::Unchanged];
        let old = OldTuple { whole: true, tuple: cells.clone() };
        assert_eq!(decode(whole), Ok(Message::Update { relation: 7, old: Some(old), new: cells.clone() }));
        let plain = bytes(&[b"U\0\0\0\x07N", row]);
        assert_eq!(decode(plain), Ok(Message::Update { relation: 7, old: None, new: cells }));
    }

    #[test]
    fn a_relation_names_its_columns_and_their_types() {
        let message = bytes(&[b"R\0\0\0\x07public\0pages\0f\0\x01", b"\x01id\0\0\0\0\x19\xff\xff\xff\xff"]);
        let columns = vec![RelationColumn { name: "id".into(), type_id: 25 }];
        let relation = Relation { id: 7, schema: "public".into(), name: "pages".into(), columns };
        assert_eq!(decode(message), Ok(Message::Relation(relation)));
    }

    #[test]
    fn truncation_names_every_table() {
        let message = bytes(&[b"T\0\0\0\x02\0\0\0\0\x07\0\0\0\x08"]);
        assert_eq!(decode(message), Ok(Message::Truncate { relations: vec![7, 8] }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(data.into());
        }
    }
}
