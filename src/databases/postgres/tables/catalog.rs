//! What the database's catalogue says of the streamed tables: their columns, how each type's values become JSON,
//! whether the publication names them, and whether the stream carries enough of their changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::layout::Layout;
use super::value::Form;
use crate::databases::postgres::connections::{scalar, statement};
use crate::databases::postgres::names::{NAMED, configured, ident, shape_of};
use crate::feed::entity::{Column, ColumnKind, EntityType, TableSchema};

/// How deep types may be made of types before they are shown as text.
const TYPE_DEPTH_MAX: usize = 8;

/// A streamed table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Table {
    pub(in super::super) id: u32,
    /// Its name as SQL, schema included.
    pub(in super::super) sql: String,
    pub(in super::super) schema: String,
    pub(in super::super) name: String,
    /// Without those that the database computes and does not publish: the replication stream does not carry them.
    pub(in super::super) columns: Vec<PgColumn>,
    pub(in super::super) layout: Layout,
    /// A text that changes with the shape of the table.
    pub(in super::super) signature: String,
    /// The table itself and the composite types of its columns.
    pub(in super::super) relations: Vec<u32>,
    /// What [`shape_of`] gives for them: rows whose snapshot gives another number have another shape.
    pub(in super::super) shape: i64,
    key: usize,
    /// The columns as requests are checked against them.
    pub(in super::super) checked: Arc<TableSchema>,
    pub(in super::super) identity: Identity,
    /// The stream sends the scope of a deleted row, or the table has no scope.
    pub(in super::super) old_scope: bool,
    /// It has columns that the database computes and this version refuses in a full replica identity.
    pub(in super::super) full_is_refused: bool,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct PgColumn {
    pub(in super::super) name: String,
    pub(in super::super) type_id: u32,
    /// The type as SQL.
    pub(in super::super) type_name: String,
    pub(in super::super) form: Form,
    pub(in super::super) text: TextBy,
}

/// How a column's value becomes text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum TextBy {
    /// By a cast, which gives what the type's output function gives.
    Cast,
    /// By the output function, where the type's cast gives another text: `inet`, `char(n)`.
    Output,
    /// By way of JSON, which writes floating point in full digits: a key is to be the same text everywhere.
    Json,
}

/// What the stream sends of a row's old version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Identity {
    /// All of it.
    Full,
    /// Its key.
    Key,
    /// Not even its key: updates and deletes cannot be captured.
    Missing,
}

impl Table {
    pub(in super::super) fn key(&self) -> &PgColumn {
        &self.columns[self.key]
    }

    /// The part of the signature that says how the publication names the table: while it stays, the stream sends every
    /// change of the table.
    pub(in super::super) fn published_as(&self) -> &str {
        self.signature.find(' ').map_or("", |at| &self.signature[at..])
    }

    pub(in super::super) fn column(&self, name: &str) -> Option<&PgColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// Looks a table up; returns why it cannot be streamed, as text, if it cannot. Whether it is published is another
/// matter.
pub(in super::super) async fn table(
    connection: &mut PgConnection,
    entity: &EntityType,
    publication: &str,
) -> Result<Result<Table, String>, sqlx::Error> {
    let name = &entity.table;
    let (schema, bare) = configured(name);
    if schema == Some("bourn") {
        return Ok(Err(format!("`{name}` is the server's own; it cannot be streamed")));
    }
    let sql = format!(
        "SELECT c.oid::int8, c.relkind::text, s.nspname::text, c.relname::text, quote_ident(s.nspname) || '.' || quote_ident(c.relname), \
         c.relpersistence::text, current_setting('server_version_num')::int >= 180000, \
         coalesce((SELECT to_jsonb(p) ->> 'pubgencols' = 's' FROM pg_publication p WHERE p.pubname = $3), false) \
         FROM (SELECT $1::text AS schema, $2::text AS name) n JOIN pg_class c ON c.oid = {NAMED} \
         JOIN pg_namespace s ON s.oid = c.relnamespace"
    );
    let found = statement(AssertSqlSafe(sql))
        .bind(schema)
        .bind(bare)
        .bind(publication)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(found) = found else { return Ok(Err(format!("the database has no table `{name}`"))) };
    let computed_are_published: bool = found.try_get(7)?;
    let (oid, kind, persistence): (i64, String, String) =
        (found.try_get(0)?, found.try_get(1)?, found.try_get(5)?);
    if !matches!(kind.as_str(), "r" | "p") || persistence != "p" {
        let text = format!(
            "`{name}` is no ordinary table; views, foreign, temporary and unlogged tables cannot be streamed"
        );
        return Ok(Err(text));
    }
    let rows = statement(
        "SELECT a.attname::text, a.atttypid::int8, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
         a.atthasdef OR a.attidentity <> '', a.attgenerated::text, a.attidentity = 'a' \
         FROM pg_attribute a WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
    )
    .bind(oid)
    .fetch_all(&mut *connection)
    .await?;
    let types =
        rows.iter().map(|row| Ok(id(row.try_get(1)?))).collect::<Result<HashSet<u32>, sqlx::Error>>()?;
    let (types, mut relations) = forms(connection, types).await?;
    relations.insert(0, id(oid));
    let (mut columns, mut checked) = (Vec::new(), Vec::new());
    let mut full_is_refused = false;
    for row in &rows {
        let computed: &str = row.try_get(5)?;
        let streamed = computed.is_empty() || (computed == "s" && computed_are_published);
        if !streamed {
            full_is_refused = found.try_get(6)?;
            continue;
        }
        let (name, type_id): (String, u32) = (row.try_get(0)?, id(row.try_get(1)?));
        let known = types.get(&type_id).cloned().unwrap_or_default();
        checked.push(Column {
            kind: known.kind,
            name: name.clone(),
            required: row.try_get(3)?,
            has_default: row.try_get(4)?,
            generated: row.try_get::<bool, _>(6)? || !computed.is_empty(),
            rowid: false,
            never_number: false,
        });
        let column =
            PgColumn { name, type_id, type_name: row.try_get(2)?, form: known.form, text: known.text };
        columns.push(column);
    }
    let unique: bool = scalar(
        "SELECT EXISTS (SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = $1::int8::oid AND a.attname = $2 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL \
         AND i.indnkeyatts = 1)",
    )
    .bind(oid)
    .bind(&entity.key)
    .fetch_one(&mut *connection)
    .await?;
    let checked = match TableSchema::new(entity, checked) {
        Ok(checked) => checked,
        Err(reason) => return Ok(Err(reason)),
    };
    // A partitioned table can have a unique index over its key alone only where it is partitioned by that; the key is
    // taken for unique all the same where it is part of the primary key.
    let unique = unique || (kind == "p" && in_primary_key(connection, oid, &entity.key).await?);
    if let Some(problem) = entity.unfit(&checked, unique) {
        return Ok(Err(problem));
    }
    let may_be_null = |column: &Column| column.name == entity.key && !column.required;
    if checked.columns.iter().any(may_be_null) {
        let (table, key): (String, _) = (found.try_get(4)?, ident(&entity.key));
        return Ok(Err(format!(
            "the key `{}` of table {table} may be NULL, and rows without a key cannot be told apart: ALTER TABLE {table} ALTER COLUMN {key} SET NOT NULL",
            entity.key
        )));
    }
    let named = columns.iter().map(|column| (column.name.clone(), column.form.clone()));
    let layout = Layout::new(entity, &checked.kept, named);
    let key = columns.iter().position(|column| column.name == entity.key);
    let (Some(layout), Some(key)) = (layout, key) else {
        return Ok(Err(format!(
            "the database computes the key or the scope of table `{name}`; name other columns"
        )));
    };
    let identity = identity_with(connection, oid, &entity.key).await?;
    let old_scope = match &entity.scope {
        Some(scope) => identity_with(connection, oid, scope).await? != Identity::Missing,
        None => true,
    };
    let parts: Vec<String> = scalar(
        "SELECT concat_ws(' ', p.relid::oid, c.relfilenode) FROM pg_partition_tree($1::int8::oid::regclass) p \
         JOIN pg_class c ON c.oid = p.relid WHERE p.isleaf \
         UNION ALL SELECT concat_ws(' ', 'f', c.relfilenode) FROM pg_class c WHERE c.oid = $1::int8::oid AND c.relkind = 'r' \
         UNION ALL SELECT concat_ws(' ', 'e', e.oid, e.enumlabel) FROM pg_enum e WHERE e.enumtypid IN \
           (SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped) ORDER BY 1",
    )
    .bind(oid)
    .fetch_all(&mut *connection)
    .await?;
    let signature = signature(oid, entity, checked.kept.deleted_at.as_deref(), &columns, &parts);
    let shape =
        scalar(AssertSqlSafe(format!("SELECT {}", shape_of(&relations)))).fetch_one(connection).await?;
    let (schema, table_name, sql) = (found.try_get(2)?, found.try_get(3)?, found.try_get(4)?);
    let checked = Arc::new(checked);
    Ok(Ok(Table {
        id: id(oid),
        sql,
        schema,
        name: table_name,
        columns,
        layout,
        signature,
        relations,
        shape,
        key,
        checked,
        identity,
        old_scope,
        full_is_refused,
    }))
}

/// The properties of a type that matter here.
#[derive(Debug, Clone)]
struct TypeInfo {
    form: Form,
    kind: ColumnKind,
    text: TextBy,
}

impl Default for TypeInfo {
    fn default() -> TypeInfo {
        TypeInfo { form: Form::Text, kind: ColumnKind::Text, text: TextBy::Output }
    }
}

/// The forms of types, as columns of these types have them.
pub(in super::super) async fn type_forms(
    connection: &mut PgConnection,
    types: HashSet<u32>,
) -> Result<HashMap<u32, Form>, sqlx::Error> {
    let (types, _) = forms(connection, types).await?;
    Ok(types.into_iter().map(|(id, info)| (id, info.form)).collect())
}

/// A row of `pg_type`, with the fields of a composite type.
struct TypeRow {
    kind: String,
    category: String,
    name: String,
    element: u32,
    base: u32,
    delimiter: u8,
    fields: Vec<(String, u32)>,
    /// The number of a composite type as a relation; zero for others.
    relation: u32,
}

/// The properties of these types, and the composite ones among them and in them, as relations.
async fn forms(
    connection: &mut PgConnection,
    types: HashSet<u32>,
) -> Result<(HashMap<u32, TypeInfo>, Vec<u32>), sqlx::Error> {
    let mut known: HashMap<u32, TypeRow> = HashMap::new();
    let mut wanted: Vec<i64> = types.iter().copied().map(i64::from).collect();
    for _ in 0..TYPE_DEPTH_MAX {
        if wanted.is_empty() {
            break;
        }
        let rows = statement(
            "SELECT t.oid::int8, t.typtype::text, t.typcategory::text, \
             CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace THEN t.typname::text \
               WHEN EXISTS (SELECT 1 FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass \
                 WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND e.extname = t.typname) THEN t.typname::text ELSE '' END, \
             CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc THEN t.typelem::int8 ELSE 0 END, t.typbasetype::int8, t.typdelim::text, \
             coalesce(f.names, '{}'), coalesce(f.types, '{}'), CASE WHEN t.typtype = 'c' THEN t.typrelid::int8 ELSE 0 END FROM pg_type t LEFT JOIN LATERAL ( \
               SELECT array_agg(a.attname::text ORDER BY a.attnum) AS names, array_agg(a.atttypid::int8 ORDER BY a.attnum) AS types \
               FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) f ON true \
             WHERE t.oid = ANY ($1::int8[]::oid[])",
        )
        .bind(&wanted)
        .fetch_all(&mut *connection)
        .await?;
        wanted.clear();
        for row in rows {
            let (names, types): (Vec<String>, Vec<i64>) = (row.try_get(7)?, row.try_get(8)?);
            let raw = TypeRow {
                kind: row.try_get(1)?,
                category: row.try_get(2)?,
                name: row.try_get(3)?,
                element: id(row.try_get(4)?),
                base: id(row.try_get(5)?),
                delimiter: row.try_get::<String, _>(6)?.bytes().next().unwrap_or(b','),
                fields: names.into_iter().zip(types.into_iter().map(id)).collect(),
                relation: id(row.try_get(9)?),
            };
            wanted.extend(
                raw.fields
                    .iter()
                    .map(|(_, field)| *field)
                    .chain([raw.element, raw.base])
                    .filter(|needed| *needed != 0 && !known.contains_key(needed))
                    .map(i64::from),
            );
            known.insert(id(row.try_get(0)?), raw);
        }
    }
    let mut relations: Vec<u32> = known.values().map(|raw| raw.relation).filter(|id| *id != 0).collect();
    relations.sort_unstable();
    Ok((types.into_iter().map(|id| (id, info(id, &known, 0))).collect(), relations))
}

fn info(id: u32, known: &HashMap<u32, TypeRow>, depth: usize) -> TypeInfo {
    let Some(raw) = known.get(&id).filter(|_| depth < TYPE_DEPTH_MAX) else { return TypeInfo::default() };
    let is = |form, kind| TypeInfo { form, kind, text: TextBy::Cast };
    match (raw.kind.as_str(), raw.name.as_str()) {
        ("d", _) => info(raw.base, known, depth + 1),
        ("e", _) => is(Form::Text, ColumnKind::Text),
        ("c", _) => {
            let field = |(name, id): &(String, u32)| (name.clone(), info(*id, known, depth + 1).form);
            is(Form::Record(raw.fields.iter().map(field).collect()), ColumnKind::Json)
        }
        (_, "int2vector") => is(Form::Words(Form::Number.into()), ColumnKind::Array),
        (_, "oidvector") => is(Form::Words(Form::Text.into()), ColumnKind::Array),
        (_, "hstore") => is(Form::Pairs, ColumnKind::Json),
        _ if raw.category == "A" && raw.element != 0 => {
            let element = info(raw.element, known, depth + 1);
            let delimiter = known.get(&raw.element).map_or(raw.delimiter, |element| element.delimiter);
            is(Form::Array(element.form.into(), delimiter), ColumnKind::Array)
        }
        (_, "bool") => is(Form::Bool, ColumnKind::Boolean),
        (_, "int2" | "int4" | "int8") => is(Form::Number, ColumnKind::Integer),
        (_, "float4" | "float8") => {
            TypeInfo { form: Form::Number, kind: ColumnKind::Real, text: TextBy::Json }
        }
        (_, "numeric") => is(Form::Number, ColumnKind::Numeric),
        (_, "json" | "jsonb") => is(Form::Json, ColumnKind::Json),
        (_, "bytea") => is(Form::Text, ColumnKind::Blob),
        (_, "timestamp" | "timestamptz") => is(Form::Timestamp, ColumnKind::Timestamp),
        (_, "date" | "time" | "timetz") => is(Form::Text, ColumnKind::Timestamp),
        (_, "text" | "varchar" | "uuid" | "interval") => is(Form::Text, ColumnKind::Text),
        _ => TypeInfo::default(),
    }
}

/// The tables that hold a table's rows: itself, or, where it is partitioned, its innermost parts. `$1` is its number.
pub(in super::super) const LEAVES: &str = "SELECT r.oid::regclass AS relid FROM pg_class r WHERE r.oid = $1::int8::oid AND r.relkind = 'r' \
     UNION ALL SELECT l.relid FROM pg_partition_tree($1::int8::oid::regclass) l JOIN pg_class lc ON lc.oid = l.relid \
     WHERE l.isleaf AND lc.relkind = 'r' AND l.relid <> $1::int8::oid";

/// What the stream sends of old rows, over all the tables that a partitioned one is made of.
async fn identity_with(
    connection: &mut PgConnection,
    oid: i64,
    column: &str,
) -> Result<Identity, sqlx::Error> {
    let row = statement(
        AssertSqlSafe(format!(
        "SELECT coalesce(bool_and(full_row), false), coalesce(bool_and(full_row OR has_key), false) FROM (\
         SELECT c.relreplident = 'f' AS full_row, c.relreplident IN ('d', 'i') AND EXISTS (\
           SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) \
           WHERE i.indrelid = c.oid AND a.attname = $2 AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END) AS has_key \
         FROM ({LEAVES}) p JOIN pg_class c ON c.oid = p.relid \
         UNION ALL SELECT true, true WHERE NOT EXISTS ({LEAVES})) leaves"
        )),
    )
    .bind(oid)
    .bind(column)
    .fetch_one(connection)
    .await?;
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (true, _) => Identity::Full,
        (false, true) => Identity::Key,
        (false, false) => Identity::Missing,
    })
}

async fn in_primary_key(connection: &mut PgConnection, oid: i64, key: &str) -> Result<bool, sqlx::Error> {
    scalar(
        "SELECT EXISTS (SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) \
         WHERE i.indrelid = $1::int8::oid AND a.attname = $2 AND i.indisprimary)",
    )
    .bind(oid)
    .bind(key)
    .fetch_one(connection)
    .await
}

/// `parts` are those of a partitioned table, the files that the rows are in, and the labels of enumerations: the stream
/// does not report parts that are added, removed or truncated by themselves, rows that are rewritten, and labels that
/// are renamed.
fn signature(
    oid: i64,
    entity: &EntityType,
    deleted_at: Option<&str>,
    columns: &[PgColumn],
    parts: &[String],
) -> String {
    let columns: Vec<_> =
        columns.iter().map(|c| format!("{} {} {:?}", c.name, c.type_name, c.form)).collect();
    let (columns, parts) = (columns.join("\n"), parts.join("\n"));
    // The column of soft deletions decides which rows are visible.
    let deleted_at = deleted_at.filter(|name| *name != "deleted_at").unwrap_or_default();
    let text = format!("{oid}\n{}\n{:?}\n{columns}\n{parts}{deleted_at}", entity.key, entity.scope);
    Sha256::digest(text).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// An object's number. The database's own are 32 bits wide.
fn id(number: i64) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

/// What the publication lacks of a table, as text; `None` if it has the whole table.
pub(in super::super) async fn unpublished(
    connection: &mut PgConnection,
    publication: &str,
    table: &Table,
) -> Result<Option<String>, sqlx::Error> {
    let row = statement(
        "SELECT t.rowfilter IS NOT NULL, (SELECT count(*) FROM unnest($4::text[]) c WHERE NOT c = ANY (t.attnames)) \
         FROM pg_publication_tables t WHERE t.pubname = $1 AND t.schemaname = $2 AND t.tablename = $3",
    )
    .bind(publication)
    .bind(&table.schema)
    .bind(&table.name)
    .bind(table.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>())
    .fetch_optional(connection)
    .await?;
    Ok(match row {
        None => Some(format!("the publication `{publication}` does not name table {}", table.sql)),
        Some(row) if row.try_get(0)? || row.try_get::<i64, _>(1)? > 0 => {
            Some(format!("the publication `{publication}` leaves out rows or columns of table {}", table.sql))
        }
        Some(_) => None,
    })
}
