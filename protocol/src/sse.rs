//! Server-sent events: the frames of Durable Streams protocol section 5.8, with the `id:` that lets a native
//! `EventSource` resume. It stands on the control event, so a batch that was cut off comes again.
//!
//! The official suite is exact about spaces: one after `event:`, none after `data:`.

use crate::cursor::Cursor;
use crate::json::push_number;
use crate::place::Place;

/// What a control event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// The place after the data just sent.
    pub next: Place,
    /// The cursor for the reconnect.
    pub cursor: Cursor,
    /// Nothing more is in the stream now.
    pub up_to_date: bool,
    /// Nothing more will ever be in the stream: there is nothing to reconnect for.
    pub closed: bool,
}

/// Appends a `data` event. The payload's line ends become further `data:` lines, so no payload can end the
/// event or begin another; NUL, which some parsers choke on, cannot occur in JSON and is dropped elsewhere.
pub fn push_data(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(b"event: data\n");
    push_lines(out, payload);
    out.push(b'\n');
}

/// Appends a `control` event with its `id:`.
pub fn push_control(out: &mut Vec<u8>, control: Control) {
    let next = control.next.to_string();
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(next.as_bytes());
    out.extend_from_slice(b"\nevent: control\ndata:{\"streamNextOffset\":\"");
    out.extend_from_slice(next.as_bytes());
    out.push(b'"');
    if control.closed {
        out.extend_from_slice(b",\"streamClosed\":true");
    } else {
        out.extend_from_slice(b",\"streamCursor\":\"");
        push_number(out, control.cursor.get());
        out.push(b'"');
    }
    if control.up_to_date {
        out.extend_from_slice(b",\"upToDate\":true");
    }
    out.extend_from_slice(b"}\n\n");
}

/// Appends a reconnect hint.
pub fn push_retry(out: &mut Vec<u8>, millis: u64) {
    out.extend_from_slice(b"retry: ");
    push_number(out, millis);
    out.extend_from_slice(b"\n\n");
}

/// Appends a reconnect hint and the place to resume at: a browser remembers an id also where no data comes with it.
pub fn push_retry_at(out: &mut Vec<u8>, millis: u64, place: Place) {
    out.extend_from_slice(b"retry: ");
    push_number(out, millis);
    out.extend_from_slice(b"\nid: ");
    out.extend_from_slice(place.to_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// Appends the event that says when the reader's token expires: a client renews it and reconnects.
pub fn push_auth(out: &mut Vec<u8>, expires_in_secs: u64) {
    out.extend_from_slice(b"event: auth\ndata:{\"expiresIn\":");
    push_number(out, expires_in_secs);
    out.extend_from_slice(b"}\n\n");
}

/// What stands before a payload of one line, and what after it, in a `data` event.
pub const DATA_BEGIN: &[u8] = b"event: data\ndata:";
/// See [`DATA_BEGIN`].
pub const DATA_END: &[u8] = b"\n\n";

/// Whether a payload may stand between [`DATA_BEGIN`] and [`DATA_END`] as it is.
#[must_use]
pub fn is_one_line(payload: &[u8]) -> bool {
    memchr::memchr3(b'\n', b'\r', 0, payload).is_none()
}

/// A comment line that keeps an idle connection alive.
pub const HEARTBEAT: &[u8] = b":\n\n";

fn push_lines(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(b"data:");
    let mut rest = payload;
    while let Some(end) = memchr::memchr3(b'\n', b'\r', 0, rest) {
        out.extend_from_slice(&rest[..end]);
        rest = match &rest[end..] {
            [b'\r', b'\n', more @ ..] | [b'\r' | b'\n', more @ ..] => {
                out.extend_from_slice(b"\ndata:");
                more
            }
            nul => &nul[1..],
        };
    }
    out.extend_from_slice(rest);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offset::{Offset, Seq};
    use proptest::prelude::*;

    #[test]
    fn a_batch_is_a_data_event_and_a_control_event_that_carries_the_id() {
        let mut out = Vec::new();
        push_data(&mut out, b"[{\"a\":1}]");
        let next = Offset::new("k3f9".parse().unwrap(), Seq::new(1234).unwrap()).into();
        let cursor = Cursor::parse("1234").unwrap();
        push_control(&mut out, Control { next, cursor, up_to_date: true, closed: false });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "event: data\ndata:[{\"a\":1}]\n\n\
             id: k3f9_0000000000001234\nevent: control\n\
             data:{\"streamNextOffset\":\"k3f9_0000000000001234\",\"streamCursor\":\"1234\",\"upToDate\":true}\n\n"
        );
    }

    #[test]
    fn the_end_of_a_closed_stream_gives_no_cursor_to_come_back_with() {
        let mut out = Vec::new();
        let next = crate::StreamOffset { position: Seq::new(5).unwrap(), owner: 7 }.into();
        let cursor = Cursor::parse("1234").unwrap();
        push_control(&mut out, Control { next, cursor, up_to_date: true, closed: true });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "id: 0000000000000005_0000000000000007\nevent: control\ndata:{\"streamNextOffset\":\
             \"0000000000000005_0000000000000007\",\"streamClosed\":true,\"upToDate\":true}\n\n"
        );
    }

    #[test]
    fn a_payload_of_one_line_may_be_framed_without_copying_it() {
        let mut whole = Vec::new();
        push_data(&mut whole, b"[1]");
        assert!(is_one_line(b"[1]") && !is_one_line(b"[\n1]"));
        assert_eq!(whole, [DATA_BEGIN, b"[1]", DATA_END].concat());
    }

    /// The data of the one event that a browser would read (HTML standard, 9.2.6).
    fn browser_reads(frame: &[u8]) -> Option<Vec<u8>> {
        let mut data: Option<Vec<u8>> = None;
        let text: Vec<u8> = frame.to_vec();
        for line in text.split(|&b| b == b'\n') {
            assert!(!line.contains(&b'\r'));
            if let Some(rest) = line.strip_prefix(b"data:") {
                match &mut data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend_from_slice(rest);
                    }
                    None => data = Some(rest.to_vec()),
                }
            }
        }
        data
    }

    proptest! {
        #[test]
        fn no_payload_breaks_out_of_its_event(payload in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(0_u8), any::<u8>()], 0..60)) {
            let mut frame = Vec::new();
            push_data(&mut frame, &payload);
            prop_assert!(frame.ends_with(b"\n\n") && !frame[..frame.len() - 2].windows(2).any(|pair| pair == b"\n\n"));
            let mut expected = Vec::new();
            // A NUL between CR and LF keeps them apart; elsewhere it leaves no trace.
            let mut i = 0;
            while i < payload.len() {
                match payload[i] {
                    0 => {}
                    b'\r' => { expected.push(b'\n'); if payload.get(i + 1) == Some(&b'\n') { i += 1; } }
                    byte => expected.push(byte),
                }
                i += 1;
            }
            prop_assert_eq!(browser_reads(&frame), Some(expected));
        }
    }
}
