//! portico

pub mod control;
pub mod model;
pub mod runtime;
pub mod store;
pub mod upstream;
