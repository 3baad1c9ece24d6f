//! What accounted pods exchange with whom.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Direction;

/// The query of `GET /v1/usage`; what is absent does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageQuery {
    /// `namespace/pod`: only of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Only this many, those with the most bytes; the sum of the rest is `other`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<usize>,
}

/// `GET /v1/usage`: what accounted pods of this node exchanged with whom, since they are accounted. Counted in the kernel, over
/// restarts of policyd too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// By pod, the one with the most bytes first.
    pub pods: Vec<PodUsage>,
    /// The sum of those that are left out of `pods`; absent if none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<OtherUsage>,
}

/// What one pod exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUsage {
    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub pod: String,
    /// By scope and direction; what there was nothing of is left out.
    pub traffic: Vec<ScopeTraffic>,
}

/// What several pods exchanged, together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherUsage {
    /// How many.
    pub pods: usize,
    /// As of one pod.
    pub traffic: Vec<ScopeTraffic>,
}

/// Packets between pods of this node and one scope, in one direction. Those that podgate dropped are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeTraffic {
    /// Where the other end was when the flow began, or was last revalidated.
    pub scope: Scope,
    /// Seen from the pod.
    pub direction: Direction,
    /// Packets on the wire.
    pub packets: u64,
    /// Their bytes, with link headers.
    pub bytes: u64,
    /// Flows that began in this direction.
    pub flows: u64,
}

/// What kind of place the other end of a pod's traffic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// A pod on the same node.
    SameNode,
    /// A pod on another node of the same zone.
    SameZone,
    /// A pod on a node of another zone.
    OtherZone,
    /// A pod whose node, or the zone of it or of this node, is not known.
    Cluster,
    /// An address of a node, of this one too; pods that use its network are the node.
    Node,
    /// Anything else: outside of the cluster.
    External,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SameNode => "same-node",
            Self::SameZone => "same-zone",
            Self::OtherZone => "other-zone",
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::External => "external",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_text_of_a_scope_are_the_same_word() {
        use Scope::*;
        for scope in [SameNode, SameZone, OtherZone, Cluster, Node, External] {
            assert_eq!(serde_json::to_string(&scope).unwrap(), format!("\"{scope}\""));
        }
    }
}
