//! Connections: the pools, the settings of their sessions, and the turns that requests take.

mod connect;
mod session;
mod turns;

pub(super) use connect::{APPLICATION, Db, scalar, statement};
pub(super) use session::{Session, broken, timed_out};
pub(super) use turns::Turns;
