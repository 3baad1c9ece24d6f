//! The lab's node: a bridge for the pods, and one more namespace for everybody who is not on the node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::error::Result;
use super::netlink::Netlink;
use super::plan::Plan;
use super::sandbox::{self, Sandbox, host_bits};

/// The bridge of the chain's configuration.
pub(crate) const BRIDGE: &str = "cni0";
/// The node's end of the link to the outside, and the other one.
const UPLINK: &str = "uplink";
const OUTSIDE_LINK: &str = "eth0";
/// Name of the namespace outside; no pod's, since those have a slash turned into a dot.
const OUTSIDE: &str = "outside";

/// The node's network, up and forwarding.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where externals live.
    pub outside: Arc<Sandbox>,
}

impl Node {
    /// Builds it in the namespace of the process. `externals`: addresses to be had outside.
    pub(crate) async fn build(plan: &Plan, externals: &BTreeSet<IpAddr>) -> Result<Self> {
        sandbox::prepare()?;
        sandbox::forward()?;
        let node = Netlink::here()?;
        node.up("lo").await?;
        node.add_bridge(BRIDGE).await?;
        for subnet in &plan.subnets {
            node.add_address(BRIDGE, subnet.gateway, subnet.net.prefix_len()).await?;
        }

        for address in &plan.here {
            node.add_address("lo", *address, host_bits(*address)).await?;
        }

        let outside = Sandbox::create(OUTSIDE)?;
        let beyond = Netlink::of(&outside)?;
        node.add_veth(UPLINK, OUTSIDE_LINK, outside.as_fd()).await?;
        beyond.up("lo").await?;
        beyond.up(OUTSIDE_LINK).await?;
        for address in &plan.uplinks {
            node.add_address(UPLINK, *address, host_bits(*address)).await?;
            beyond.add_neighbour_route(*address, OUTSIDE_LINK).await?;
            beyond.add_default_route(*address, OUTSIDE_LINK).await?;
        }
        for address in externals {
            beyond.add_address(OUTSIDE_LINK, *address, host_bits(*address)).await?;
            node.add_neighbour_route(*address, UPLINK).await?;
        }
        Ok(Self { outside: Arc::new(outside) })
    }
}
