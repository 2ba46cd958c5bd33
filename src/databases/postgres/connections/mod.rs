//! Connections: the pools, what their sessions are set to, and who may use one.

mod connect;
mod session;
mod turns;

pub(super) use connect::{APPLICATION, Db, scalar, statement};
pub(super) use session::{Session, broken, timed_out};
pub(super) use turns::Turns;
