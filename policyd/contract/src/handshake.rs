//! What plugin and policyd say to each other on `/run/podgate/cni.sock`: one JSON line each way.
//!
//! The registration itself is in the `endpoints` map, which outlives both; a line only names it. So a
//! lost line costs time, never state: policyd finds every registered endpoint in the map.

use serde::{Deserialize, Serialize};

/// Where policyd listens for the plugin unless the network configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/podgate/cni.sock";

/// Longest line either side accepts, bytes: a peer that never ends its line must not fill memory.
pub const MAX_LINE: usize = 64 * 1024;

/// The plugin's line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// "These endpoints are registered and gated: answer when their policy is in force."
    #[serde(rename_all = "camelCase")]
    Add {
        /// CNI_CONTAINERID.
        container_id: String,
        /// The host veths of the sandbox's interfaces.
        endpoints: Vec<EndpointRef>,
    },
    /// "These endpoints are gone." policyd drops their policy maps; the answer is at once.
    #[serde(rename_all = "camelCase")]
    Del {
        /// CNI_CONTAINERID.
        container_id: String,
        /// What was removed; may be empty.
        endpoints: Vec<EndpointRef>,
    },
    /// "Are you ready?" for the STATUS verb.
    Status,
}

/// One registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRef {
    /// The host veth.
    pub ifindex: u32,
    /// `pg_endpoint.owner`: distinguishes this registration from an earlier one with the same ifindex.
    pub owner: u32,
}

/// policyd's line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Response {
    /// To `add`: the policy of every named endpoint is in force. To `del` and `status`: done, ready.
    Ok,
    /// Not yet, and policyd gives up waiting before the plugin does: the endpoint stays in its startup state.
    Pending {
        /// What is missing, e.g. "pod default/web is not known to any source".
        reason: String,
    },
    /// The line was not understood or the endpoint could not be programmed.
    Error {
        /// "verb object: cause".
        message: String,
    },
}
