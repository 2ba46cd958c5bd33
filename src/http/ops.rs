//! For operators: liveness, readiness, figures.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use super::respond::Build;
use super::{App, Reply, ReplyBody};

/// `GET /health`: the process answers.
pub(super) fn health() -> Reply {
    Build::new(StatusCode::OK).no_store().json(json!({ "status": "ok" }).to_string())
}

/// `GET /ready`: whether the server can do its work, and how far the log has come.
pub(super) async fn ready(app: &Arc<App>) -> Reply {
    let capture = app.storage.status();
    let bounds = app.storage.bounds().await;
    let mut problems = Vec::new();
    if app.stopping.is_given() {
        problems.push("the server is about to stop".to_owned());
    }
    if let Err(error) = &bounds {
        problems.push(error.to_string());
    }
    problems.extend(capture.stalled.as_ref().map(|reason| format!("capture stands still: {reason}")));
    let entities: Vec<_> = app
        .catalog
        .iter()
        .map(|entity| match (entity.schema(), capture.reconciling.get(&*entity.name)) {
            (Err(reason), _) => {
                problems.push(format!("{}: {reason}", entity.name));
                json!({ "type": &*entity.name, "state": "unavailable", "reason": reason })
            }
            (Ok(_), Some(keys)) => {
                json!({ "type": &*entity.name, "state": "comparing", "compared": keys })
            }
            (Ok(_), None) => json!({ "type": &*entity.name, "state": "ready" }),
        })
        .collect();
    let comparing = !capture.reconciling.is_empty();
    let ready = problems.is_empty() && !comparing;
    let head = bounds.as_ref().map(|head| head.offset().to_string()).ok();
    let body = json!({
        "status": if ready { "ready" } else { "not_ready" },
        "problems": problems,
        "log": { "head": head, "lag": capture.lag, "lagBytes": capture.lag_bytes },
        "entities": entities,
    });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Build::new(status).no_store().json(body.to_string())
}

/// `GET /metrics`: the figures in Prometheus' text form.
pub(super) fn metrics(app: &Arc<App>) -> Reply {
    let capture = app.storage.status();
    let head = *app.storage.head().borrow();
    app.metrics.gauges(
        head.seq.get(),
        app.tail.head().get(),
        capture.lag.unwrap_or_default(),
        app.tail.memory_used(),
    );
    Build::new(StatusCode::OK)
        .no_store()
        .header(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))
        .body(ReplyBody::from(app.metrics.render()))
}
