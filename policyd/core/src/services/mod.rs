//! Services: which endpoints a virtual address leads to, as this node sees it.
//!
//! ```text
//!  services, slices --Change--> Catalog --touched--> ServiceTable --changed frontends--> maps
//! ```
//!
//! The datapath picks an endpoint of a [`Frontend`] for each new flow, and policy judges that endpoint (semantics
//! 10). What it does not translate although something behind it may is [`Left`] alone, and judged by every endpoint that
//! it may lead to: node ports, load balancers with source ranges, services of other proxies, those without an endpoint.
//! Headless services have no address, so there is nothing to say of them.

mod backends;
mod catalog;
mod derive;
mod frontend;
mod left;
mod table;

pub use catalog::Catalog;
pub use derive::complete;
pub use frontend::{Backend, BackendState, Balance, Dispute, Frontend};
pub use left::{Claims, Left, LeftAnswer, LeftPorts, LeftReason, LeftSet, answer_left};
pub use table::{ServiceTable, View};
