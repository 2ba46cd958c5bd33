//! What Bourn is compared with: bare hyper servers that do no more than the transport asks for, on the same
//! kind of runtime.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

use crate::report;

/// Events that a slow reader may be behind before it loses some.
const BROADCAST: usize = 4096;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The prebuilt answer.
#[derive(Args)]
pub(crate) struct StaticOptions {
    /// Bytes of the answer's body.
    #[arg(long, default_value_t = 65_536)]
    bytes: usize,
}

/// Answers every GET with the same body, or 304 when the request has a condition, and every POST with 201 and
/// that body once it has taken the request's.
pub(crate) async fn serve_static(options: &StaticOptions) -> Result<()> {
    let body = Bytes::from(vec![b'x'; options.bytes]);
    serve(move |request| {
        let body = body.clone();
        async move {
            let condition = request.headers().contains_key(IF_NONE_MATCH);
            let status = match *request.method() {
                Method::POST => {
                    let _ = request.into_body().collect().await;
                    StatusCode::CREATED
                }
                _ if condition => StatusCode::NOT_MODIFIED,
                _ => StatusCode::OK,
            };
            let body = if status == StatusCode::NOT_MODIFIED { Bytes::new() } else { body };
            let mut answer = Response::new(Full::new(body).boxed_unsync());
            *answer.status_mut() = status;
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            answer.headers_mut().insert(ETAG, HeaderValue::from_static("\"static\""));
            answer
        }
    })
    .await
}

/// `POST /publish` sends its body as one event to every `GET /events`, and as the answer to every `GET /wait`.
pub(crate) async fn serve_events() -> Result<()> {
    let (sender, _) = broadcast::channel::<Bytes>(BROADCAST);
    serve(move |request| {
        let sender = sender.clone();
        async move {
            match (request.method(), request.uri().path()) {
                (&Method::POST, "/publish") => {
                    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
                    let body = body.unwrap_or_default();
                    let mut frame = Vec::with_capacity(body.len() + 8);
                    frame.extend_from_slice(b"data:");
                    frame.extend_from_slice(&body);
                    frame.extend_from_slice(b"\n\n");
                    // Nobody listens: nothing is to be sent.
                    let _ = sender.send(frame.into());
                    Response::new(Full::default().boxed_unsync())
                }
                (&Method::GET, "/events") => {
                    // A reader that is too slow loses events here; the load tool counts what arrives.
                    let events = BroadcastStream::new(sender.subscribe()).filter_map(Result::ok);
                    let frames = events.map(|event| Ok(Frame::data(event)));
                    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
                    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
                    answer
                }
                (&Method::GET, "/wait") => {
                    let event = sender.subscribe().recv().await.unwrap_or_default();
                    Response::new(Full::new(event).boxed_unsync())
                }
                _ => {
                    let mut answer = Response::new(Full::default().boxed_unsync());
                    *answer.status_mut() = StatusCode::NOT_FOUND;
                    answer
                }
            }
        }
    })
    .await
}

async fn serve<H, F>(handler: H) -> Result<()>
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    report::line(&format!("baseline serves on http://{}", listener.local_addr()?));
    let handler = Arc::new(handler);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // A connection that breaks is the load tool's to count.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
