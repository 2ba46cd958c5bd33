//! For operators: liveness, readiness, figures. All of them answer within [`ANSWER_WITHIN`], whatever the database does.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::respond::Build;
use super::{Reply, ReplyBody};
use crate::access::{Access, KeysState};
use crate::config::ListenerRole;
use crate::feed::entity::{Catalog, EntityType};
use crate::feed::tail::Tail;
use crate::feed::{Capture, CaptureStatus, Log};
use crate::tasks::stopping::Stopping;
use crate::tasks::supervisor::Supervisor;
use crate::telemetry::Metrics;

/// How long the database may take to say where the log's head is, before it counts as out of reach.
const ANSWER_WITHIN: Duration = Duration::from_millis(800);

/// What operators ask of.
pub struct OpsContext {
    /// The log, for its head as the database has it.
    pub log: Arc<dyn Log>,
    /// What fills the log.
    pub capture: Arc<dyn Capture>,
    /// The streamed tables.
    pub catalog: Arc<Catalog>,
    /// The live tail, for its figures.
    pub tail: Arc<Tail>,
    /// The server's figures.
    pub metrics: Metrics,
    /// Fires when the server is to stop.
    pub stopping: Stopping,
    /// The background, for whether it works.
    pub supervisor: Supervisor,
    /// Who may do what, for the keys of issuers.
    pub access: Arc<Access>,
    /// There is a listener of the role `admin`.
    pub has_admin: bool,
}

impl OpsContext {
    /// Whether a listener of this role tells what keeps the server from being ready.
    pub(super) fn tells_details(&self, role: ListenerRole) -> bool {
        role == ListenerRole::Admin || !self.has_admin
    }

    /// Whether a listener of this role has the figures. With access control they are for no client.
    pub(super) fn tells_figures(&self, role: ListenerRole) -> bool {
        role == ListenerRole::Admin || !(self.has_admin || self.access.is_controlled())
    }
}

/// `GET /health`: the process answers.
pub(super) fn health() -> Reply {
    Build::new(StatusCode::OK).no_store().json(json!({ "status": "ok" }).to_string())
}

/// `GET /ready`: whether the server can serve, and what an operator should know. A table that is being compared with the log
/// is reported beside it: it is no reason to take the server out of a balancer. Without `details` the answer has the status alone.
pub(super) async fn ready(ops: &OpsContext, details: bool) -> Reply {
    let capture = ops.capture.status();
    let head = tokio::time::timeout(ANSWER_WITHIN, ops.log.bounds()).await;
    let mut problems = Vec::new();
    if ops.stopping.is_given() {
        problems.push("the server is stopping".to_owned());
    }
    problems.extend(ops.supervisor.failure().map(|failure| failure.to_string()));
    let head = match head {
        Ok(Ok(head)) => Some(head.offset().to_string()),
        Ok(Err(error)) => {
            problems.push(error.to_string());
            None
        }
        Err(_) => {
            problems.push("the database does not answer in time".to_owned());
            None
        }
    };
    problems.extend(capture.stalled.as_ref().map(|reason| format!("capture has stopped: {reason}")));
    let entities: Vec<Value> =
        ops.catalog.iter().map(|entity| entity_state(entity, &capture, &mut problems)).collect();
    let ready = problems.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ready { "ready" } else { "not_ready" };
    if !details {
        return Build::new(status).no_store().json(json!({ "status": word }).to_string());
    }
    let mut body = json!({
        "status": word,
        "problems": problems,
        "log": {
            "head": head,
            "lag": capture.lag,
            "lagBytes": capture.lag_bytes,
            "lagSeconds": capture.lag_seconds,
        },
        "entities": entities,
    });
    let issuers: Vec<Value> = ops.access.keys().into_iter().map(issuer_state).collect();
    if !issuers.is_empty() {
        body["issuers"] = issuers.into();
    }
    if let Some(slot) = &capture.slot {
        body["slot"] = json!({
            "leader": slot.leader,
            "retainedBytes": slot.retained_bytes,
            "walStatus": slot.wal_status,
        });
    }
    Build::new(status).no_store().json(body.to_string())
}

/// The keys of one issuer of tokens. That they are missing is no problem of the server's: what needs no token, or another
/// issuer's, is served.
fn issuer_state((iss, state): (&str, KeysState)) -> Value {
    match state {
        KeysState::Read(count) => json!({ "iss": iss, "state": "ready", "keys": count }),
        KeysState::Unavailable => json!({ "iss": iss, "state": "keys_unavailable", "keys": 0 }),
    }
}

/// The state of one entity type; what keeps it from being served is a problem of the server's.
fn entity_state(entity: &EntityType, capture: &CaptureStatus, problems: &mut Vec<String>) -> Value {
    let conditions: Vec<_> =
        capture.conditions.iter().filter(|condition| condition.entity_type == *entity.name).collect();
    let mut state = json!({ "type": &*entity.name });
    if let Err(reason) = entity.schema() {
        problems.push(format!("{}: {reason}", entity.name));
        state["state"] = "unavailable".into();
        state["reason"] = reason.into();
    } else if conditions.iter().any(|condition| condition.stopped) {
        // No problem of the server's: the other entity types are served.
        state["state"] = "stopped".into();
    } else if let Some(keys) = capture.reconciling.get(&*entity.name) {
        state["state"] = "comparing".into();
        state["compared"] = (*keys).into();
    } else {
        state["state"] = "ready".into();
    }
    if !conditions.is_empty() {
        let shown = conditions.iter().map(|condition| {
            json!({ "key": condition.key, "reason": condition.reason, "remedy": condition.remedy })
        });
        state["conditions"] = shown.collect();
    }
    state
}

/// `GET /metrics`: the figures in Prometheus' text form.
pub(super) fn metrics(ops: &OpsContext) -> Reply {
    ops.metrics.gauges(*ops.capture.head().borrow(), &ops.tail, &ops.capture.status());
    Build::new(StatusCode::OK)
        .no_store()
        .header(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))
        .body(ReplyBody::from(ops.metrics.render()))
}
