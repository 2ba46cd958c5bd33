//! Server-sent events: a read session followed for as long as the connection lives. A batch is rendered once
//! for all its live readers; what waits for a connection leaves in one write.

use std::borrow::Cow;
use std::pin::pin;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bourn_protocol::cursor::Cursor;
use bourn_protocol::sse::{
    Control, DATA_BEGIN, DATA_END, HEARTBEAT, is_one_line, push_auth, push_control, push_data, push_retry,
    push_retry_at,
};
use bourn_protocol::stored::Form;
use bourn_protocol::{Place, headers};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use super::{RenderContext, unix_secs};
use crate::config::Limits;
use crate::http::body::Frames;
use crate::http::respond::Build;
use crate::http::retry::retry_millis;
use crate::http::{Reply, ReplyBody};
use crate::reading::{Batch, Session};
use crate::telemetry::ReadMode;

/// Bytes that an event adds to its batch, about.
const FRAME_OVERHEAD: usize = 192;

/// How long before its token expires a reader is warned.
const WARNING: Duration = Duration::from_secs(30);

/// The answer that follows a session.
pub(super) fn reply(
    context: &RenderContext,
    session: impl Session,
    cursor: Option<Cursor>,
    time_left: Option<Duration>,
) -> Reply {
    let mut build = Build::new(StatusCode::OK);
    if session.form() == Form::Binary {
        let name = HeaderName::from_static(headers::STREAM_SSE_DATA_ENCODING);
        build = build.header(name, HeaderValue::from_static("base64"));
    }
    build
        .header(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))
        .header(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"))
        .header(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))
        .body(ReplyBody::Events(events(context.clone(), session, cursor, time_left), None))
}

fn events(
    context: RenderContext,
    mut session: impl Session,
    cursor: Option<Cursor>,
    time_left: Option<Duration>,
) -> Frames {
    let lifetime = lifetime(&context.limits);
    let end = Instant::now() + time_left.map_or(lifetime, |left| left.min(lifetime));
    let heartbeat = context.limits.sse_heartbeat.get();
    // Only where the token is what ends the stream.
    let mut warn_at =
        time_left.filter(|left| *left <= lifetime).map(|_| end - WARNING.min(end - Instant::now()));
    Box::pin(async_stream::stream! {
        let _reading = context.metrics.reader(ReadMode::Sse);
        let delivered = context.metrics.mode(ReadMode::Sse);
        yield hello(&context.limits, session.place());
        // Whether the reader was last informed that it has everything; none before it was informed of its place.
        let mut informed = None;
        // A delivery does not set the timer back, for what is done at every delivery is done for every reader: when it
        // fires it looks whether the connection was idle.
        let mut sent_at = Instant::now();
        let mut timer = pin!(tokio::time::sleep_until(warn_at.unwrap_or(end).min(sent_at + heartbeat)));
        loop {
            let batch = match session.read().await {
                Ok(batch) => batch,
                // The status has been sent: the connection ends, and the answer to the reconnect says what is wrong.
                Err(error) => {
                    tracing::warn!(%error, "an event stream ends early");
                    return;
                }
            };
            let control = Control {
                next: session.place(),
                cursor: Cursor::next(unix_secs(), cursor),
                up_to_date: batch.up_to_date(),
                closed: batch.closed(),
            };
            let news = informed != Some(true) && (informed.is_none() || control.up_to_date);
            informed = Some(control.up_to_date);
            if batch.messages() > 0 {
                // Kept small on purpose: what lives across a `yield` is multiplied by every reader.
                let live = matches!(batch, Batch::Live { .. });
                let body = as_text(session.form(), batch.body());
                delivered.count(batch.messages(), body.len());
                match batch {
                    // A reader that sent a cursor gets its own next one.
                    Batch::Live { batch, last: true } if cursor.is_none() => {
                        yield batch.frame(|| whole(&body, control));
                    }
                    Batch::Chunk(chunk) if !chunk.sealed && cursor.is_none() => {
                        yield chunk.frame(|| whole(&body, control));
                    }
                    _ if is_one_line(&body) => {
                        // In pieces, so that a chunk's bytes are the cache's own and not a copy for each reader.
                        yield Bytes::from_static(DATA_BEGIN);
                        yield body;
                        yield data_end(control);
                    }
                    _ => yield whole(&body, control),
                }
                if control.closed {
                    return;
                }
                sent_at = Instant::now();
                // A reader that is never done catching up ends like any other; a live one waits below soon enough.
                if sent_at < end && (live || !context.stopping.is_given()) {
                    continue;
                }
            } else if news || control.closed {
                yield control_frame(control);
                if control.closed {
                    return;
                }
            }
            tokio::select! {
                () = session.changed() => {}
                () = &mut timer => {
                    let now = Instant::now();
                    // A stream that lacks changes must not look complete: the answer to the reconnect says why.
                    if now >= end || !session.is_complete() {
                        return;
                    }
                    if warn_at.is_some_and(|warn_at| now >= warn_at) {
                        warn_at = None;
                        yield warning(end - now);
                        sent_at = now;
                    }
                    if now >= sent_at + heartbeat {
                        yield Bytes::from_static(HEARTBEAT);
                        sent_at = now;
                    }
                    timer.as_mut().reset(warn_at.unwrap_or(end).min(sent_at + heartbeat));
                }
                // The connection that this is the body of waits for the order itself, and wakes this with it.
                () = context.stopping.noticed() => {
                    yield farewell(&context.limits, control);
                    return;
                }
            }
        }
    })
}

/// What an event can carry: text as it is, as far as it is text, and anything else in base64.
fn as_text(form: Form, body: Bytes) -> Bytes {
    match form {
        Form::Json => body,
        Form::Text => match String::from_utf8_lossy(&body) {
            Cow::Borrowed(_) => body,
            Cow::Owned(text) => text.into(),
        },
        Form::Binary => BASE64.encode(&body).into(),
    }
}

fn lifetime(limits: &Limits) -> Duration {
    let (middle, jitter) = (limits.sse_lifetime.get(), limits.sse_lifetime_jitter.get());
    middle.saturating_sub(jitter) + jitter.mul_f64(rand::random_range(0.0..=2.0))
}

/// The first bytes, sent at once so that proxies and browsers see the stream open. They say where it begins, so that a
/// browser resumes, and is not refused for good, also where the connection breaks before the first batch.
fn hello(limits: &Limits, place: Place) -> Bytes {
    let mut out = Vec::with_capacity(96);
    push_retry_at(&mut out, retry_millis(limits), place);
    out.into()
}

/// The last bytes when the server stops: where the reader is, and when to come back.
fn farewell(limits: &Limits, control: Control) -> Bytes {
    let mut out = Vec::with_capacity(FRAME_OVERHEAD + 32);
    push_retry(&mut out, retry_millis(limits));
    push_control(&mut out, control);
    out.into()
}

/// Says that the reader's token is about to expire.
fn warning(left: Duration) -> Bytes {
    let mut out = Vec::with_capacity(48);
    push_auth(&mut out, left.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX));
    out.into()
}

fn control_frame(control: Control) -> Bytes {
    let mut out = Vec::with_capacity(FRAME_OVERHEAD);
    push_control(&mut out, control);
    out.into()
}

/// A batch as one piece, to be shared by its readers.
fn whole(body: &[u8], control: Control) -> Bytes {
    let mut out = Vec::with_capacity(body.len() + FRAME_OVERHEAD);
    push_data(&mut out, body);
    push_control(&mut out, control);
    out.into()
}

/// What ends a batch that was sent in pieces.
fn data_end(control: Control) -> Bytes {
    let mut out = Vec::with_capacity(FRAME_OVERHEAD);
    out.extend_from_slice(DATA_END);
    push_control(&mut out, control);
    out.into()
}
