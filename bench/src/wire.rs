//! A lean HTTP/1.1 client over one keep-alive connection: it finds the status and the length, and counts the
//! body without looking at it, so that the client takes as little of the shared CPU as it can.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Room for an answer's head, and for what comes with it in the same read.
pub(crate) const SMALL: usize = 8 * 1024;
/// Room for an answer's head and a whole chunk.
pub(crate) const LARGE: usize = 96 * 1024;

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    head: usize,
}

/// What an answer was like; its head can be asked until the next exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body_bytes: usize,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, room: usize) -> Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: vec![0; room], head: 0 })
    }

    /// Sends a request and takes the answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        self.head = loop {
            ensure!(filled < self.buffer.len(), "the answer's head is too long");
            let searched = filled.saturating_sub(3);
            filled += self.read(filled).await?;
            let found = self.buffer.get(searched..filled).and_then(|new| memmem::find(new, b"\r\n\r\n"));
            if let Some(at) = found {
                break searched + at + 4;
            }
        };
        let status = self.buffer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        let status: u16 = status.and_then(|digits| digits.parse().ok()).context("no status line")?;
        let chunked = self.header("transfer-encoding") == Some("chunked");
        let body_bytes: usize = match status {
            204 | 304 => 0,
            _ if chunked => return Ok(Answer { status, body_bytes: self.read_to_last_chunk(filled).await? }),
            _ => self.header("content-length").context("an answer without a length")?.parse()?,
        };
        let mut missing = body_bytes.saturating_sub(filled - self.head);
        let start = if self.head < self.buffer.len() { self.head } else { 0 };
        while missing > 0 {
            // Overwrites what came before: nobody looks at it.
            missing = missing.saturating_sub(self.read(start).await?);
        }
        Ok(Answer { status, body_bytes })
    }

    /// Reads an answer in chunks to its end, which nothing that the tool sends looks like; gives its bytes, framing and
    /// all.
    async fn read_to_last_chunk(&mut self, filled: usize) -> Result<usize> {
        const END: &[u8] = b"0\r\n\r\n";
        let start = if self.head < self.buffer.len() { self.head } else { 0 };
        let mut end = self.buffer.get(start..filled).unwrap_or_default().to_vec();
        let mut bytes = end.len();
        while !end.ends_with(END) {
            let read = self.read(start).await?;
            bytes += read;
            end.extend_from_slice(self.buffer.get(start..start + read).unwrap_or_default());
            end.drain(..end.len().saturating_sub(END.len()));
        }
        Ok(bytes)
    }

    /// The same, for a request that must succeed.
    pub(crate) async fn expect(&mut self, request: &[u8]) -> Result<Answer> {
        let answer = self.exchange(request).await?;
        if !(200..300).contains(&answer.status) {
            // Small answers are still there behind the head.
            let body = self.buffer.get(self.head..).unwrap_or_default();
            let body = String::from_utf8_lossy(body.get(..answer.body_bytes.min(300)).unwrap_or(body));
            bail!("the server answered {}: {body}", answer.status);
        }
        Ok(answer)
    }

    /// The last answer's body, if all of it came with the head, as small ones do.
    pub(crate) fn small_body(&self, answer: &Answer) -> Option<&str> {
        std::str::from_utf8(self.buffer.get(self.head..self.head + answer.body_bytes)?).ok()
    }

    /// A header of the last answer.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(self.buffer.get(..self.head)?).ok()?;
        head.split("\r\n").skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    async fn read(&mut self, from: usize) -> Result<usize> {
        let room = self.buffer.get_mut(from..).unwrap_or_default();
        match self.stream.read(room).await? {
            0 => bail!("the server closed the connection"),
            n => Ok(n),
        }
    }
}

/// A GET request.
pub(crate) fn get(address: SocketAddr, path: &str, if_none_match: Option<&str>) -> Vec<u8> {
    let condition = if_none_match.map(|tag| format!("If-None-Match: {tag}\r\n")).unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{condition}\r\n").into_bytes()
}

/// A POST request; `headers` are whole lines.
pub(crate) fn post(address: SocketAddr, path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}
