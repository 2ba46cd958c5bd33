//! The columns of a row on their way into the database: most as one JSON object, from which the database reads a row;
//! JSON columns each as a parameter of its own, because the database's reader of objects decodes and encodes the
//! strings in them, where the column's own input function keeps their text.

use bourn_protocol::json::push_string;
use serde_json::value::RawValue;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;

use crate::databases::postgres::names::ident;
use crate::databases::postgres::tables::catalog::Table;
use crate::databases::postgres::tables::sql::typed;
use crate::databases::postgres::tables::value::Form;
use crate::feed::WriteError;
use crate::feed::entity::Columns;
use crate::storage_error::StorageError;

/// Columns as parameters.
pub(in super::super) struct ColumnParameters {
    /// Where the value of each column comes from, as SQL, in the order of the columns.
    pub(in super::super) sources: Vec<String>,
    /// The columns of the object, with their types.
    types: Vec<String>,
    object: String,
    apart: Vec<Option<String>>,
}

impl ColumnParameters {
    /// The columns for a statement whose first parameter is the object, read as `r`, and whose parameters from `first`
    /// on are the values of the JSON columns.
    pub(in super::super) fn new(table: &Table, values: &Columns, first: usize) -> ColumnParameters {
        let mut record = ColumnParameters {
            sources: Vec::new(),
            types: Vec::new(),
            object: String::new(),
            apart: Vec::new(),
        };
        let mut object = Vec::new();
        for (name, value) in values.iter() {
            let column = table.column(name);
            if let Some(column) = column.filter(|column| column.form == Form::Json) {
                record.sources.push(typed(first + record.apart.len(), column));
                record.apart.push((!value.is_null()).then(|| value.text().to_owned()));
                continue;
            }
            record.sources.push(format!("r.{}", ident(name)));
            record.types.push(format!(
                "{} {}",
                ident(name),
                column.map_or("text", |column| &column.type_name)
            ));
            object.push(if object.is_empty() { b'{' } else { b',' });
            push_string(&mut object, name);
            object.push(b':');
            // Some types are accepted only as text of their type, though they are given as objects or arrays.
            match column.and_then(|column| column.form.input(value)) {
                Some(taken) => object.extend_from_slice(taken.as_bytes()),
                None => object.extend_from_slice(value.text().as_bytes()),
            }
        }
        object.extend_from_slice(if object.is_empty() { b"{}" } else { b"}" });
        record.object = String::from_utf8(object).unwrap_or_default();
        record
    }

    /// The expression that reads the object, to stand after `FROM`. Only with the given columns: a domain may refuse to
    /// be null.
    pub(in super::super) fn reader(&self) -> String {
        match self.types.is_empty() {
            true => "(SELECT $1::text) r".into(),
            false => format!("json_to_record($1::text::json) r ({})", self.types.join(", ")),
        }
    }

    /// The first parameter.
    pub(in super::super) fn json(&self) -> &str {
        &self.object
    }

    /// Binds the values of the JSON columns.
    pub(in super::super) fn bind<'q>(
        &'q self,
        query: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        self.apart.iter().fold(query, |query, value| query.bind(value.as_deref()))
    }
}

/// Text that is JSON, as a value.
pub(in super::super) fn json_value(text: String) -> Result<Box<RawValue>, WriteError> {
    RawValue::from_string(text).map_err(|_| WriteError::Storage(StorageError::Unavailable))
}
