//! The bodies of answers: bytes that are there already, or server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use tokio_stream::Stream;

/// A stream of frames.
pub(super) type Frames = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// An answer's body.
pub enum ReplyBody {
    /// All of it.
    Full(Full<Bytes>),
    /// Events as they come.
    Events(Frames),
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
            ReplyBody::Events(events) => {
                events.as_mut().poll_next(cx).map(|frame| frame.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ReplyBody::Full(full) => full.is_end_stream(),
            ReplyBody::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Full(full) => full.size_hint(),
            ReplyBody::Events(_) => SizeHint::default(),
        }
    }
}
