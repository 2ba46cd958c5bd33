//! The OpenAPI description, generated from the types and limits of this crate. `openapi.json` beside the crate
//! is its golden file; after a change, `cargo run -p bourn-protocol --example openapi > protocol/openapi.json`.

mod stored;

use serde_json::{Map, Value, json};

use crate::error::ErrorCode;
use crate::{headers, limits};

/// The description of every endpoint.
#[must_use]
pub fn document() -> Value {
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Bourn",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Tables as resumable, cacheable, live HTTP streams. PROTOCOL.md says in prose what this says in JSON.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "http://127.0.0.1:4437" }],
        "paths": {
            "/v1/entities/{table}": {
                "parameters": [path("table", "A streamed table; with `offset` also several, separated by commas, in the order of their bytes")],
                "get": entity_get(),
                "head": operation("streamMetadata", "Where the stream's tail is", &[scope()], &[(200, described("No body; the tail is in the headers", tail_headers()))], &[400, 403, 404, 410, 503]),
                "post": create(),
            },
            "/v1/entities/{table}/{id}": {
                "parameters": [path("table", "A streamed table"), path("id", "The row's key")],
                "get": operation("readRow", "One living row", &[], &[(200, body("The row", schema("Row"), &[]))], &[400, 403, 404, 503]),
                "patch": write("updateRow", "Change columns of a row", true),
                "delete": write("deleteRow", "Delete a row; softly where the table has `deleted_at`", false),
            },
            "/v1/scopes/{scope}/entities/{table}": {
                "parameters": [path("scope", "The scope, as `organizationId` names it"), path("table", "A streamed table, or several, as in `/v1/entities/{table}`")],
                "get": scoped(entity_get(), "listOrReadScope"),
                "head": operation("scopeMetadata", "Where the stream's tail is", &[], &[(200, described("No body; the tail is in the headers", tail_headers()))], &[400, 403, 404, 410, 503]),
            },
            "/v1/scopes/{scope}/activities": {
                "parameters": [path("scope", "The scope, as `organizationId` names it")],
                "get": scoped(activities_get(), "scopeActivities"),
                "head": operation("scopeActivitiesMetadata", "Where the stream's tail is", &[], &[(200, described("No body; the tail is in the headers", tail_headers()))], &[400, 403, 410, 503]),
            },
            "/v1/activities": {
                "get": activities_get(),
                "head": operation("activitiesMetadata", "Where the stream's tail is", &[], &[(200, described("No body; the tail is in the headers", tail_headers()))], &[400, 403, 410, 503]),
            },
            "/v1/transactions/{id}": {
                "parameters": [path("id", "A transaction id")],
                "get": operation(
                    "transactionState",
                    "What became of a transaction",
                    &[number("wait", "Seconds to wait for it to be confirmed", 0, usize::try_from(limits::TRANSACTION_WAIT_MAX_SECS).unwrap_or(0), 0)],
                    &[(200, body("Its state", schema("Transaction"), &[]))],
                    &[400, 403, 503],
                ),
            },
            "/v1/transactions/{id}/rollback": {
                "parameters": [path("id", "The transaction to undo")],
                "post": operation(
                    "rollback",
                    "Undo a transaction",
                    &[
                        parameter("query", "cascade", "Undo later transactions on the same rows, too", &json!({ "type": "boolean", "default": false })),
                        header_parameter(headers::TRANSACTION_ID, "The id of the undo itself"),
                        header_parameter(headers::CLIENT_ID, "The device it comes from"),
                    ],
                    &[(200, body("What was undone, newest first", schema("Rollback"), &[headers::TRANSACTION_ID, headers::IDEMPOTENT_HIT]))],
                    &[400, 403, 404, 409, 422, 503],
                ),
            },
            "/v1/session": {
                "post": operation("beginSession", "Make a cookie of the token that is shown, for reads", &[], &[(204, described("The cookie is set", &["Set-Cookie"]))], &[401, 403, 404]),
                "delete": operation("endSession", "Take the cookie back", &[], &[(204, described("The cookie is taken back", &["Set-Cookie"]))], &[404]),
            },
            "/v1/authorize": {
                "get": operation(
                    "authorize",
                    "On a listener for caches: whether a request may have what is kept under its address",
                    &[
                        parameter("header", "X-Original-URI", "The address of the request, with its parameters", &json!({ "type": "string" })),
                        parameter("header", "X-Original-Method", "Its method; GET if left out", &json!({ "type": "string" })),
                    ],
                    &[(204, described("It may, for as long as `Cache-Control` says", &[]))],
                    &[401, 403, 404],
                ),
            },
            "/health": { "get": operation("health", "The process answers", &[], &[(200, body("It does", json!({ "type": "object" }), &[]))], &[]) },
            "/ready": {
                "get": operation(
                    "ready",
                    "Whether the server can do its work, and how far the log has come",
                    &[],
                    &[(200, body("It can", json!({ "type": "object" }), &[])), (503, body("It cannot; `problems` says why", json!({ "type": "object" }), &[]))],
                    &[],
                ),
            },
            "/metrics": {
                "get": operation("metrics", "Figures in Prometheus' text form", &[], &[(200, json!({ "description": "The figures", "content": { "text/plain": {} } }))], &[]),
            },
        },
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } },
        },
        "security": [{}, { "token": [] }],
    });
    for (place, more) in [("/paths", stored::paths()), ("/components/schemas", stored::schemas())] {
        if let Some(Value::Object(there)) = document.pointer_mut(place) {
            there.extend(more);
        }
    }
    document
}

fn parameter(place: &str, name: &str, text: &str, kind: &Value) -> Value {
    json!({ "in": place, "name": name, "description": text, "schema": kind })
}

fn path(name: &str, text: &str) -> Value {
    json!({ "in": "path", "name": name, "description": text, "required": true, "schema": { "type": "string" } })
}

fn text_parameter(name: &str, text: &str) -> Value {
    parameter("query", name, text, &json!({ "type": "string" }))
}

fn header_parameter(name: &str, text: &str) -> Value {
    parameter("header", name, text, &json!({ "type": "string", "minLength": 1, "maxLength": 128 }))
}

fn number(name: &str, text: &str, least: usize, most: usize, default: usize) -> Value {
    parameter(
        "query",
        name,
        text,
        &json!({ "type": "integer", "minimum": least, "maximum": most, "default": default }),
    )
}

fn scope() -> Value {
    text_parameter("organizationId", "Only this scope")
}

fn stream_parameters() -> Vec<Value> {
    vec![
        text_parameter(
            "offset",
            "`-1` (the start), `now` (the tail), or where you left off. Its presence makes the answer a stream read",
        ),
        parameter(
            "query",
            "live",
            "Follow the stream past its tail",
            &json!({ "enum": ["long-poll", "sse"] }),
        ),
        text_parameter("cursor", "The `Stream-Cursor` of the live read before"),
        parameter(
            "header",
            headers::LAST_EVENT_ID,
            "Where an event stream left off; wins over `offset`",
            &json!({ "type": "string" }),
        ),
    ]
}

fn tail_headers() -> &'static [&'static str] {
    &[headers::STREAM_NEXT_OFFSET]
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn described(text: &str, headers: &[&str]) -> Value {
    let headers: Map<String, Value> =
        headers.iter().map(|name| ((*name).to_owned(), json!({ "schema": { "type": "string" } }))).collect();
    json!({ "description": text, "headers": headers })
}

fn body(text: &str, schema: impl Into<Value>, headers: &[&str]) -> Value {
    let mut answer = described(text, headers);
    answer["content"] = json!({ "application/json": { "schema": schema.into() } });
    answer
}

/// The same operation where the path names the scope.
fn scoped(mut operation: Value, id: &str) -> Value {
    operation["operationId"] = id.into();
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.retain(|parameter| parameter["name"] != "organizationId");
    }
    operation
}

/// Every error of these statuses, with the codes it may carry.
fn errors(statuses: &[u16]) -> impl Iterator<Item = (String, Value)> {
    statuses.iter().map(|&status| {
        let codes: Vec<&str> =
            ErrorCode::ALL.iter().filter(|code| code.status() == status).map(|code| code.as_str()).collect();
        (
            status.to_string(),
            body(&codes.join(", "), schema(if status == 409 { "Conflict" } else { "Error" }), &[]),
        )
    })
}

fn operation(
    id: &str,
    summary: &str,
    parameters: &[Value],
    answers: &[(u16, Value)],
    failures: &[u16],
) -> Value {
    // What says who may do it says, too, that a token is missing or has expired, and that the caller asks for too much.
    let of_callers =
        [401, 429].into_iter().filter(|status| failures.contains(&403) && !failures.contains(status));
    let of_callers: Vec<u16> = of_callers.collect();
    let responses: Map<String, Value> = answers
        .iter()
        .map(|(status, answer)| (status.to_string(), answer.clone()))
        .chain(errors(failures))
        .chain(errors(&of_callers))
        .collect();
    json!({ "operationId": id, "summary": summary, "parameters": parameters, "responses": responses })
}

fn entity_get() -> Value {
    let mut parameters = vec![
        scope(),
        number("limit", "Rows in the list", 1, limits::LIST_MAX, limits::LIST_DEFAULT),
        text_parameter("after", "The last id of the page before"),
    ];
    parameters.extend(stream_parameters());
    let switch = json!({ "type": "boolean" });
    let what = "Whether changes of the stream carry `old_value`, where the type keeps previous values; with access control only where asked for";
    let old_values = parameter("query", "oldValues", what, &switch);
    let mut get = operation(
        "readEntities",
        "Without `offset` the list of living rows; with it the stream of changes",
        &[&parameters[..], &[old_values]].concat(),
        &stream_answers("Row"),
        &[400, 403, 404, 410, 414, 503],
    );
    let any = json!({ "type": "array", "items": { "oneOf": [schema("Row"), schema("Change")] } });
    get["responses"]["200"]["content"]["application/json"]["schema"] = any;
    get
}

fn activities_get() -> Value {
    let mut parameters = vec![
        text_parameter("transactionId", "Only this transaction"),
        text_parameter("clientId", "Only this device"),
        text_parameter("entityType", "Only this type"),
        text_parameter("entityId", "Only this row; needs `entityType`"),
        scope(),
        text_parameter("before", "Only activities before the one with this id"),
        number("limit", "Activities in the answer", 1, limits::ACTIVITIES_MAX, limits::ACTIVITIES_DEFAULT),
    ];
    parameters.extend(stream_parameters());
    operation(
        "readActivities",
        "Without `offset` the matching activities, newest first; with it their stream (by `entityType` and `organizationId`)",
        &parameters,
        &stream_answers("Activity"),
        &[400, 403, 410, 414, 503],
    )
}

fn stream_answers(item: &str) -> Vec<(u16, Value)> {
    let headers = [
        headers::STREAM_NEXT_OFFSET,
        headers::STREAM_UP_TO_DATE,
        headers::STREAM_CURSOR,
        "etag",
        "cache-control",
        "link",
    ];
    let mut found = body(
        "A JSON array; with `live=sse` events",
        json!({ "type": "array", "items": schema(item) }),
        &headers,
    );
    found["content"]["text/event-stream"] = json!({ "schema": { "type": "string" } });
    vec![
        (200, found),
        (204, described("The long-poll ended and nothing had come", &headers[..3])),
        (304, described("The reader has the chunk", &headers[..1])),
    ]
}

fn write_parameters(expects: bool) -> Vec<Value> {
    let mut parameters = vec![
        header_parameter(
            headers::TRANSACTION_ID,
            "The mutation's id; the same for every retry. Made by the server when absent",
        ),
        header_parameter(headers::CLIENT_ID, "The device it comes from"),
    ];
    if expects {
        parameters.push(header_parameter(
            headers::EXPECTED_TRANSACTION_ID,
            "The row's transaction id as the client knows it",
        ));
    }
    parameters
}

fn create() -> Value {
    let answered = [headers::TRANSACTION_ID, headers::IDEMPOTENT_HIT, "location"];
    let mut create = operation(
        "createRow",
        "Make a row",
        &write_parameters(false),
        &[(201, body("The row", schema("Row"), &answered))],
        &[400, 403, 404, 408, 409, 413, 415, 422, 429, 503],
    );
    create["requestBody"] = request_body();
    create
}

fn write(id: &str, summary: &str, has_body: bool) -> Value {
    let answered = [headers::TRANSACTION_ID, headers::IDEMPOTENT_HIT];
    let failures: &[u16] = if has_body {
        &[400, 403, 404, 408, 409, 413, 415, 422, 428, 429, 503]
    } else {
        &[400, 403, 404, 409, 422, 428, 503]
    };
    let mut write = operation(
        id,
        summary,
        &write_parameters(true),
        &[(200, body("The row", schema("Row"), &answered))],
        failures,
    );
    if has_body {
        write["requestBody"] = request_body();
    }
    write
}

fn request_body() -> Value {
    json!({ "required": true, "content": { "application/json": { "schema": { "type": "object", "description": "Columns and their values" } } } })
}

fn schemas() -> Value {
    let text = json!({ "type": "string" });
    let maybe = json!({ "type": ["string", "null"] });
    let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "Row": { "type": "object", "description": "A row under its column names, nulls included" },
        "Change": {
            "type": "object",
            "description": "A change message of the Durable State protocol",
            "required": ["type", "key", "headers"],
            "properties": {
                "type": text,
                "key": text,
                "value": schema("Row"),
                "old_value": schema("Row"),
                "headers": {
                    "type": "object",
                    "required": ["operation", "txid", "timestamp", "seq"],
                    "properties": {
                        "operation": { "enum": ["insert", "update", "delete"] },
                        "txid": text,
                        "timestamp": { "type": "string", "format": "date-time" },
                        "seq": { "type": "integer" },
                        "client_id": text,
                        "changed_keys": { "type": "array", "items": text },
                        "last": { "const": true },
                    },
                },
            },
        },
        "Activity": {
            "type": "object",
            "required": ["id", "seq", "type", "action", "entityType", "entityId", "organizationId", "transactionId", "clientId", "changedKeys", "createdAt"],
            "properties": {
                "id": text,
                "seq": { "type": "integer" },
                "type": text,
                "action": { "enum": ["create", "update", "delete"] },
                "entityType": text,
                "entityId": text,
                "organizationId": maybe,
                "subject": text,
                "transactionId": maybe,
                "clientId": maybe,
                "changedKeys": { "type": ["array", "null"], "items": text },
                "previousValues": schema("Row"),
                "createdAt": { "type": "string", "format": "date-time" },
            },
        },
        "Transaction": {
            "type": "object",
            "required": ["transactionId", "state"],
            "properties": { "transactionId": text, "state": { "enum": ["unknown", "accepted", "confirmed"] }, "offset": text },
        },
        "Rollback": {
            "type": "object",
            "required": ["transactionId", "undone"],
            "properties": {
                "transactionId": text,
                "undone": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["transactionId", "entityType", "entityId", "action"],
                        "properties": { "transactionId": text, "entityType": text, "entityId": text, "action": text },
                    },
                },
            },
        },
        "Error": {
            "type": "object",
            "required": ["error", "code", "message"],
            "properties": { "error": text, "code": { "enum": codes }, "message": text },
        },
        "Conflict": {
            "oneOf": [
                schema("Error"),
                {
                    "type": "object",
                    "required": ["error", "code", "serverVersion", "expectedTransaction", "actualTransaction"],
                    "properties": {
                        "error": { "const": "conflict" },
                        "code": { "const": "TRANSACTION_CONFLICT" },
                        "serverVersion": schema("Row"),
                        "expectedTransaction": text,
                        "actualTransaction": maybe,
                    },
                    "additionalProperties": false,
                },
            ],
        },
    })
}

/// The description as it is kept in `openapi.json`.
#[must_use]
pub fn to_json() -> String {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_golden_file_is_what_is_generated() {
        let golden = include_str!("../openapi.json");
        assert!(
            golden == super::to_json(),
            "openapi.json is out of date: cargo run -p bourn-protocol --example openapi > protocol/openapi.json"
        );
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = super::document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
