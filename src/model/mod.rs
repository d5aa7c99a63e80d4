//! The rules: pure functions over plain data. No async, no I/O, no locks, no clock.

pub mod accept;
pub mod api_service;
pub mod attributes;
pub mod availability;
pub mod duration;
pub mod endpoints;
pub mod expiry;
pub mod fault;
pub mod field_error;
pub mod health;
pub mod history;
pub mod impersonation;
pub mod list_options;
pub mod negotiated;
pub mod order;
pub mod query;
pub mod rejection;
pub mod remedy;
pub mod request_info;
pub mod routing_table;
pub mod selector;
pub mod table;
pub mod upgrade;
pub mod user;
pub mod watch_events;
pub mod watcher;
