//! `/v1/stream/__ds/…`: the reserved control endpoints. Subscriptions are made, read, claimed and acknowledged here; errors
//! are worded as the protocol words them there.

use bourn_protocol::limits::{
    LEASE_DEFAULT_MILLIS, LEASE_MAX_MILLIS, LEASE_MIN_MILLIS, PATTERN_SEGMENTS_MAX,
    SUBSCRIPTION_TEXT_MAX_BYTES,
};
use bourn_protocol::percent::percent_decode;
use bourn_protocol::{ErrorCode, StreamPath};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::StreamsContext;
use crate::access::{Denied, Rights, StreamRight};
use crate::config::Limits;
use crate::http::layers::access;
use crate::http::respond::Build;
use crate::http::{ApiError, Reply, ReplyBody, RequestBody, intake};
use crate::streams::subscriptions::{
    Delivery, Refusal, SubscriptionConfiguration, TOO_MANY_STREAMS, WakeRequest, check_url,
};

/// The body that makes a subscription.
#[derive(Deserialize)]
struct Wanted {
    #[serde(rename = "type")]
    kind: String,
    pattern: Option<String>,
    #[serde(default)]
    streams: Vec<String>,
    webhook: Option<Webhook>,
    wake_stream: Option<String>,
    lease_ttl_ms: Option<u64>,
    description: Option<String>,
}

#[derive(Deserialize)]
struct Webhook {
    url: String,
}

#[derive(Deserialize)]
struct StreamNames {
    streams: Vec<String>,
}

#[derive(Deserialize)]
struct Claim {
    worker: String,
}

/// Answers a request for what follows `/v1/stream/__ds/`.
pub(super) async fn dispatch(
    context: &StreamsContext,
    rights: &Rights,
    raw: &str,
    request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    let parts: Vec<&str> = raw.splitn(4, '/').collect();
    let unknown = || ApiError::control(ErrorCode::UnknownPath, "there is no such control endpoint", None);
    if parts == ["jwks.json"] {
        return match *request.method() {
            Method::GET | Method::HEAD => Ok(jwks(context)),
            _ => Err(ApiError::method("GET, HEAD")),
        };
    }
    let ["subscriptions", id, rest @ ..] = parts.as_slice() else { return Err(unknown()) };
    let decoded = |text: &str| {
        percent_decode(text, false).ok_or_else(|| invalid("a path must be percent-encoded UTF-8"))
    };
    let id = &short("the subscription's id", decoded(id)?)?;
    let subscriptions = &context.subscriptions;
    let method = request.method().clone();
    // What has a token of its own is asked for that; the rest is for those who may read all that is followed.
    let has_token = matches!(rest, ["callback" | "ack" | "release"]);
    if !has_token && !rights.is_everything() && (!rest.is_empty() || method != Method::PUT) {
        let there = subscriptions.configuration(id).await?;
        may_follow(rights, &there).map_err(|_| Refusal::NotFound)?;
    }
    match (rest, method.as_str()) {
        ([], "PUT") => {
            let wanted = configuration(body(context, request).await?, &context.render.limits)?;
            may_follow(rights, &wanted)?;
            let (shown, new) = subscriptions.create(id, wanted).await?;
            let status = if new { StatusCode::CREATED } else { StatusCode::OK };
            Ok(answer(status, &shown))
        }
        ([], "GET" | "HEAD") => Ok(answer(StatusCode::OK, &subscriptions.read(id).await?)),
        ([], "DELETE") => {
            subscriptions.delete(id).await?;
            Ok(nothing())
        }
        ([], _) => Err(ApiError::method("GET, HEAD, PUT, DELETE")),
        (["streams"], "POST") => {
            let StreamNames { streams } = body(context, request).await?;
            if streams.is_empty() {
                return Err(invalid("`streams` must name at least one stream"));
            }
            let paths = paths(&streams, context.render.limits.subscription_streams)?;
            paths
                .iter()
                .try_for_each(|path| rights.check_stream(StreamRight::Read, path))
                .map_err(|error| denied(&error))?;
            subscriptions.link(id, paths).await?;
            Ok(nothing())
        }
        (["streams", path], "DELETE") => {
            subscriptions.unlink(id, &stream(&decoded(path)?)?).await?;
            Ok(nothing())
        }
        (["streams", _], _) => Err(ApiError::method("DELETE")),
        (["claim"], "POST") => {
            let Claim { worker } = body(context, request).await?;
            Ok(answer(StatusCode::OK, &subscriptions.claim(id, &short("`worker`", worker)?).await?))
        }
        ([action @ ("callback" | "ack")], "POST") => {
            let token = bearer(request.headers())?;
            let by = if *action == "ack" { Delivery::PullWake } else { Delivery::Webhook };
            let word: WakeRequest = body(context, request).await?;
            let next_wake = subscriptions.acknowledge(id, &token, &word, by).await?;
            Ok(answer(StatusCode::OK, &json!({ "ok": true, "next_wake": next_wake })))
        }
        (["release"], "POST") => {
            let token = bearer(request.headers())?;
            let word: WakeRequest = body(context, request).await?;
            subscriptions.release(id, &token, &word).await?;
            Ok(nothing())
        }
        (["streams" | "claim" | "callback" | "ack" | "release"], _) => Err(ApiError::method("POST")),
        _ => Err(unknown()),
    }
}

/// Whether the caller may read all streams that a subscription follows, and append where its wakes go.
fn may_follow(rights: &Rights, configuration: &SubscriptionConfiguration) -> Result<(), ApiError> {
    let SubscriptionConfiguration { pattern, streams, wake_stream, .. } = configuration;
    let pattern = pattern.as_deref().map_or(Ok(()), |pattern| rights.check_streams(pattern));
    let mut streams = streams.iter();
    pattern
        .and_then(|()| streams.try_for_each(|path| rights.check_stream(StreamRight::Read, path)))
        .and_then(|()| wake_stream.iter().try_for_each(|path| rights.check_stream(StreamRight::Append, path)))
        .map_err(|error| denied(&error))
}

fn denied(denied: &Denied) -> ApiError {
    ApiError::control(ErrorCode::RightMissing, &denied.to_string(), None)
}

fn jwks(context: &StreamsContext) -> Reply {
    Build::new(StatusCode::OK)
        .cache("public, max-age=300")
        .header(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"))
        .body(context.subscriptions.jwks().to_string().into())
}

fn answer(status: StatusCode, body: &Value) -> Reply {
    Build::new(status).no_store().json(body.to_string())
}

fn nothing() -> Reply {
    Build::new(StatusCode::NO_CONTENT).no_store().body(ReplyBody::empty())
}

fn invalid(message: &str) -> ApiError {
    ApiError::control(ErrorCode::InvalidRequest, message, None)
}

async fn body<T: DeserializeOwned>(
    context: &StreamsContext,
    request: Request<RequestBody>,
) -> Result<T, ApiError> {
    let (body, _room) =
        intake::collect(&context.render.limits, request, context.render.limits.body_limit, &context.bodies)
            .await?;
    let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
    serde_json::from_slice(text)
        .map_err(|error| invalid(&format!("the body is not what it should be: {error}")))
}

fn short(what: &str, text: String) -> Result<String, ApiError> {
    if text.is_empty() || text.len() > SUBSCRIPTION_TEXT_MAX_BYTES || text.contains(char::is_control) {
        return Err(invalid(&format!("{what} must be short text, and not empty")));
    }
    Ok(text)
}

fn stream(text: &str) -> Result<StreamPath, ApiError> {
    StreamPath::new(text.trim_matches('/')).map_err(|refused| invalid(refused.0))
}

/// Sorted, each once: the order they are given in makes no difference.
fn paths(texts: &[String], most: usize) -> Result<Vec<StreamPath>, ApiError> {
    if texts.len() > most {
        return Err(TOO_MANY_STREAMS.into());
    }
    let mut paths: Vec<StreamPath> = texts.iter().map(|text| stream(text)).collect::<Result<_, _>>()?;
    paths.sort();
    paths.dedup();
    Ok(paths)
}

fn bearer(headers: &HeaderMap) -> Result<String, ApiError> {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(access::bearer);
    token.map(str::to_owned).ok_or_else(|| Refusal::TokenInvalid.into())
}

fn configuration(wanted: Wanted, limits: &Limits) -> Result<SubscriptionConfiguration, ApiError> {
    let pattern = match wanted.pattern.as_deref().map(|pattern| pattern.trim_matches('/')) {
        None | Some("") => None,
        Some(pattern) if pattern.split('/').count() > PATTERN_SEGMENTS_MAX => {
            return Err(invalid(&format!("`pattern` must have at most {PATTERN_SEGMENTS_MAX} segments")));
        }
        Some(pattern) => Some(short("`pattern`", pattern.to_owned())?),
    };
    let streams = paths(&wanted.streams, limits.subscription_streams)?;
    if pattern.is_none() && streams.is_empty() {
        return Err(invalid("at least one of `pattern` and `streams` must be there"));
    }
    let lease_ttl_ms = wanted.lease_ttl_ms.unwrap_or(LEASE_DEFAULT_MILLIS);
    if !(LEASE_MIN_MILLIS..=LEASE_MAX_MILLIS).contains(&lease_ttl_ms) {
        return Err(invalid("`lease_ttl_ms` must be from 1000 to 600000"));
    }
    let description = wanted.description.map(|text| short("`description`", text)).transpose()?;
    let (webhook, wake_stream) = match (wanted.kind.as_str(), wanted.webhook, wanted.wake_stream) {
        ("webhook", Some(Webhook { url }), _) => {
            check_url(&url, limits.webhook_allow_private)?;
            (Some(url), None)
        }
        ("webhook", None, _) => return Err(invalid("a subscription of type webhook needs `webhook.url`")),
        ("pull-wake", _, Some(path)) => (None, Some(stream(&path)?)),
        ("pull-wake", _, None) => {
            return Err(invalid("a subscription of type pull-wake needs `wake_stream`"));
        }
        _ => return Err(invalid("`type` must be `webhook` or `pull-wake`")),
    };
    Ok(SubscriptionConfiguration { pattern, streams, webhook, wake_stream, lease_ttl_ms, description })
}
