//! Lists and rows: the REST side of `/v1/entities`.

use std::sync::Arc;

use bourn_protocol::query::Query;
use bourn_protocol::{EntityKey, ErrorCode, Scope, TransactionId, headers, limits};
use http::header::{HeaderName, LINK, LOCATION};
use http::{HeaderMap, Request, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::value::RawValue;

use super::FeedContext;
use crate::access::{Right, Rights, WritePermit};
use crate::feed::entity::{ColumnKind, Columns, EntityType, Json, Kind, TableSchema};
use crate::feed::{ListQuery, Mutation, Operation, WriteError, Written};
use crate::http::respond::{Build, TRUE};
use crate::http::{ApiError, Reply, RequestBody, intake};

/// Most tables in one stream.
const TABLES_MAX: usize = 16;

const TRANSACTION_ID: HeaderName = HeaderName::from_static(headers::TRANSACTION_ID);
const IDEMPOTENT_HIT: HeaderName = HeaderName::from_static(headers::IDEMPOTENT_HIT);

/// The entity type whose table this is.
pub(in crate::http) fn find(
    feed: &FeedContext,
    rights: &Rights,
    table: &str,
) -> Result<Arc<EntityType>, ApiError> {
    feed.catalog.by_table(table).cloned().ok_or_else(|| {
        let known: Vec<&str> = feed.readable(rights).map(|entity| entity.table.as_str()).collect();
        let message =
            format!("no streamed table has this name; the streamed tables are {}", known.join(", "));
        ApiError::new(ErrorCode::UnknownTable, &message)
    })
}

/// The entity types whose tables these are: one, or several names with commas between them, sorted, so that a set of tables
/// has one address.
pub(in crate::http) fn find_all(
    feed: &FeedContext,
    rights: &Rights,
    tables: &str,
) -> Result<Vec<Arc<EntityType>>, ApiError> {
    if feed.catalog.by_table(tables).is_some() || !tables.contains(',') {
        return Ok(vec![find(feed, rights, tables)?]);
    }
    let names: Vec<&str> = tables.split(',').take(TABLES_MAX + 1).collect();
    if names.len() > TABLES_MAX {
        let message = format!("one stream has at most {TABLES_MAX} tables; follow the others in another one");
        return Err(ApiError::new(ErrorCode::InvalidParameter, &message));
    }
    if !names.is_sorted_by(|one, next| one < next) {
        let message = "several tables are named in the order of their bytes, each once, so that a set of them has one address";
        return Err(ApiError::new(ErrorCode::InvalidParameter, message));
    }
    names.into_iter().map(|name| find(feed, rights, name)).collect()
}

/// A row's key from the path.
pub(in crate::http) fn key(text: &str) -> Result<EntityKey, ApiError> {
    EntityKey::new(text).map_err(|error| ApiError::new(ErrorCode::InvalidId, &error.to_string()))
}

/// The key of a row that is to be created.
fn new_key(text: &str) -> Result<EntityKey, ApiError> {
    EntityKey::for_new_row(text).map_err(|error| ApiError::new(ErrorCode::InvalidId, &error.to_string()))
}

/// The scope a list or a stream is narrowed to.
pub(in crate::http) fn scope(entity: &EntityType, query: &Query) -> Result<Option<Scope>, ApiError> {
    let Some(text) = query.get("organizationId")? else { return Ok(None) };
    if entity.scope.is_none() {
        let message =
            format!("entity type `{}` has no scope, so it cannot be narrowed by organizationId", entity.name);
        return Err(ApiError::new(ErrorCode::InvalidParameter, &message));
    }
    Ok(Some(Scope::new(text)?))
}

/// What the parameters ask a list for.
pub(in crate::http) fn list_query(entity: &Arc<EntityType>, query: &Query) -> Result<ListQuery, ApiError> {
    query.only(&["organizationId", "limit", "after", "offset", "live", "cursor"])?;
    Ok(ListQuery {
        entity: entity.clone(),
        scope: scope(entity, query)?,
        after: query.get("after")?.map(EntityKey::new).transpose()?,
        limit: query.number("limit", limits::LIST_DEFAULT, 1, limits::LIST_MAX)?,
    })
}

/// `GET /v1/entities/{table}` without an offset: a page of living rows.
pub(in crate::http) async fn list<B>(
    feed: &FeedContext,
    rights: &Rights,
    entity: &Arc<EntityType>,
    query: &Query,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    let wanted = rights.read(list_query(entity, query)?)?;
    let page = feed.tables.list(&wanted).await?;
    let mut build = Build::new(StatusCode::OK).no_store().next_offset(page.tail.offset());
    if let Some(after) = page.next_after {
        let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let in_the_path = request.extensions().get::<intake::PathScope>().is_some();
        let scope = wanted
            .scope
            .as_ref()
            .filter(|_| !in_the_path)
            .map(|scope| format!("organizationId={}&", escaped(scope.as_str())))
            .unwrap_or_default();
        let (base, path) = (&feed.base_path, request.uri().path());
        let next =
            format!("<{base}{path}?{scope}limit={}&after={}>; rel=\"next\"", wanted.limit, escaped(&after));
        build = build.text(LINK, &next);
    }
    Ok(build.json(page.rows))
}

/// `GET /v1/entities/{table}/{id}`: one living row.
pub(in crate::http) async fn read<B>(
    feed: &FeedContext,
    rights: &Rights,
    entity: &Arc<EntityType>,
    key: &EntityKey,
    request: &Request<B>,
) -> Result<Reply, ApiError> {
    intake::query(request)?.only(&[])?;
    rights.check_some(Right::Read, &entity.name)?;
    // A row of another scope is not told from one that is not there.
    match feed.tables.row(entity, key).await?.and_then(|row| row.open(rights)) {
        Some(row) => Ok(Build::new(StatusCode::OK).no_store().json(row)),
        None => Err(WriteError::NotFound(key.to_string()).into()),
    }
}

/// `POST /v1/entities/{table}`: makes a row.
pub(in crate::http) async fn create(
    feed: &FeedContext,
    rights: &Arc<Rights>,
    entity: Arc<EntityType>,
    request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    let permit = rights.write(&entity.name)?;
    let (headers, expected) = write_headers(&request)?;
    if expected.is_some() {
        let message =
            "x-expected-transaction-id applies to updates and deletes: a new row has no transaction yet";
        return Err(ApiError::new(ErrorCode::InvalidHeader, message));
    }
    let (mut columns, _room) = intake::json_object(&feed.render.limits, &feed.bodies, request).await?;
    let schema = schema_of(&entity)?;
    let given = columns.remove(&entity.key);
    let given = given.as_deref().map(RawValue::get).map(Json::of).filter(|id| !id.is_null());
    let given = given.map(|id| new_key(&id_text(&entity, id)?)).transpose()?;
    if let Some(column) = schema.column(&entity.key) {
        // The key is checked as an id; here it only counts as given.
        columns.set(&column.name, placeholder(&entity, column.kind, given.as_ref())?);
    }
    schema.check(&columns, true)?;
    columns.remove(&entity.key);
    may_set(rights, &entity, &columns)?;
    let operation = Operation::Create { entity: entity.clone(), key: given, columns };
    let (written, reply) = write(feed, rights, permit, &headers, operation, StatusCode::CREATED).await?;
    let id = written.key.as_deref().unwrap_or_default();
    let location = format!("{}/v1/entities/{}/{}", feed.base_path, segment(&entity.table), segment(id));
    Ok(reply.text(LOCATION, &location).json(written.row.unwrap_or_default()))
}

/// `PATCH /v1/entities/{table}/{id}`: changes columns of a row.
pub(in crate::http) async fn update(
    feed: &FeedContext,
    rights: &Arc<Rights>,
    entity: Arc<EntityType>,
    key: EntityKey,
    request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    let permit = rights.write(&entity.name)?;
    let (headers, expected) = write_headers(&request)?;
    let (mut columns, _room) = intake::json_object(&feed.render.limits, &feed.bodies, request).await?;
    if let Some(id) = columns.remove(&entity.key)
        && id_text(&entity, Json::of(id.get()))? != key.as_str()
    {
        let message = format!("`{}` names the row and cannot be changed; make a new row instead", entity.key);
        return Err(ApiError::new(ErrorCode::ReadOnlyColumn, &message));
    }
    let schema = schema_of(&entity)?;
    schema.check(&columns, false)?;
    may_set(rights, &entity, &columns)?;
    let operation = Operation::Update { entity, key, columns, expected };
    let (written, reply) = write(feed, rights, permit, &headers, operation, StatusCode::OK).await?;
    Ok(reply.json(written.row.unwrap_or_default()))
}

/// `DELETE /v1/entities/{table}/{id}`: deletes a row, softly where the table can.
pub(in crate::http) async fn delete(
    feed: &FeedContext,
    rights: &Arc<Rights>,
    entity: Arc<EntityType>,
    key: EntityKey,
    request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    let permit = rights.write(&entity.name)?;
    let (headers, expected) = write_headers(&request)?;
    let operation = Operation::Delete { entity, key, expected };
    let (written, reply) = write(feed, rights, permit, &headers, operation, StatusCode::OK).await?;
    Ok(reply.json(written.row.unwrap_or_default()))
}

/// The headers of a write, and the transaction it expects the row to have. A write takes no parameters.
fn write_headers(request: &Request<RequestBody>) -> Result<(HeaderMap, Option<TransactionId>), ApiError> {
    intake::query(request)?.only(&[])?;
    let expected = intake::transaction_id(request.headers(), headers::EXPECTED_TRANSACTION_ID)?;
    Ok((request.headers().clone(), expected))
}

/// Whether the caller may set all of these columns.
fn may_set(rights: &Rights, entity: &EntityType, columns: &Columns) -> Result<(), ApiError> {
    columns.iter().try_for_each(|(name, _)| rights.check_column(&entity.name, name))?;
    Ok(())
}

/// Does a mutation under the identity that the headers give; the answer begun echoes the id and says whether
/// it had been done before.
pub(in crate::http) async fn write(
    feed: &FeedContext,
    rights: &Rights,
    permit: WritePermit,
    headers: &HeaderMap,
    operation: Operation,
    status: StatusCode,
) -> Result<(Written, Build), ApiError> {
    let (transaction_id, client_id) = intake::identity(headers)?;
    rights.check_client(client_id.as_ref())?;
    let name = operation.name();
    let mutation = Mutation { transaction_id: transaction_id.clone(), client_id, operation, permit };
    let result = feed.writer.write(mutation).await.map_err(ApiError::from);
    feed.render.metrics.wrote(
        name,
        match &result {
            Ok(written) if written.repeated => "repeated",
            Ok(_) => "done",
            Err(error) => error.code().error(),
        },
    );
    let written = result?;
    let mut build = Build::new(status).no_store().text(TRANSACTION_ID, transaction_id.as_str());
    if written.repeated {
        build = build.header(IDEMPOTENT_HIT, TRUE);
    }
    Ok((written, build))
}

/// The columns of an entity type's table, if it can be served.
pub(in crate::http) fn schema_of(entity: &EntityType) -> Result<Arc<TableSchema>, ApiError> {
    entity.schema().map_err(|reason| ApiError::new(ErrorCode::EntityUnavailable, &reason))
}

/// A row's id from a body: text, or a whole number where the key is one.
fn id_text(entity: &EntityType, id: Json<'_>) -> Result<String, ApiError> {
    match id.kind() {
        Kind::Text(text) => Ok(text.into_owned()),
        Kind::Number(number) => match number.parse::<i64>() {
            Ok(_) => Ok(number.to_owned()),
            Err(_) => Err(not_an_id(entity)),
        },
        _ => Err(not_an_id(entity)),
    }
}

fn not_an_id(entity: &EntityType) -> ApiError {
    let message = format!("`{}` must be a string, or a whole number", entity.key);
    ApiError::new(ErrorCode::InvalidId, &message)
}

/// A value that stands for the key while the other columns are checked.
fn placeholder(
    entity: &EntityType,
    kind: ColumnKind,
    id: Option<&EntityKey>,
) -> Result<Box<RawValue>, ApiError> {
    match (kind, id) {
        // In its one spelling: `05` would name the row of 5, and its own URL would not.
        (ColumnKind::Integer, Some(id))
            if id.as_str().parse::<i64>().map_or(true, |number| number.to_string() != id.as_str()) =>
        {
            let message = format!(
                "`{}` must be a whole number of 64 bits, without sign or zeros before it",
                entity.key
            );
            Err(ApiError::new(ErrorCode::InvalidId, &message))
        }
        (ColumnKind::Integer | ColumnKind::Real | ColumnKind::Numeric, _) => Ok(literal("0")),
        (ColumnKind::Blob | ColumnKind::Boolean | ColumnKind::Timestamp | ColumnKind::Array, _) => {
            let message = format!(
                "rows of this table cannot be made here: its key `{}` is neither text nor a number",
                entity.key
            );
            Err(ApiError::new(ErrorCode::InvalidId, &message))
        }
        _ => Ok(literal("\"id\"")),
    }
}

fn literal(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
