//! `/v1/services`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An item of `GET /v1/services`: one address and port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFrontend {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// What pods send to.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What becomes of packets to it.
    pub state: ServiceState,
    /// Why, unless they are translated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Its number in the kernel's maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// For how many seconds a client keeps its endpoint; 0: not at all.
    pub affinity_seconds: u32,
    /// Where it leads.
    pub endpoints: Vec<ServiceEndpoint>,
    /// What the service says that does not decide here, such as `trafficDistribution`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What becomes of packets to a service's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// They go to one of its endpoints, which policy judges.
    Translated,
    /// They are not translated here; allowed where policy allows every endpoint that they may lead to behind the gate.
    Alone,
    /// The maps do not hold what they should.
    Degraded,
}

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// The pod, if it is one that policyd knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Which flows it is for.
    pub state: BackendState,
}

/// Which flows an endpoint of a service is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Those that it has: it is not selected for new ones.
    Serving,
    /// New ones too.
    Ready,
}
