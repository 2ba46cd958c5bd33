//! From method and path to endpoint.

use std::sync::{Arc, LazyLock};

use bourn_protocol::ErrorCode;
use bourn_protocol::percent::percent_decode;
use http::{Method, Request};
use matchit::{Params, Router};

use super::feed::{activities, changes, entities, transactions};
use super::layers::cors;
use super::layers::edge::AUTHORIZE;
use super::{ApiError, App, Reply, RequestBody, authorize, intake, ops, session, streams};
use crate::access::Rights;
use crate::config::ListenerRole;

/// The endpoints, named as metrics name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Entities,
    ScopedEntities,
    Row,
    Activities,
    ScopedActivities,
    Transaction,
    Rollback,
    Stream,
    Authorize,
    Session,
    Health,
    Ready,
    Metrics,
}

impl Endpoint {
    const fn name(self) -> &'static str {
        match self {
            Endpoint::Entities | Endpoint::ScopedEntities => "entities",
            Endpoint::Row => "row",
            Endpoint::Activities | Endpoint::ScopedActivities => "activities",
            Endpoint::Transaction => "transaction",
            Endpoint::Rollback => "rollback",
            Endpoint::Stream => "stream",
            Endpoint::Authorize => AUTHORIZE,
            Endpoint::Session => "session",
            Endpoint::Health => "health",
            Endpoint::Ready => "ready",
            Endpoint::Metrics => "metrics",
        }
    }
}

impl Endpoint {
    /// Whether a listener of this role has it.
    fn is_served(self, role: ListenerRole, app: &App) -> bool {
        match self {
            Endpoint::Health | Endpoint::Ready => true,
            Endpoint::Metrics => app.ops.tells_figures(role),
            Endpoint::Authorize => role == ListenerRole::Edge,
            _ => role != ListenerRole::Admin,
        }
    }
}

const ROUTES: [(&str, Endpoint); 13] = [
    ("/v1/entities/{table}", Endpoint::Entities),
    ("/v1/entities/{table}/{id}", Endpoint::Row),
    ("/v1/scopes/{scope}/entities/{table}", Endpoint::ScopedEntities),
    ("/v1/activities", Endpoint::Activities),
    ("/v1/scopes/{scope}/activities", Endpoint::ScopedActivities),
    ("/v1/transactions/{id}", Endpoint::Transaction),
    ("/v1/transactions/{id}/rollback", Endpoint::Rollback),
    ("/v1/stream/{*path}", Endpoint::Stream),
    (authorize::PATH, Endpoint::Authorize),
    (session::PATH, Endpoint::Session),
    ("/health", Endpoint::Health),
    ("/ready", Endpoint::Ready),
    ("/metrics", Endpoint::Metrics),
];

static ROUTER: LazyLock<Router<Endpoint>> = LazyLock::new(|| {
    let mut router = Router::new();
    for (path, endpoint) in ROUTES {
        if let Err(error) = router.insert(path, endpoint) {
            unreachable!("the routes are fixed and a test walks them: {error}");
        }
    }
    router
});

/// Answers a request at its endpoint; gives the endpoint's name with it.
pub(super) async fn dispatch(
    app: &App,
    role: ListenerRole,
    rights: &Arc<Rights>,
    request: Request<RequestBody>,
) -> (&'static str, Result<Reply, ApiError>) {
    let path = request.uri().path().to_owned();
    let found = ROUTER.at(&path).ok().filter(|matched| matched.value.is_served(role, app));
    let Some(matched) = found else {
        let message = "there is nothing here; see /v1/entities/{table}, /v1/activities, /v1/transactions/{id}, /v1/stream/{path}";
        return ("unknown", Err(ApiError::new(ErrorCode::UnknownPath, message)));
    };
    let endpoint = *matched.value;
    if request.method() == Method::OPTIONS {
        return (endpoint.name(), Ok(cors::preflight()));
    }
    (endpoint.name(), at(app, role, rights, endpoint, &matched.params, request).await)
}

/// Whether a request needs no token: preflights, requests for the server's own state, and endpoints that have tokens of
/// its own.
pub(super) fn needs_no_token<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    *request.method() == Method::OPTIONS
        || (path == session::PATH && *request.method() == Method::DELETE)
        || matches!(path, "/health" | "/ready" | "/metrics")
        || path.strip_prefix("/v1/stream/__ds/").is_some_and(streams::has_tokens_of_its_own)
        || path == authorize::PATH
            && authorize::original(request.headers())
                .is_ok_and(|asked| asked.uri().path() != authorize::PATH && needs_no_token(&asked))
}

/// Whether a request may have what a cache keeps under its address. What is never kept (rows, answers to writes) is checked
/// where it is asked for.
pub(super) fn may_read(app: &App, rights: &Rights, mut request: Request<()>) -> Result<(), ApiError> {
    let path = request.uri().path().to_owned();
    let nothing = || ApiError::new(ErrorCode::UnknownPath, "there is nothing here");
    let matched = ROUTER.at(&path).map_err(|_| nothing())?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let params = &matched.params;
    if let Endpoint::ScopedEntities | Endpoint::ScopedActivities = matched.value {
        request.extensions_mut().insert(intake::PathScope(segment(params, "scope")?));
    }
    match matched.value {
        Endpoint::Entities | Endpoint::ScopedEntities => {
            let entities = entities::find_all(&app.feed, rights, &segment(params, "table")?)?;
            changes::may_read(&app.feed, rights, &entities, &request)
        }
        Endpoint::Activities | Endpoint::ScopedActivities => {
            activities::may_read(&app.feed, rights, &request)
        }
        Endpoint::Stream => streams::may_read(rights, params.get("path").unwrap_or_default()),
        Endpoint::Row
        | Endpoint::Transaction
        | Endpoint::Rollback
        | Endpoint::Authorize
        | Endpoint::Session
        | Endpoint::Health
        | Endpoint::Ready
        | Endpoint::Metrics => Ok(()),
    }
}

async fn at(
    app: &App,
    role: ListenerRole,
    rights: &Arc<Rights>,
    endpoint: Endpoint,
    params: &Params<'_, '_>,
    mut request: Request<RequestBody>,
) -> Result<Reply, ApiError> {
    let method = request.method().clone();
    let feed = &*app.feed;
    if let Endpoint::ScopedEntities | Endpoint::ScopedActivities = endpoint {
        let scope = segment(params, "scope")?;
        request.extensions_mut().insert(intake::PathScope(scope));
    }
    let reads = method == Method::GET || method == Method::HEAD;
    match endpoint {
        Endpoint::Entities | Endpoint::ScopedEntities => {
            let found = entities::find_all(feed, rights, &segment(params, "table")?)?;
            match method {
                Method::GET => changes::entities(feed, rights, &found, &request).await,
                Method::HEAD => changes::entities_head(feed, rights, &found, &request).await,
                _ if endpoint == Endpoint::ScopedEntities || found.len() > 1 => {
                    Err(ApiError::method("GET, HEAD"))
                }
                Method::POST => entities::create(feed, rights, changes::one(&found)?.clone(), request).await,
                _ => Err(ApiError::method("GET, HEAD, POST")),
            }
        }
        Endpoint::Row => {
            let entity = entities::find(feed, rights, &segment(params, "table")?)?;
            let key = entities::key(&segment(params, "id")?)?;
            match method {
                Method::GET | Method::HEAD => entities::read(feed, rights, &entity, &key, &request).await,
                Method::PATCH => entities::update(feed, rights, entity, key, request).await,
                Method::DELETE => entities::delete(feed, rights, entity, key, request).await,
                _ => Err(ApiError::method("GET, HEAD, PATCH, DELETE")),
            }
        }
        Endpoint::Activities | Endpoint::ScopedActivities => match method {
            Method::GET => activities::read(feed, rights, &request).await,
            Method::HEAD => activities::head(feed, rights, &request).await,
            _ => Err(ApiError::method("GET, HEAD")),
        },
        Endpoint::Transaction if reads => {
            transactions::state(feed, rights, &segment(params, "id")?, &request).await
        }
        Endpoint::Rollback if method == Method::POST => {
            transactions::rollback(feed, rights, &segment(params, "id")?, request).await
        }
        Endpoint::Rollback => Err(ApiError::method("POST")),
        Endpoint::Stream => {
            streams::dispatch(&app.streams, rights, params.get("path").unwrap_or_default(), request).await
        }
        Endpoint::Session => session::dispatch(app, rights, &request),
        Endpoint::Authorize if reads => authorize::authorize(app, rights, request.headers(), may_read),
        Endpoint::Health if reads => Ok(ops::health()),
        Endpoint::Ready if reads => Ok(ops::ready(&app.ops, app.ops.tells_details(role)).await),
        Endpoint::Metrics if reads => Ok(ops::metrics(&app.ops)),
        Endpoint::Transaction
        | Endpoint::Authorize
        | Endpoint::Health
        | Endpoint::Ready
        | Endpoint::Metrics => Err(ApiError::method("GET, HEAD")),
    }
}

fn segment(params: &Params<'_, '_>, name: &str) -> Result<String, ApiError> {
    params
        .get(name)
        .and_then(|raw| percent_decode(raw, false))
        .ok_or_else(|| ApiError::new(ErrorCode::InvalidPath, "a path must be percent-encoded UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_leads_to_its_endpoint() {
        for (path, endpoint) in ROUTES {
            let path = path
                .replace("{table}", "pages")
                .replace("{scope}", "acme")
                .replace("{id}", "p1")
                .replace("{*path}", "a/b");
            assert_eq!(ROUTER.at(&path).map(|found| *found.value), Ok(endpoint), "{path}");
        }
    }

    #[test]
    fn path_tricks_lead_nowhere_or_to_a_table_that_is_not_there() {
        for path in [
            "/",
            "//",
            "/v1",
            "/v1/entities",
            "/v1/entities/",
            "/v1/entities/pages/",
            "/v1/entities/pages/a/b",
            "/v2/entities/pages",
        ] {
            assert!(ROUTER.at(path).is_err(), "{path}");
        }
    }
}
