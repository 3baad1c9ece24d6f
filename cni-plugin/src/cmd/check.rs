//! CHECK: is the gate of each interface still what ADD made it? Registration, programs, their position.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use podgate_bpf::error::chain;
use podgate_bpf::{Datapath, PinRoot};
use tracing::warn;

use super::interfaces::{self, PodInterface};
use crate::gating;
use crate::spec::env::Attachment;
use crate::spec::keys::PluginPaths;
use crate::spec::{CniError, Code, NetConf};

pub(super) fn check(
    conf: &NetConf,
    attachment: &Attachment,
    netns: &Path,
) -> Result<String, CniError> {
    conf.require_name()?;
    let paths = PluginPaths::read(conf)?;
    let prev = interfaces::prev_result(conf)?;
    let found = interfaces::discover(&prev, attachment, netns)?;
    if found.interfaces.is_empty() {
        return Ok(String::new()); // loopback alone
    }
    let datapath = gating::open(&paths)?;
    let mut gated: Vec<&PodInterface> = found.interfaces.iter().collect();
    gated.retain(|interface| !has_older_gate(&paths, attachment, interface));
    if gated.is_empty() {
        return Ok(String::new());
    }
    let datapath = datapath.ok_or_else(|| {
        let cause = format!("no programs are pinned under {}", paths.bpf_root.display());
        CniError::new(Code::NotRegistered, "check gates").because(cause)
    })?;
    for interface in gated {
        check_interface(&datapath, attachment, interface)?;
    }
    Ok(String::new())
}

/// Whether the attachment still has another version's gate, which policyd is about to replace.
fn has_older_gate(paths: &PluginPaths, attachment: &Attachment, interface: &PodInterface) -> bool {
    let ifindex = interface.host.index;
    gating::others(&PinRoot::new(&paths.bpf_root)).iter().any(|layout| {
        let its = layout.registration(ifindex).ok().flatten().is_some_and(|found| {
            (&found.container_id, &found.interface)
                == (&attachment.container_id, &attachment.ifname)
        });
        its && layout.is_attached(ifindex).unwrap_or(false)
    })
}

fn check_interface(
    datapath: &Datapath,
    attachment: &Attachment,
    interface: &PodInterface,
) -> Result<(), CniError> {
    let ifindex = interface.host.index;
    let what = format!("check gate of interface {} at {}", interface.name, interface.host.name);
    let not_registered =
        |cause: String| CniError::new(Code::NotRegistered, what.clone()).because(cause);
    let registration = datapath
        .maps
        .registration(ifindex)
        .map_err(|e| not_registered(chain(&e)))?
        .ok_or_else(|| not_registered(format!("interface {ifindex} is not registered")))?;
    let (id, ifname) = (&registration.container_id, &registration.interface);
    if (id, ifname) != (&attachment.container_id, &attachment.ifname) {
        return Err(not_registered(format!("it is registered for {ifname} of container {id}")));
    }
    let registered: BTreeSet<IpAddr> = registration.addresses.iter().copied().collect();
    let wanted: BTreeSet<IpAddr> = interface.addresses.iter().map(IpAddr::to_canonical).collect();
    // addresses that ADD read from the interface may legitimately have changed since
    if interface.addresses_from_result && registered != wanted {
        let text = |set: &BTreeSet<IpAddr>| {
            set.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
        };
        let (registered, wanted) = (text(&registered), text(&wanted));
        return Err(not_registered(format!(
            "its addresses are [{wanted}], registered [{registered}]"
        )));
    }
    datapath
        .verify(ifindex)
        .map_err(|e| CniError::new(Code::NotAttached, what.clone()).because(chain(&e)))?;
    match datapath.maps.policy_map(ifindex) {
        Ok(Some(_)) => {}
        // legal for as long as policyd does not run
        Ok(None) => {
            warn!(ifindex, startup = registration.startup.name(), "still in its startup state")
        }
        Err(e) => return Err(CniError::new(Code::NotRegistered, what).because(chain(&e))),
    }
    Ok(())
}
