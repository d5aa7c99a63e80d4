//! portico, an aggregation layer for Kubernetes APIs. This page is THE MAP.
//!
//! # The two ways
//!
//! A **request** goes one way, and that way is one function, `proxy::Connection::try_handle`:
//!
//! ```text
//! socket -> frontend (accept, TLS, HTTP/1.1 or HTTP/2) -> proxy::Connection::handle
//!   RequestInfo -> authenticate -> RoutingTable::lookup -> impersonate -> authorize -> Permit
//!     Documents -> aggregate (ready bytes)     Objects -> store::rest     Own -> admin
//!     Remote    -> proxy::forward -> upstream::Pool -> balance -> connection -> body streamed back
//!     Core      -> proxy::core, which defers to kube-apiserver what is allowed, then the same way
//!       (an upgrade: proxy::upgrade -> a connection of its own -> a tunnel)
//!   -> outcome: one set of counters, one log line        (any step may end in one Rejection)
//! ```
//!
//! Where `authenticate`, `impersonate` or `authorize` need somebody else's word, the answer is looked
//! up, or else asked for in a box of its own: `auth::{token_review, access_review}`.
//!
//! A **change in the cluster** goes the other way, and that way is one loop, `control::Control::run`:
//!
//! ```text
//! manifests, cluster -> store -> control loop -> model::{endpoints, availability} decide
//!   -> RoutingTable --publish--> proxy, aggregate       -> status of APIServices -> store
//! ```
//!
//! Whether backends are available is asked by `control::prober::Prober::run`, where callers' answers do
//! not tell:
//!
//! ```text
//! RoutingTable, endpoints that come, go, die or come back, the clock -> Plan decides whom to ask
//!   -> round asks, model::probing judges -> control loop
//! ```
//!
//! What they serve is asked by a loop of its own, `aggregate::aggregator::Aggregator::run`:
//!
//! ```text
//! RoutingTable, doubts, the clock -> Known decides whom to ask -> fetch -> Known decides what is shown
//!   -> Assembly (blocks of ready JSON and gzip) -> Published --publish--> proxy
//! ```
//!
//! # The parts, and who may import whom
//!
//! `tests/tidy.rs` checks this table; `model`, `runtime` and `body` are open to every part.
//!
//! | part | what it is | may import |
//! |---|---|---|
//! | `model` | the rules: pure functions over plain data; no async, I/O, locks or clock | nothing |
//! | `runtime` | snapshots, named tasks, followed files, the program's life, metrics | nothing |
//! | `body` | one body for all that is carried; an abort is never an end | nothing |
//! | `tls` | key pairs and authorities, both TLS configurations | `runtime` |
//! | `frontend` | listener, data-plane threads, client connections, limits | `tls` |
//! | `auth` | who is calling, and the `Permit` | `tls`, `upstream` |
//! | `upstream` | backends, endpoints, each thread's pool of connections | `tls` |
//! | `store` | versioned objects with watch history, and their REST API | |
//! | `aggregate` | asks backends what they serve; one merged discovery of it | `upstream` |
//! | `control` | the loop, what it follows: manifests, a cluster; who asks backends whether they are available | `tls`, `store`, `upstream` |
//! | `proxy` | the pipeline, headers, forwarding, outcome | `auth`, `upstream`, `aggregate`, `store`, `admin` |
//! | `admin` | health, index, version, metrics, what is inside | `tls`, `upstream` |
//! | `demo` | two toy extension API servers | `tls` |
//! | `config` | kube-apiserver's flags and the file with the same settings, for each part | each part's `Config` |
//! | `app` | puts the parts together; the only part that knows them all | everything |
//! | `cli` | the command line | everything |
//!
//! # What always holds
//!
//! * One writer per state; readers hold an immutable snapshot, taken once a request.
//! * No lock is held over an `.await` (but for the turn of who asks the DNS); data-plane threads share
//!   snapshots, counters, endpoints' atomics and kept reviews, and nothing that a request would wait for
//!   but a review under way, half a second at most before its own thread asks.
//! * Nothing is forwarded or served without a `Permit`, or a `Deferral` to kube-apiserver, and only
//!   `auth` makes them.
//! * A request that ends here ends in a `Rejection`: a code, a reason, one word for its cause.
//! * A backend that is dead delays no answer that does not need it.
//! * A request is tried again only where its backend provably never acted on it, or only reads.

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
