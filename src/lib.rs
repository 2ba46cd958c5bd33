//! Bourn.
