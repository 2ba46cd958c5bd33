//! The wire contract of Bourn, with no I/O: the types that cross the wire, their parsers, their encoders
//! and the limits. Storage fills these types, the HTTP layer renders them; neither invents bytes of its own.
//!
//! `PROTOCOL.md` beside this crate says in prose what the modules say in code; `openapi.json` is generated
//! by [`openapi`] and held as a golden file.

pub mod activity;
pub mod cache;
pub mod chunk;
pub mod cursor;
pub mod error;
pub mod headers;
pub mod ids;
pub mod json;
pub mod limits;
pub mod offset;
pub mod openapi;
pub mod percent;
pub mod place;
pub mod query;
pub mod selector;
pub mod sse;
pub mod stored;

pub use activity::{Action, ActivityRef, Last, MessageKind, Wording};
pub use error::{ErrorBody, ErrorCode};
pub use ids::{ClientId, EntityKey, Scope, TransactionId};
pub use offset::{Epoch, Offset, ReadFrom, Seq};
pub use place::Place;
pub use selector::{EntityTypes, Selector};
pub use stored::{ContentType, StreamOffset, StreamPath};
