//! Services: which endpoints a virtual address leads to, as this node sees it.
//!
//! ```text
//!  services, slices --Change--> Catalog --touched--> ServiceTable --changed frontends--> maps
//! ```
//!
//! The datapath picks an endpoint of a [`Frontend`] for each new flow, and policy judges that endpoint (semantics
//! 10). What has no [`Balance`] here is left to kube-proxy and judged as a plain address: headless services, those
//! without usable endpoints, node ports, load balancers with a firewall.

mod catalog;
mod derive;
mod left;
mod table;

pub use catalog::Catalog;
pub use derive::complete;
pub use left::{LeftAnswer, answer_left};
pub use table::{Backend, BackendState, Balance, Dispute, Frontend, ServiceTable};
