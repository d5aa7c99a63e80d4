//! The rules: pure functions over plain data. No async, no I/O, no locks, no clock.

pub mod api_service;
pub mod availability;
pub mod endpoints;
pub mod fault;
pub mod order;
pub mod rejection;
pub mod request_info;
pub mod routing_table;
pub mod user;
