//! The limits of every listener: number of connections, time, size of a request, and the descriptors that all of them
//! together can use.
//!
//! | listener | connections | when there are more |
//! |---|---|---|
//! | metrics and health, TCP | [`ConnectionLimit`]: for the node itself, for all others, for each address | the connection is closed |
//! | `api.sock` | [`API_CONNECTIONS`], of which [`API_STREAMS`] streams | the client waits in the backlog |
//! | `cni.sock` | [`CNI_CONNECTIONS`] | the plugin waits in the backlog, until its own deadline |
//!
//! No listener can use up the descriptors of another: each has its limit, and [`descriptors::raise`] raises that of the
//! process to their sum. One connection carries one request, so there are no idle connections.

mod accept;
mod connection_limit;
pub mod descriptors;
mod http;

use std::time::Duration;

pub use accept::{accept_tcp, accept_unix};
pub use connection_limit::{ConnectionLimit, ConnectionPermit};
pub use http::{Streaming, serve_tcp, serve_unix};

/// Connections of the node itself (kubelet's probes) to the metrics port, which no other client can take.
pub const METRICS_FROM_NODE: usize = 16;
/// Connections of all others to the metrics port.
pub const METRICS_FROM_OTHERS: usize = 128;
/// Connections of one other address to the metrics port.
pub const METRICS_FROM_ONE: usize = 8;
/// Connections to `api.sock`.
pub const API_CONNECTIONS: usize = 32;
/// Of those, streams of verdicts: they last as long as their client.
pub const API_STREAMS: usize = 16;
/// Connections to `cni.sock`: more than a node starts pods at once.
pub const CNI_CONNECTIONS: usize = 256;

/// How long a request may take at one listener, and how much it may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connection to the last byte of the request's head.
    pub head: Duration,
    /// From the connection to the last byte of the response, except for [`Streaming`] ones.
    pub request: Duration,
    /// Bytes of the request's head.
    pub head_bytes: usize,
    /// Bytes of the request's body.
    pub body_bytes: usize,
}

impl Limits {
    /// Of the metrics port: requests without a body.
    pub const METRICS: Self = Self {
        head: Duration::from_secs(5),
        request: Duration::from_secs(15),
        head_bytes: 8 << 10,
        body_bytes: 1 << 10,
    };
    /// Of `api.sock`: a policy as large as an API server accepts, and a response that waits until it is in force.
    pub const API: Self = Self {
        head: Duration::from_secs(5),
        request: Duration::from_secs(60),
        head_bytes: 16 << 10,
        body_bytes: 2 << 20,
    };
}
