//! The description of stored streams and of subscriptions to them.

use serde_json::{Map, Value, json};

use super::{body, described, header_parameter, operation, parameter, path, schema, stream_parameters};
use crate::headers;

/// Their paths.
pub(super) fn paths() -> Map<String, Value> {
    let paths = json!({
        "/v1/stream/{path}": {
            "parameters": [path("path", "The stream's path; it may have slashes")],
            "put": create(),
            "post": append(),
            "get": read(),
            "head": operation("streamHead", "What the stream is, and where its tail is", &[], &[(200, described("No body", &DESCRIBED))], &[400, 403, 404, 410, 503]),
            "delete": operation("deleteStream", "Delete the stream; its bytes stay while forks need them", &[], &[(204, described("It is deleted", &[]))], &[400, 403, 404, 410, 503]),
        },
        "/v1/stream/__ds/subscriptions/{id}": {
            "parameters": [path("id", "The subscription's id")],
            "put": with_body(control("createSubscription", "Make a subscription, or make sure that it is there", &[(201, "It is made"), (200, "It was there")], &[400, 403, 409, 429, 503]), "SubscriptionRequest"),
            "get": control("readSubscription", "What the subscription is now", &[(200, "The subscription")], &[403, 404, 503]),
            "delete": control("deleteSubscription", "Remove the subscription", &[(204, "It is not there any more")], &[403, 503]),
        },
        "/v1/stream/__ds/subscriptions/{id}/streams": {
            "parameters": [path("id", "The subscription's id")],
            "post": with_body(control("linkStreams", "Follow streams by name", &[(204, "They are followed")], &[400, 403, 404, 429, 503]), "SubscriptionStreams"),
        },
        "/v1/stream/__ds/subscriptions/{id}/streams/{path}": {
            "parameters": [path("id", "The subscription's id"), path("path", "The stream's path")],
            "delete": control("unlinkStream", "Do not follow a stream by name any more", &[(204, "It is not")], &[400, 403, 404, 503]),
        },
        "/v1/stream/__ds/subscriptions/{id}/claim": {
            "parameters": [path("id", "The subscription's id")],
            "post": with_body(control("claim", "Take the work that waits (pull-wake)", &[(200, "The wake, and a token for it")], &[400, 403, 404, 409, 503]), "Claim"),
        },
        "/v1/stream/__ds/subscriptions/{id}/ack": word("ack", "Say what is done, and that one is there (pull-wake)", 200),
        "/v1/stream/__ds/subscriptions/{id}/callback": word("callback", "Say what is done, and that one is there (webhook)", 200),
        "/v1/stream/__ds/subscriptions/{id}/release": word("release", "Give the work back undone (pull-wake)", 204),
        "/v1/stream/__ds/jwks.json": {
            "get": operation("jwks", "The public keys that webhooks are verified with", &[], &[(200, json!({ "description": "A JSON Web Key Set", "content": { "application/jwk-set+json": {} } }))], &[]),
        },
    });
    match paths {
        Value::Object(paths) => paths,
        _ => Map::new(),
    }
}

/// What their bodies are.
pub(super) fn schemas() -> Map<String, Value> {
    let text = json!({ "type": "string" });
    let schemas = json!({
        "SubscriptionRequest": {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": { "enum": ["webhook", "pull-wake"] },
                "pattern": { "type": "string", "description": "`*` is one segment of a path, `**` any number" },
                "streams": { "type": "array", "items": text },
                "webhook": { "type": "object", "required": ["url"], "properties": { "url": text } },
                "wake_stream": text,
                "lease_ttl_ms": { "type": "integer", "minimum": crate::limits::LEASE_MIN_MILLIS, "maximum": crate::limits::LEASE_MAX_MILLIS, "default": crate::limits::LEASE_DEFAULT_MILLIS },
                "description": text,
            },
        },
        "SubscriptionStreams": { "type": "object", "required": ["streams"], "properties": { "streams": { "type": "array", "items": text } } },
        "Claim": { "type": "object", "required": ["worker"], "properties": { "worker": text } },
        "WakeRequest": {
            "type": "object",
            "required": ["wake_id", "generation"],
            "properties": {
                "wake_id": text,
                "generation": { "type": "integer" },
                "acks": { "type": "array", "items": { "type": "object", "required": ["stream", "offset"], "properties": { "stream": text, "offset": text } } },
                "done": { "type": "boolean", "default": false },
            },
        },
        "ControlError": {
            "type": "object",
            "required": ["error"],
            "properties": { "error": { "type": "object", "required": ["code", "message"], "properties": { "code": text, "message": text, "current_holder": text, "generation": { "type": "integer" } } } },
        },
    });
    match schemas {
        Value::Object(schemas) => schemas,
        _ => Map::new(),
    }
}

const DESCRIBED: [&str; 5] = [
    headers::STREAM_NEXT_OFFSET,
    headers::STREAM_CLOSED,
    headers::STREAM_TTL,
    headers::STREAM_EXPIRES_AT,
    "content-type",
];

fn any_body(text: &str) -> Value {
    json!({ "description": text, "content": { "*/*": {} } })
}

fn create() -> Value {
    let mut create = operation(
        "createStream",
        "Create a stream, or make sure that it is there as asked",
        &[
            header_parameter(headers::STREAM_TTL, "Seconds without use after which it expires"),
            header_parameter(headers::STREAM_EXPIRES_AT, "When it expires (RFC 3339)"),
            header_parameter(headers::STREAM_CLOSED, "`true`: the body is all that it will ever have"),
            header_parameter(headers::STREAM_FORKED_FROM, "The URL path of the stream to begin as"),
            header_parameter(headers::STREAM_FORK_OFFSET, "Where to leave it; its tail when absent"),
            header_parameter(headers::STREAM_FORK_SUB_OFFSET, "How many messages or bytes past that place"),
        ],
        &[(201, described("It is created", &DESCRIBED)), (200, described("It was there", &DESCRIBED))],
        &[400, 403, 404, 408, 409, 413, 415, 429, 503],
    );
    create["requestBody"] = any_body("What it begins with; of its content type");
    create
}

fn append() -> Value {
    let answered =
        [headers::STREAM_NEXT_OFFSET, headers::STREAM_CLOSED, headers::PRODUCER_EPOCH, headers::PRODUCER_SEQ];
    let mut append = operation(
        "appendToStream",
        "Append, close, or both",
        &[
            header_parameter(headers::STREAM_SEQ, "The writer's own sequence; must go up, byte by byte"),
            header_parameter(headers::STREAM_CLOSED, "`true`: close the stream with it"),
            header_parameter(headers::PRODUCER_ID, "Who appends; makes it safe to repeat"),
            header_parameter(headers::PRODUCER_EPOCH, "Which life of the producer"),
            header_parameter(headers::PRODUCER_SEQ, "Which append of that life, from 0"),
        ],
        &[
            (200, described("A producer's append is done", &answered)),
            (204, described("It is done, or had been", &answered)),
        ],
        &[400, 403, 404, 408, 409, 410, 413, 415, 429, 503],
    );
    append["requestBody"] = any_body("What to append; of the stream's content type");
    append
}

fn read() -> Value {
    let given = [
        headers::STREAM_NEXT_OFFSET,
        headers::STREAM_UP_TO_DATE,
        headers::STREAM_CURSOR,
        headers::STREAM_CLOSED,
        headers::STREAM_SSE_DATA_ENCODING,
        "etag",
        "cache-control",
    ];
    let mut found = described("The stream's bytes, of JSON an array; with `live=sse` events", &given);
    found["content"] = json!({ "*/*": {}, "text/event-stream": { "schema": { "type": "string" } } });
    operation(
        "readStream",
        "Read the stream, and follow it",
        &stream_parameters(),
        &[
            (200, found),
            (
                204,
                described("The long-poll ended and nothing had come, or the stream is closed", &given[..4]),
            ),
            (304, described("The reader has the chunk", &given[..1])),
        ],
        &[400, 403, 404, 410, 414, 503],
    )
}

fn control(id: &str, summary: &str, answers: &[(u16, &str)], failures: &[u16]) -> Value {
    let answers: Vec<(u16, Value)> = answers
        .iter()
        .map(|&(status, text)| match status {
            204 => (status, described(text, &[])),
            _ => (status, body(text, json!({ "type": "object" }), &[])),
        })
        .collect();
    let mut control = operation(id, summary, &[], &answers, failures);
    for status in failures {
        let error = &mut control["responses"][status.to_string()]["content"]["application/json"]["schema"];
        if *status != 503 {
            *error = schema("ControlError");
        }
    }
    control
}

fn with_body(mut operation: Value, name: &str) -> Value {
    operation["requestBody"] =
        json!({ "required": true, "content": { "application/json": { "schema": schema(name) } } });
    operation
}

fn word(id: &str, summary: &str, status: u16) -> Value {
    let mut post = control(id, summary, &[(status, "It is noted")], &[400, 401, 403, 404, 409, 503]);
    let token = json!({ "type": "string" });
    post["parameters"] =
        json!([parameter("header", "authorization", "`Bearer` and the wake's token", &token)]);
    json!({ "parameters": [path("id", "The subscription's id")], "post": with_body(post, "WakeRequest") })
}
