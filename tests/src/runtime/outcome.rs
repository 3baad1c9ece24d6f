//! What a test expects of a node after something happened.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podgate_testkit::wait::until;

use super::{Node, Pod};

/// Nothing is left of any pod: no registration, no policy map, no pinned link, no veth.
pub fn nothing_left(node: &Node) -> Result<()> {
    let mut fault = None;
    // policyd follows the registry within moments; the kernel lets an interface go a little later
    until(Duration::from_secs(30), || {
        fault = leftover(node).err();
        fault.is_none()
    });
    match fault {
        None => Ok(()),
        Some(fault) => Err(fault.context("look for what pods have left")),
    }
}

fn leftover(node: &Node) -> Result<()> {
    let registrations = node.registrations()?;
    ensure!(registrations.is_empty(), "registrations: {registrations:#?}");
    if let Ok(datapath) = node.datapath() {
        let installed = datapath.maps.installed_policy_maps()?;
        ensure!(installed.is_empty(), "policy maps of interfaces {installed:?}");
    }
    let links = node.pins().dir().join("links");
    let pins: Vec<_> =
        fs::read_dir(links).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    ensure!(pins.is_empty(), "pinned links: {pins:?}");
    let veths = veths(node)?;
    ensure!(veths.is_empty(), "interfaces: {veths:?}");
    Ok(())
}

/// The host ends of pods' interfaces.
pub fn veths(node: &Node) -> Result<Vec<String>> {
    let listed = node.run("ip", &["-o", "link", "show", "type", "veth"])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// The pod has a gate: registered, attached in both directions and first.
pub fn gated(node: &Node, pod: &Pod) -> Result<()> {
    let registration = node.registration(pod)?;
    let datapath = node.datapath()?;
    node.inside(|| datapath.verify(registration.ifindex))?
        .with_context(|| format!("verify the gate of {}", pod.name))?;
    Ok(())
}

/// policyd has put a policy in force for the pod.
pub fn enforced(node: &Node, pod: &Pod) -> Result<()> {
    gated(node, pod)?;
    let registration = node.registration(pod)?;
    let installed = node.datapath()?.maps.installed_policy_maps()?;
    if !installed.contains(&registration.ifindex) {
        bail!("pod {} has no policy map: those with one are {installed:?}", pod.name);
    }
    Ok(())
}
