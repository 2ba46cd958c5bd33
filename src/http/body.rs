//! Bodies. Those of answers are bytes that are there already, or server-sent events; those of requests are hyper's, or of an
//! application that Bourn is mounted in.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use sync_wrapper::SyncWrapper;
use tokio_stream::Stream;

/// A stream of frames.
pub(super) type Frames = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// An answer's body.
pub enum ReplyBody {
    /// All of it.
    Full(Full<Bytes>),
    /// Events as they come, and what is held until they end.
    Events(Frames, Option<Box<dyn Send + Sync>>),
}

/// Empty; layers of `tower-http` answer preflights with it.
impl Default for ReplyBody {
    fn default() -> ReplyBody {
        ReplyBody::empty()
    }
}

impl ReplyBody {
    /// No body.
    #[must_use]
    pub fn empty() -> ReplyBody {
        ReplyBody::Full(Full::default())
    }
}

impl<T: Into<Bytes>> From<T> for ReplyBody {
    fn from(bytes: T) -> Self {
        ReplyBody::Full(Full::new(bytes.into()))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            ReplyBody::Full(full) => Pin::new(full).poll_frame(cx),
            ReplyBody::Events(events, _) => {
                events.as_mut().poll_next(cx).map(|frame| frame.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ReplyBody::Full(full) => full.is_end_stream(),
            ReplyBody::Events(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Full(full) => full.size_hint(),
            ReplyBody::Events(..) => SizeHint::default(),
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body.
pub enum RequestBody {
    /// As it comes from our own socket.
    Incoming(Incoming),
    /// Of another application's request.
    Foreign(ForeignBody),
}

/// A body of any kind, and how long it was declared to be.
pub struct ForeignBody {
    body: SyncWrapper<UnsyncBoxBody<Bytes, BoxError>>,
    declared: SizeHint,
}

impl RequestBody {
    /// A body of another application's request.
    pub fn foreign<B>(body: B) -> RequestBody
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let declared = body.size_hint();
        let body = SyncWrapper::new(UnsyncBoxBody::new(body.map_err(Into::into)));
        RequestBody::Foreign(ForeignBody { body, declared })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            RequestBody::Incoming(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            RequestBody::Foreign(body) => Pin::new(body.body.get_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Incoming(body) => body.is_end_stream(),
            RequestBody::Foreign(body) => body.declared.exact() == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Incoming(body) => body.size_hint(),
            RequestBody::Foreign(body) => body.declared,
        }
    }
}
