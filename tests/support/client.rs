//! A client that says plainly what it sends and shows plainly what it gets.

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{Events, PATIENCE};

#[derive(Clone)]
pub struct Client {
    address: String,
}

/// A connection that is kept.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Sends one request and reads its whole answer.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(path).header("host", &self.host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        self.sender.ready().await.map_err(|error| error.to_string())?;
        let response = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body, as far as it is text.
    pub fn text_lossy(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Whether this answer of `/ready` says that the server serves and the log has every table as it is.
    pub fn is_settled(&self) -> bool {
        let settled = |entity: &Value| entity["state"] == "ready";
        // Where operators have a listener of their own, it alone tells of the tables.
        self.status == 200 && self.json()["entities"].as_array().is_none_or(|all| all.iter().all(settled))
    }

    /// The messages of a stream read.
    pub fn messages(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json().as_array().unwrap().clone()
    }

    pub fn next_offset(&self) -> String {
        self.header("stream-next-offset").to_owned()
    }

    pub fn up_to_date(&self) -> bool {
        self.header("stream-up-to-date") == "true"
    }

    /// Asserts an error with its three fields.
    #[track_caller]
    pub fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert!(body["error"].is_string() && body["message"].is_string(), "{body}");
        assert!(!body["message"].as_str().unwrap().contains("SQL"), "a database's own words: {body}");
    }
}

impl Client {
    pub fn new(address: &str) -> Client {
        Client { address: address.to_owned() }
    }

    /// A connection that is kept, for many requests in a row.
    pub async fn connect(&self) -> Result<Connection, String> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| error.to_string())?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(Connection { sender, host: self.address.clone() })
    }

    /// Sends one request on a connection of its own; the error is the connection's.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, String> {
        let exchange = async { self.connect().await?.send(method, path, headers, body).await };
        tokio::time::timeout(PATIENCE * 2, exchange).await.map_err(|_| "no answer in time".to_owned())?
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.try_send(method, path, headers, body.into()).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.try_send(Method::GET, path, &[], Bytes::new()).await.unwrap_or_else(|error| Answer {
            status: 0,
            headers: HeaderMap::new(),
            body: error.into(),
        })
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, path, headers, "").await
    }

    async fn with_json(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let mut headers = headers.to_vec();
        headers.push(("content-type", "application/json"));
        self.send(method, path, &headers, body.to_string()).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        self.with_json(Method::POST, path, headers, body).await
    }

    pub async fn patch(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        self.with_json(Method::PATCH, path, headers, body).await
    }

    pub async fn delete(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::DELETE, path, headers, "").await
    }

    /// Makes a page and asserts that it was made.
    pub async fn make_page(&self, id: &str, transaction: &str) -> Answer {
        let answer =
            self.post("/v1/entities/pages", &[("x-transaction-id", transaction)], &super::page(id, id)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer
    }

    /// Waits until there is a live reader of each of these modes.
    pub async fn until_readers(&self, modes: &[&str]) {
        super::eventually("the readers wait", async || {
            let figures = self.get("/metrics").await;
            let there =
                |mode: &&str| figures.text().contains(&format!("bourn_live_readers{{mode=\"{mode}\"}} 1"));
            modes.iter().all(there)
        })
        .await;
    }

    /// Opens an event stream.
    pub async fn events(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        self.try_events(path, headers).await.unwrap()
    }

    /// The same, of a server that may be gone; the error is the connection's.
    pub async fn try_events(&self, path: &str, headers: &[(&str, &str)]) -> Result<Events, String> {
        Events::open(&self.address, path, headers).await
    }

    /// Reads a stream from a place to its tail, chunk by chunk; gives the messages and the place.
    pub async fn read_all(&self, stream: &str, from: &str) -> (Vec<Value>, String) {
        self.read_all_with(stream, from, &[]).await
    }

    pub async fn read_all_with(
        &self,
        stream: &str,
        from: &str,
        headers: &[(&str, &str)],
    ) -> (Vec<Value>, String) {
        let (mut messages, mut offset) = (Vec::new(), from.to_owned());
        let separator = if stream.contains('?') { '&' } else { '?' };
        loop {
            let url = format!("{stream}{separator}offset={offset}");
            let answer = self.get_with(&url, headers).await;
            messages.extend(answer.messages());
            offset = answer.next_offset();
            if answer.up_to_date() {
                return (messages, offset);
            }
        }
    }
}
