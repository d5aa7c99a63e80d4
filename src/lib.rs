//! portico

pub mod demo;
pub mod model;
pub mod runtime;
pub mod upstream;
