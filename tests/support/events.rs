//! An event stream as a browser reads it: frames parsed by the HTML standard's rules, and the raw bytes for
//! those who look closer.

use std::collections::VecDeque;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PATIENCE;

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Messages.
    Data(Vec<Value>),
    /// What is no JSON.
    Text(String),
    /// Where the reader is; with the event's id.
    Control { id: String, body: Value },
    /// The reader's token expires in so many seconds.
    Auth(u64),
    /// The reconnect time.
    Retry(u64),
    /// A comment.
    Heartbeat,
    /// The server ended the stream gracefully.
    End,
    /// The connection ended inside the stream.
    Cut,
}

pub struct Events {
    stream: TcpStream,
    /// The head of the answer.
    pub head: String,
    /// What came over the wire, without the chunks' framing.
    pub raw: Vec<u8>,
    unframed: Vec<u8>,
    parsed: usize,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Events {
    pub(super) async fn open(address: &str, path: &str, headers: &[(&str, &str)]) -> Result<Events, String> {
        let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut bytes))
                .await
                .map_err(|_| "no answer in time")?
                .map_err(|error| error.to_string())?;
            if read == 0 {
                return Err("the connection ended before an answer".into());
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let mut unframed = bytes.split_off(end + 4);
        if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
            // Not chunked: framed here as if it were.
            while unframed.len() < length.parse().unwrap() {
                let read = stream.read_buf(&mut unframed).await.map_err(|error| error.to_string())?;
                assert!(read > 0, "the body is cut");
            }
            let size = format!("{:x}\r\n", unframed.len());
            unframed = [size.as_bytes(), &unframed, b"\r\n0\r\n\r\n"].concat();
        }
        let (raw, ready) = (Vec::new(), VecDeque::new());
        Ok(Events { stream, head, raw, unframed, parsed: 0, ready, ended: false })
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        self.next_within(PATIENCE).await.expect("an event in time")
    }

    /// The next event, if it comes in time.
    pub async fn next_within(&mut self, time: std::time::Duration) -> Option<Event> {
        let event = self.try_next(time).await;
        if event == Some(Event::Cut) {
            panic!("the connection ended inside the stream: {}", String::from_utf8_lossy(&self.raw));
        }
        event
    }

    /// The same, for servers that may be killed.
    pub async fn try_next(&mut self, time: std::time::Duration) -> Option<Event> {
        let deadline = tokio::time::Instant::now() + time;
        loop {
            self.unframe();
            self.parse();
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return Some(Event::End);
            }
            let read =
                tokio::time::timeout_at(deadline, self.stream.read_buf(&mut self.unframed)).await.ok()?;
            if !read.is_ok_and(|read| read > 0) {
                return Some(Event::Cut);
            }
        }
    }

    /// The next messages, past everything else; and the place after them.
    pub async fn messages(&mut self) -> (Vec<Value>, String) {
        let messages = loop {
            if let Event::Data(messages) = self.next().await {
                break messages;
            }
        };
        match self.next().await {
            Event::Control { id, .. } => (messages, id),
            other => panic!("a control event follows the data, not {other:?}"),
        }
    }

    /// The next control event, past everything else.
    pub async fn control(&mut self) -> (String, Value) {
        loop {
            if let Event::Control { id, body } = self.next().await {
                return (id, body);
            }
        }
    }

    /// Takes whole chunks of the transfer encoding.
    fn unframe(&mut self) {
        while let Some(line) = self.unframed.windows(2).position(|window| window == b"\r\n") {
            let size = std::str::from_utf8(&self.unframed[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            let end = line + 2 + size + 2;
            if self.unframed.len() < end {
                return;
            }
            self.raw.extend_from_slice(&self.unframed[line + 2..end - 2]);
            self.unframed.drain(..end);
            if size == 0 {
                self.ended = true;
                return;
            }
        }
    }

    fn parse(&mut self) {
        while let Some(length) = self.raw[self.parsed..].windows(2).position(|window| window == b"\n\n") {
            let block = String::from_utf8(self.raw[self.parsed..self.parsed + length].to_vec()).unwrap();
            self.parsed += length + 2;
            self.ready.push_back(event(&block));
        }
    }
}

fn event(block: &str) -> Event {
    let field = |name: &str| {
        let lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let values: Vec<&str> = lines.map(|value| value.strip_prefix(' ').unwrap_or(value)).collect();
        values.join("\n")
    };
    if block == ":" {
        return Event::Heartbeat;
    }
    match field("event").as_str() {
        "data" => match serde_json::from_str(&field("data")) {
            Ok(messages) => Event::Data(messages),
            Err(_) => Event::Text(field("data")),
        },
        "control" => Event::Control { id: field("id"), body: serde_json::from_str(&field("data")).unwrap() },
        "" => Event::Retry(
            field("retry").parse().unwrap_or_else(|_| panic!("neither event nor retry: {block}")),
        ),
        "auth" => {
            let body: Value = serde_json::from_str(&field("data")).unwrap();
            Event::Auth(body["expiresIn"].as_u64().unwrap())
        }
        other => panic!("an unknown event: {other}"),
    }
}
