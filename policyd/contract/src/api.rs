//! The JSON of the API, version 1, by route. `podgatectl` reads with the same types that policyd writes with.

mod audit;
mod cluster_policies;
mod counters;
mod endpoints;
mod enforcement;
mod explain;
mod flows;
mod limits;
mod pod_traffic_policies;
mod policies;
mod rules;
mod services;
mod status;
mod usage;
mod verdict;

use serde::{Deserialize, Serialize};

pub use audit::{Audit, AuditQuery, AuditedFlows};
pub use cluster_policies::{ClusterPolicy, ClusterPolicyChange, ClusterPolicyName};
pub use counters::{Counters, PacketCount, RuleCount};
pub use endpoints::{
    Allowed, Endpoint, EndpointDetail, EndpointShare, EndpointState, EntryVerdict, Isolation,
    PeerSet,
};
pub use enforcement::{Enforcement, EnforcementMode, EnforcementState};
pub use explain::{
    EndpointAnswer, ExplainQuery, Explanation, FailedOn, GateAnswer, NearestRule, PathAnswer,
};
pub use flows::{FlowEvent, FlowService};
pub use limits::{
    Limit, LimitOrigin, LimitUse, LimitValue, OnExceed, OverriddenLimit, PodLimits, RefusedPackets,
    RuleLimit, TrafficRule,
};
pub use pod_traffic_policies::PodTrafficPolicy;
pub use policies::{ChangeKind, NewPolicyMode, Policy, PolicyChange, PolicyMode, PolicyName};
pub use rules::{
    DefaultMode, Defaults, LocalRule, NewRule, NodeRules, PodRules, RuleAction, RuleChange,
    RuleQuery, RuleSpec, RulesRemoved,
};
pub use services::{BackendState, ServiceEndpoint, ServiceFrontend, ServiceState};
pub use status::{
    EndpointCounts, FlowTableUse, FlowTables, KernelLack, KindCount, MapCounts, NewPods,
    ObjectCounts, ServiceCounts, SourceStatus, Status, UnenforcedPod, WatchStatus,
};
pub use usage::{OtherUsage, PodUsage, Scope, ScopeTraffic, Usage, UsageQuery};
pub use verdict::{Direction, Verdict};

/// Where policyd listens unless its options say otherwise.
pub const DEFAULT_SOCKET: &str = "/run/podgate/api.sock";

/// Why a request was refused; the body of every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// "verb object: cause".
    pub error: String,
    /// The field of the body or the query that is wrong, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
