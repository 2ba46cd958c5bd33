//! Background tasks: what watches them, and the order to stop that reaches them.

pub mod stopping;
pub mod supervisor;
