//! `portico bench`: what discovery costs at any aggregator, and how soon it shows changes.

pub mod fleet;
pub mod register;
