//! Bourn turns the tables of an application's database into HTTP streams.
//!
//! Data flows one way: a writer changes a table; *capture* ([`databases`]) turns the change into an activity of the *log*
//! ([`feed`]); the *tail* ([`feed::tail`]) encodes it once and keeps it in memory; *read sessions* ([`feed::session`],
//! [`streams::session`]) serve it, from the tail or from the log; the *renderers* ([`http`]) put it on the wire. A module
//! knows what is before it in that sentence, never what is after it.

pub mod access;
pub mod capture;
pub mod config;
pub mod databases;
pub mod feed;
pub mod head;
pub mod http;
mod outbound;
pub mod reading;
pub mod serve;
pub mod storage_error;
pub mod streams;
pub mod tasks;
pub mod telemetry;
