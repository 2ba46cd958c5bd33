//! Bourn turns the tables of an application's database into HTTP streams.
//!
//! Data flows one way: a writer changes a table; *capture* ([`storage`]) turns the change into an activity of
//! the *log*; the *tail* ([`tail`]) encodes it once and keeps it in memory; *read sessions* ([`read`]) serve
//! it, from the tail or from the log; the *renderers* ([`http`]) put it on the wire. A module knows what is
//! before it in that sentence, never what is after it.

pub mod config;
pub mod entity;
pub mod http;
mod log_text;
pub mod read;
pub mod server;
pub mod stopping;
pub mod storage;
pub mod subscriptions;
pub mod supervisor;
pub mod tail;
pub mod telemetry;
