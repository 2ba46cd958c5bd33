//! One connection: HTTP/1.1 over a socket whose reader must keep up.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bourn_protocol::ErrorCode;
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as HttpService, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::io::{InFlight, KeepUp, Requests};
use crate::http::{
    Answering, App, BournService, PeerAddress, Received, ReplyBody, RequestBody, come_back_bytes, plain_error,
};
use crate::tasks::stopping::Stopped;

/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a connection that is refused may take to say what it wants, and then to take the answer.
const REFUSAL: Duration = Duration::from_secs(1);
/// Maximum size in bytes of a request's head that are read before it is refused.
const REFUSED_HEAD: usize = 8 << 10;

/// Serves a connection until it ends, breaks or the server stops.
///
/// What lives in this function lives as long as an event stream: what is needed only at first is elsewhere.
pub(super) async fn serve(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    app: Arc<App>,
    service: BournService,
    place: OwnedSemaphorePermit,
) {
    let _held = (app.metrics.connection(), place);
    let mut stopped = app.stopping.wait();
    let timeout = app.limits.header_timeout.get();
    let peer = stream.peer_addr().ok().map(|address| address.ip());
    match acceptor {
        None => {
            let admitted = tokio::select! {
                admitted = Box::pin(admit(stream, timeout)) => admitted,
                () = &mut stopped => None,
            };
            let Some(stream) = admitted else { return };
            run(pin!(connection(stream, peer, &app, service)), stopped).await;
        }
        // Boxed, so that connections without TLS have no room for it.
        Some(acceptor) => {
            let handshake = Box::pin(tokio::time::timeout(timeout, shake_hands(stream, acceptor)));
            let admitted = tokio::select! {
                shaken = handshake => shaken.ok().flatten(),
                () = &mut stopped => None,
            };
            let Some(stream) = admitted else { return };
            run(Box::pin(connection(stream, peer, &app, service)).as_mut(), stopped).await;
        }
    }
}

/// Runs a connection to its end; once the server is to stop, no further than the request under way.
async fn run<I, S>(mut connection: Pin<&mut http1::Connection<I, S>>, mut stopped: Stopped)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: HttpService<Request<Incoming>, Response = Response<CountedBody>, Error = Infallible>,
{
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = &mut stopped => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Accepts TLS; none where the client does not.
async fn shake_hands(stream: TcpStream, acceptor: TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    let mut first = [0];
    if !matches!(stream.peek(&mut first).await, Ok(1)) {
        return None;
    }
    if first[0] != TLS_HANDSHAKE {
        let message = "this port speaks HTTP over TLS, and plain HTTP was sent to it; use https://";
        tell(stream, &plain_error(ErrorCode::InvalidRequest, message, None)).await;
        return None;
    }
    let accepted = acceptor.accept(stream).await;
    accepted.inspect_err(|error| tracing::debug!(%error, "a TLS handshake failed")).ok()
}

/// Waits for the first byte; none when it does not come, or begins what is not HTTP.
async fn admit(stream: TcpStream, timeout: Duration) -> Option<TcpStream> {
    // Events are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let mut first = [0];
    match tokio::time::timeout(timeout, stream.peek(&mut first)).await {
        Ok(Ok(1)) if first[0] == TLS_HANDSHAKE => {
            let message =
                "this port speaks plain HTTP, and TLS was sent to it; use http://, or put a proxy in front";
            tell(stream, &plain_error(ErrorCode::InvalidRequest, message, None)).await;
            None
        }
        Ok(Ok(1)) => Some(stream),
        _ => None,
    }
}

fn connection<I: AsyncRead + AsyncWrite + Unpin>(
    stream: I,
    peer: Option<IpAddr>,
    app: &App,
    handler: BournService,
) -> http1::Connection<
    TokioIo<KeepUp<I>>,
    impl HttpService<Request<Incoming>, Response = Response<CountedBody>, Error = Infallible, Future = Counted>
    + use<I>,
> {
    let requests = Arc::new(Requests::default());
    // Only where it is counted by: it costs every request.
    let peer = app.callers.any().then_some(peer).flatten();
    let (write_timeout, idle_timeout) = (app.limits.write_timeout.get(), app.limits.header_timeout.get());
    let io = KeepUp::new(stream, write_timeout, app.limits.write_rate.get(), idle_timeout, requests.clone());
    let io = TokioIo::new(io);
    // A connection has one request at a time.
    let handler = RefCell::new(handler);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let waits =
            request.uri().query().is_some_and(|query| query.contains("live=") || query.contains("wait="));
        let receiving = !request.body().is_end_stream();
        let in_flight = Some(requests.begin(waits, receiving));
        if let Some(peer) = peer {
            request.extensions_mut().insert(PeerAddress(peer));
        }
        if receiving {
            request.extensions_mut().insert(Received(requests.clone()));
        }
        let answering = Box::new(handler.borrow_mut().answer(request.map(RequestBody::Incoming)));
        Counted { in_flight, answering }
    });
    http1::Builder::new()
        // The socket has a timer of its own.
        .header_read_timeout(None)
        .max_buf_size(app.limits.header_limit.bytes())
        // The end of what a client sends is the end of the connection, except where the socket keeps it back.
        .half_close(false)
        .serve_connection(io, service)
}

/// Answers a connection that there is no place for. A browser that resumes an event stream is asked to come back, for any other
/// answer would make it give up.
pub(super) async fn refuse(mut stream: TcpStream, app: Arc<App>, place: OwnedSemaphorePermit) {
    let _held = place;
    metrics::counter!("bourn_connections_total", "outcome" => "refused").increment(1);
    let mut head = BytesMut::with_capacity(REFUSED_HEAD);
    let reading = async {
        while head.len() < REFUSED_HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read_buf(&mut head).await {
                Ok(read) if read > 0 => {}
                _ => return,
            }
        }
    };
    let mut stopped = app.stopping.wait();
    tokio::select! {
        _ = tokio::time::timeout(REFUSAL, reading) => {}
        () = &mut stopped => {}
    }
    let message = "the server has as many connections as it takes; try again";
    let answer = come_back_bytes(&head, &app.limits)
        .unwrap_or_else(|| plain_error(ErrorCode::Overloaded, message, Some(1)));
    tell(stream, &answer).await;
}

async fn tell(mut stream: TcpStream, bytes: &[u8]) {
    let _ = tokio::time::timeout(REFUSAL, async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        // What the client still sends is read, or the system would reset the connection under the answer.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    })
    .await;
}

/// An answer whose request counts as in flight until its body is done.
struct Counted {
    in_flight: Option<InFlight>,
    /// Boxed: hyper keeps room for it as long as the connection lives, also while an event stream is sent.
    answering: Box<Answering>,
}

impl Future for Counted {
    type Output = Result<Response<CountedBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = ready!(Pin::new(&mut self.answering).poll(cx))?;
        let in_flight = self.in_flight.take();
        Poll::Ready(Ok(reply.map(|body| CountedBody { body, _in_flight: in_flight })))
    }
}

struct CountedBody {
    body: ReplyBody,
    _in_flight: Option<InFlight>,
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
