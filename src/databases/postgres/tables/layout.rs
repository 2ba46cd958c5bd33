//! The meaning of a row's columns: which one is the key, which the scope, and how each becomes JSON. The same layout
//! serves rows of the replication stream and rows that were selected, so their JSON is the same.

use bourn_protocol::TransactionId;
use bourn_protocol::json::push_string;
use serde_json::Value;

use super::value::Form;
use crate::databases::postgres::pgoutput::{Cell, Tuple};
use crate::feed::entity::{EntityType, KeptColumnNames};

/// The columns of a table's rows, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Layout {
    pub(in super::super) columns: Vec<LayoutColumn>,
    pub(in super::super) key: usize,
    pub(in super::super) scope: Option<usize>,
    deleted_at: Option<usize>,
    pub(in super::super) transactions: Option<usize>,
    pub(in super::super) client: Option<usize>,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct LayoutColumn {
    pub(in super::super) name: String,
    /// The name as a member of a JSON object: `"name":`.
    pub(in super::super) member: Vec<u8>,
    pub(in super::super) form: Form,
    /// Bookkeeping: a change of it is no change of content.
    pub(in super::super) bookkeeping: bool,
}

/// The ids in a row's `transactions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Stamps {
    pub(in super::super) insert: Option<String>,
    pub(in super::super) update: Option<String>,
    pub(in super::super) delete: Option<String>,
}

impl Stamps {
    /// Reads them; a text that is no such object holds none, and a value that cannot be a transaction id is none.
    pub(in super::super) fn read(json: Option<&str>) -> Stamps {
        let Some(Ok(Value::Object(mut map))) = json.map(serde_json::from_str) else {
            return Stamps::default();
        };
        let mut take = |name: &str| {
            let id = match map.remove(name)? {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                _ => return None,
            };
            TransactionId::new(&id).is_ok().then_some(id)
        };
        Stamps { insert: take("insert"), update: take("update"), delete: take("delete") }
    }
}

/// One value of a row, in the form in which it is at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Piece<'a> {
    Null,
    /// As its type's output function writes it.
    Text(&'a str),
    /// As JSON already.
    Json(&'a str),
}

impl<'a> Piece<'a> {
    pub(in super::super) fn of(text: Option<&'a str>) -> Piece<'a> {
        text.map_or(Piece::Null, Piece::Text)
    }

    pub(in super::super) fn push(self, form: &Form, out: &mut Vec<u8>) {
        match self {
            Piece::Null => out.extend_from_slice(b"null"),
            Piece::Text(text) => form.push(text, out),
            Piece::Json(json) => out.extend_from_slice(json.as_bytes()),
        }
    }
}

impl Layout {
    /// The layout of rows with these columns, if they have the entity type's key and scope.
    pub(in super::super) fn new(
        entity: &EntityType,
        kept: &KeptColumnNames,
        columns: impl IntoIterator<Item = (String, Form)>,
    ) -> Option<Layout> {
        let column = |(name, form): (String, Form)| {
            let mut member = Vec::with_capacity(name.len() + 3);
            push_string(&mut member, &name);
            member.push(b':');
            LayoutColumn { bookkeeping: kept.is_bookkeeping(&name), name, member, form }
        };
        let columns: Vec<_> = columns.into_iter().map(column).collect();
        let find = |name: &str| columns.iter().position(|column| column.name == name);
        let scope = match &entity.scope {
            Some(scope) => Some(find(scope)?),
            None => None,
        };
        Some(Layout {
            key: find(&entity.key)?,
            scope,
            deleted_at: kept.deleted_at.as_deref().and_then(find),
            transactions: kept.transactions.as_deref().and_then(find),
            client: kept.last_client_id.as_deref().and_then(find),
            columns,
        })
    }

    /// Writes the key and the scope of a row as its JSON has them: floating point gets full digits instead of an
    /// exponent.
    pub(in super::super) fn name_as_json(&self, tuple: &mut Tuple) {
        for at in std::iter::once(self.key).chain(self.scope) {
            let number = self.columns.get(at).filter(|column| column.form == Form::Number);
            let (Some(column), Some(cell)) = (number, tuple.get_mut(at)) else { continue };
            let Some(text) = cell.text().filter(|text| text.contains('e') || *text == "-0") else { continue };
            let mut json = Vec::new();
            column.form.push(text, &mut json);
            *cell = Cell::Text(json.into());
        }
    }

    /// The row as a JSON object.
    pub(in super::super) fn json<'a>(&self, piece: impl Fn(usize) -> Piece<'a>) -> String {
        let mut out = Vec::with_capacity(256);
        for (i, column) in self.columns.iter().enumerate() {
            out.push(if i == 0 { b'{' } else { b',' });
            out.extend_from_slice(&column.member);
            piece(i).push(&column.form, &mut out);
        }
        if self.columns.is_empty() {
            out.push(b'{');
        }
        out.push(b'}');
        String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// Whether a row is visible: it is not deleted softly.
    pub(in super::super) fn visible<'a>(&self, piece: impl Fn(usize) -> Piece<'a>) -> bool {
        self.deleted_at.is_none_or(|at| matches!(piece(at), Piece::Null | Piece::Json("null")))
    }
}
