//! portico

pub mod admin;
pub mod aggregate;
pub mod app;
pub mod auth;
pub mod body;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod frontend;
pub mod model;
pub mod proxy;
pub mod runtime;
pub mod store;
pub mod tls;
pub mod upstream;
