//! Stored streams: streams that clients create and append to themselves, by the Durable Streams protocol. Their
//! paths, offsets, content types, lifetimes and chunks; parsed once at the edge, and handed inwards as types.

pub mod chunk;
mod content;
pub mod glob;
pub mod lifetime;
mod messages;
mod offset;
mod path;

pub use content::{ContentType, Form};
pub use lifetime::Lifetime;
pub use messages::{NotJson, Payload};
pub use offset::StreamOffset;
pub use path::{RESERVED, ROOT, StreamPath};

/// Why a header or a path was refused, as words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub &'static str);
