//! Names in SQL text: quoted, and looked up in the catalogue.

/// A name, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The schema and the name of a table, from its name in the configuration: `pages`, or `app.pages`.
pub(super) fn configured(table: &str) -> (Option<&str>, &str) {
    match table.split_once('.') {
        Some((schema, name)) => (Some(schema), name),
        None => (None, table),
    }
}

/// The number of the table that `n.schema` and `n.name` stand for, as a subquery: without a schema, the first one on
/// the search path. The server's own schema is left out, even where a role of its name puts it on the path.
pub(super) const NAMED: &str = "(SELECT c.oid FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace \
     LEFT JOIN unnest(current_schemas(true)) WITH ORDINALITY p (name, place) ON p.name = s.nspname \
     WHERE c.relname = n.name AND s.nspname <> 'bourn' AND CASE WHEN n.schema IS NULL THEN p.place IS NOT NULL ELSE s.nspname = n.schema END \
     ORDER BY p.place LIMIT 1)";

/// `t.column`, quoted.
pub(super) fn field(column: &str) -> String {
    format!("t.{}", ident(column))
}

/// A number that changes with the columns and types of a table, as the statement's snapshot has them. `relations` are
/// the table and the composite types in it.
pub(super) fn shape_of(relations: &[u32]) -> String {
    let relations: Vec<String> = relations.iter().map(ToString::to_string).collect();
    format!(
        "(SELECT hashtextextended(string_agg(concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, \
         a.attisdropped), ',' ORDER BY a.attrelid, a.attnum), 0) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = ANY ('{{{}}}'::oid[]) AND a.attnum > 0)",
        relations.join(",")
    )
}
