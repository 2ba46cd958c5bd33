//! What makes events, and the stamp each carries: a `~`, which occurs nowhere else, and the nanosecond at which
//! its request was made. A single byte is a marker that no read can cut in two.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::measure::now_nanos;
use crate::wire;

/// Begins a stamp.
pub(crate) const MARK: u8 = b'~';
/// Digits of a stamp.
const DIGITS: usize = 19;

/// Text of this length that begins with a stamp of now.
pub(crate) fn stamped(length: usize) -> String {
    let mut text = format!("~{:019}", now_nanos());
    text.extend(std::iter::repeat_n('x', length.saturating_sub(text.len())));
    text
}

/// Finds stamps in bytes that arrive in pieces.
#[derive(Default)]
pub(crate) struct Stamps {
    /// The digits of a stamp that is not complete, and how many.
    open: Option<(u64, usize)>,
}

impl Stamps {
    pub(crate) fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(u64)) {
        loop {
            let (mut value, mut digits) = match self.open.take() {
                Some(open) => open,
                None => match memchr::memchr(MARK, bytes) {
                    Some(at) => {
                        bytes = bytes.get(at + 1..).unwrap_or_default();
                        (0, 0)
                    }
                    None => return,
                },
            };
            while digits < DIGITS {
                let Some((first, rest)) = bytes.split_first() else {
                    self.open = Some((value, digits));
                    return;
                };
                value = value * 10 + u64::from(first.wrapping_sub(b'0').min(9));
                digits += 1;
                bytes = rest;
            }
            found(value);
        }
    }
}

/// Makes the requests that become events.
pub(crate) struct Publisher {
    address: SocketAddr,
    kind: Kind,
    size: usize,
    serial: AtomicU64,
}

enum Kind {
    /// Rows of the demo's `pages`; the text tells this publisher's ids from others.
    Pages(String),
    /// Appends to so many stored streams in turn.
    Stored(usize),
    /// The body as it is, to the baseline.
    Bare,
}

impl Publisher {
    /// New rows of `pages` with contents of this size.
    pub(crate) fn pages(address: SocketAddr, size: usize) -> Publisher {
        let kind = Kind::Pages(format!("b{:x}", now_nanos()));
        Publisher { address, kind, size, serial: AtomicU64::new(0) }
    }

    /// Appends of this size to stored streams.
    pub(crate) fn stored(address: SocketAddr, size: usize, streams: usize) -> Publisher {
        Publisher { address, kind: Kind::Stored(streams), size, serial: AtomicU64::new(0) }
    }

    /// Bodies of this size for the baseline.
    pub(crate) fn bare(address: SocketAddr, size: usize) -> Publisher {
        Publisher { address, kind: Kind::Bare, size, serial: AtomicU64::new(0) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request, stamped now.
    pub(crate) fn request(&self) -> Vec<u8> {
        let text = stamped(self.size);
        match &self.kind {
            Kind::Bare => wire::post(self.address, "/publish", "", &text),
            Kind::Stored(streams) => {
                let serial = self.serial.fetch_add(1, Ordering::Relaxed);
                let stream = serial % u64::try_from(*streams).unwrap_or(1).max(1);
                let path = format!("/v1/stream/bench-{stream}");
                wire::post(self.address, &path, "Content-Type: text/plain\r\n", &text)
            }
            Kind::Pages(run) => {
                let serial = self.serial.fetch_add(1, Ordering::Relaxed);
                let body = format!(
                    "{{\"id\":\"{run}-{serial:08}\",\"organization_id\":\"bench\",\"name\":\"Bench\",\"content\":\"{text}\"}}"
                );
                let headers = format!(
                    "Content-Type: application/json\r\nX-Transaction-Id: {run}-{serial:08}\r\nX-Client-Id: bench\r\n"
                );
                wire::post(self.address, "/v1/entities/pages", &headers, &body)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_however_the_bytes_are_cut() {
        let text = "abc~0000000000000000042xx~1000000000000000007~0000000000000000001";
        for cut in 1..text.len() {
            let mut found = Vec::new();
            let mut stamps = Stamps::default();
            for piece in text.as_bytes().chunks(cut) {
                stamps.scan(piece, |stamp| found.push(stamp));
            }
            assert_eq!(found, [42, 1_000_000_000_000_000_007, 1], "{cut}");
        }
        assert_eq!(stamped(500).len(), 500);
    }
}
