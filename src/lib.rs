//! portico

pub mod auth;
pub mod body;
pub mod control;
pub mod demo;
pub mod frontend;
pub mod model;
pub mod runtime;
pub mod store;
pub mod tls;
pub mod upstream;
