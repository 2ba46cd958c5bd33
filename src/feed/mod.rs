//! The feed of tables, without SQL: entity types, the log of their changes, and what is read from it and written to it. A
//! database implements [`Log`], [`Tables`], [`Writer`] and [`Capture`]; the live [`tail`] and read [`session`]s stand on
//! them.

pub mod entity;
mod log;
pub(crate) mod mutation;
pub(crate) mod retention;
pub mod session;
pub(crate) mod stamps;
mod status;
mod tables;
pub mod tail;
pub(crate) mod undo;

pub(crate) use log::TOUCHED_MAX;
pub use log::{Activity, ActivityQuery, Gained, Log, ReadLosses, TransactionRecord, TransactionState};
pub use mutation::{Dependent, Fingerprint, Mutation, Operation, Undone, WriteError, Written};
pub use status::{Capture, CaptureStatus, Condition, SlotStatus};
pub use tables::{ListPage, ListQuery, Tables, Writer};
