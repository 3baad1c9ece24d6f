//! Services: which endpoints a virtual address leads to, as this node sees it.
//!
//! ```text
//!  services, slices --Event--> Catalog --touched--> ServiceTable --changed frontends--> maps
//! ```
//!
//! The datapath selects a backend of a [`Frontend`] for each new flow, and policy is applied to that backend (semantics
//! 10). Service addresses that it does not translate, although kube-proxy or another proxy may, are [`Untranslated`]:
//! node ports, load balancers with source ranges, services of other proxies, services without an endpoint. A packet to
//! one of those is allowed if policy allows every backend that it may reach. Headless services have no address.

mod affinity;
mod backends;
mod catalog;
mod frontend;
mod locality;
mod stable_hash;
mod synthesize;
mod table;
mod vip_policy;

pub use affinity::AffinityNumbers;
pub use catalog::Catalog;
pub use frontend::{Backend, BackendSet, Dispute, Frontend};
pub use podgate_contract::api::BackendState;
use stable_hash::stable_hash;
pub use synthesize::synthesize;
pub use table::{NodeContext, ServiceTable};
pub use vip_policy::{
    Claims, Untranslated, UntranslatedPorts, UntranslatedReason, UntranslatedSet, VipVerdict,
    vip_verdict,
};
