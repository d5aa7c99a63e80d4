//! portico

pub mod body;
pub mod frontend;
pub mod model;
pub mod runtime;
pub mod tls;
pub mod upstream;
