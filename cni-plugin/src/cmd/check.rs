//! CHECK: is the gate of each interface still what ADD made it? Registration, programs, their position.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use podgate_bpf::error::chain;
use podgate_bpf::{Gate, PinRoot};
use tracing::warn;

use super::ends::{self, End};
use crate::gating;
use crate::spec::env::Attachment;
use crate::spec::keys::Places;
use crate::spec::{CniError, Code, NetConf};

pub(super) fn check(
    conf: &NetConf,
    attachment: &Attachment,
    netns: &Path,
) -> Result<String, CniError> {
    conf.require_name()?;
    let places = Places::read(conf)?;
    let prev = ends::prev_result(conf)?;
    let found = ends::find(&prev, attachment, netns)?;
    if found.ends.is_empty() {
        return Ok(String::new()); // loopback alone
    }
    let gate = gating::open(&places)?;
    let mut ends: Vec<&End> = found.ends.iter().collect();
    ends.retain(|end| !is_behind(&places, attachment, end));
    if ends.is_empty() {
        return Ok(String::new());
    }
    let gate = gate.ok_or_else(|| {
        let cause = format!("no programs are pinned under {}", places.bpf_root.display());
        CniError::new(Code::NotRegistered, "check gates").because(cause)
    })?;
    for end in ends {
        check_end(&gate, attachment, end)?;
    }
    Ok(String::new())
}

/// Whether another version's gate stands for the attachment, until policyd puts this one's in its place.
fn is_behind(places: &Places, attachment: &Attachment, end: &End) -> bool {
    let ifindex = end.host.index;
    gating::others(&PinRoot::new(&places.bpf_root)).iter().any(|layout| {
        let its = layout.registration(ifindex).ok().flatten().is_some_and(|found| {
            (&found.container_id, &found.interface)
                == (&attachment.container_id, &attachment.ifname)
        });
        its && layout.stands_at(ifindex).unwrap_or(false)
    })
}

fn check_end(gate: &Gate, attachment: &Attachment, end: &End) -> Result<(), CniError> {
    let ifindex = end.host.index;
    let what = format!("check gate of interface {} at {}", end.name, end.host.name);
    let not_registered =
        |cause: String| CniError::new(Code::NotRegistered, what.clone()).because(cause);
    let registration = gate
        .maps
        .registration(ifindex)
        .map_err(|e| not_registered(chain(&e)))?
        .ok_or_else(|| not_registered(format!("interface {ifindex} is not registered")))?;
    let (id, ifname) = (&registration.container_id, &registration.interface);
    if (id, ifname) != (&attachment.container_id, &attachment.ifname) {
        return Err(not_registered(format!("it is registered for {ifname} of container {id}")));
    }
    let registered: BTreeSet<IpAddr> = registration.addresses.iter().copied().collect();
    let wanted: BTreeSet<IpAddr> = end.addresses.iter().map(IpAddr::to_canonical).collect();
    // addresses that were read off the interface may have changed since, and by right
    if end.addresses_from_result && registered != wanted {
        let text = |set: &BTreeSet<IpAddr>| {
            set.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
        };
        let (registered, wanted) = (text(&registered), text(&wanted));
        return Err(not_registered(format!(
            "its addresses are [{wanted}], registered [{registered}]"
        )));
    }
    gate.verify(ifindex)
        .map_err(|e| CniError::new(Code::NotAttached, what.clone()).because(chain(&e)))?;
    match gate.maps.policy_map(ifindex) {
        Ok(Some(_)) => {}
        // legal for as long as policyd is away
        Ok(None) => {
            warn!(ifindex, startup = registration.startup.name(), "still in its startup state")
        }
        Err(e) => return Err(CniError::new(Code::NotRegistered, what).because(chain(&e))),
    }
    Ok(())
}
