//! What must hold for any bytes at all: the parsers of requests never panic and give back what they took, and no payload
//! breaks out of its event. The fuzzer calls these with what it finds, `protocol/tests/fuzzing.rs` with what it draws.

use bourn_protocol::cursor::Cursor;
use bourn_protocol::query::{Query, StreamRead};
use bourn_protocol::sse::{Control, push_control, push_data};
use bourn_protocol::stored::{Form, Lifetime, Payload, glob};
use bourn_protocol::{ContentType, Offset, StreamOffset, StreamPath};
use bytes::Bytes;

/// Paths, queries, headers and bodies.
pub fn requests(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(path) = StreamPath::decode(&text) {
        assert_eq!(StreamPath::of_url_path(&path.url_path()), Ok(path.clone()));
        assert!(path.as_str().split('/').all(|segment| !matches!(segment, "" | "." | "..")));
        assert!(glob::matches("**", path.as_str()));
    }
    let (pattern, path) =
        text.split_at(text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at));
    let _ = glob::matches(pattern, path);
    if let Ok(query) = Query::parse(Some(&text)) {
        let _ = StreamRead::<Offset>::parse(&query);
        let _ = StreamRead::<StreamOffset>::parse(&query);
    }
    if let Ok(offset) = text.parse::<StreamOffset>() {
        assert_eq!(offset.to_string(), text);
    }
    if let Ok(content_type) = ContentType::new(&text) {
        assert!(content_type.as_str().is_ascii());
        let _ = content_type.form();
    }
    let _ = Lifetime::parse(Some(&text), None);
    if let Ok(lifetime) = Lifetime::parse(None, Some(&text)) {
        let _ = lifetime.deadline(0);
    }
    json(data);
}

/// An array's elements are its messages, and any number of them is a prefix.
fn json(data: &[u8]) {
    let Ok(payload) = Payload::take(Form::Json, Bytes::copy_from_slice(data)) else { return };
    let array = [b"[", &payload.data[..], b"]"].concat();
    let messages: Vec<Box<serde_json::value::RawValue>> =
        serde_json::from_slice(&array).expect("what is stored is what an array is made of");
    assert_eq!(messages.len(), payload.messages);
    assert!(!payload.data.contains(&b'\n') && !payload.data.contains(&b'\r'));
    for count in 1..=payload.messages.min(4) {
        let part = Payload::prefix(Form::Json, &payload.data, count as u64).expect("it has so many");
        assert!(payload.data.starts_with(&part.data) && part.messages == count);
    }
}

/// Events: whatever the payload is, a browser reads one data event and one control event.
pub fn events(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut frame = Vec::new();
    push_data(&mut frame, text.as_bytes());
    let data_events = frame.len();
    let cursor = Cursor::parse("1").expect("a number is a cursor");
    let closed = data.len().is_multiple_of(2);
    push_control(&mut frame, Control { next: StreamOffset::START.into(), cursor, up_to_date: true, closed });
    assert!(!frame.contains(&b'\r') && !frame.contains(&0));
    let blank = |frame: &[u8]| frame.windows(2).filter(|pair| pair == b"\n\n").count();
    assert_eq!((blank(&frame[..data_events]), blank(&frame)), (1, 2), "two events, and no more");
    let lines = frame[..data_events].split(|&byte| byte == b'\n');
    assert!(
        lines.clone().all(|line| line.is_empty() || line == b"event: data" || line.starts_with(b"data:"))
    );
}
