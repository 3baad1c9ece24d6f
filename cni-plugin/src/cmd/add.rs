//! ADD: stands the gate at the host end of each of the pod's interfaces, then waits until policyd says
//! that the pod's policy is in force.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use podgate_bpf::error::chain;
use podgate_bpf::gating::draw_owner;
use podgate_bpf::handshake::Request;
use podgate_bpf::maps::Registration;
use podgate_bpf::{Gate, PinRoot};
use tracing::{info, warn};

use super::ends::{self, Found};
use crate::daemon;
use crate::gating::Standing;
use crate::spec::env::Attachment;
use crate::spec::keys::{OnTimeout, Places, Settings};
use crate::spec::{CniError, Code, NetConf, args};

pub(super) fn add(
    conf: &NetConf,
    attachment: &Attachment,
    netns: &Path,
) -> Result<String, CniError> {
    // all that can be refused is refused before the first side effect
    conf.require_name()?;
    let settings = Settings::read(conf)?;
    let places = Places::read(conf)?;
    let prev = ends::prev_result(conf)?;
    let output = prev.output(conf.version)?;
    let pod = args::pod(&attachment.args)?;
    let found = ends::find(&prev, attachment, netns)?;

    let gate = Gate::open_as_needed_or_load(&PinRoot::new(&places.bpf_root), &settings.sizes)
        .map_err(|e| CniError::new(Code::Load, "open gates").because(chain(&e)))?;
    add_node_addresses(&gate, &found.node_addresses);
    let mut standing = Standing::new(&gate);
    let raised = raise(&mut standing, conf, &settings, attachment, netns, &found, pod.as_ref());
    match raised.and_then(|()| wait(&standing, &settings, &places, attachment)) {
        Ok(()) => Ok(output),
        Err(error) => Err(error.and_then("undo", &standing.undo())),
    }
}

/// Registers and attaches every interface.
fn raise(
    standing: &mut Standing<'_>,
    conf: &NetConf,
    settings: &Settings,
    attachment: &Attachment,
    netns: &Path,
    found: &Found,
    pod: Option<&podgate_bpf::maps::PodRef>,
) -> Result<(), CniError> {
    for end in &found.ends {
        if end.addresses.is_empty() && settings.anti_spoofing {
            warn!(interface = %end.name, "has no address: with antiSpoofing the pod can send nothing from it");
        }
        let registration = Registration {
            ifindex: end.host.index,
            owner: draw_owner(),
            startup: settings.startup,
            anti_spoofing: settings.anti_spoofing,
            addresses: end.addresses.clone(),
            mac: end.mac,
            netns_cookie: found.netns_cookie,
            container_id: attachment.container_id.clone(),
            // DEL and GC name the attachment, whose gates all of these are
            interface: attachment.ifname.clone(),
            host_interface: end.host.name.clone(),
            network: conf.name.clone(),
            pod: pod.cloned(),
            netns: netns.to_string_lossy().into_owned(),
        };
        standing.stand(&registration, settings.attach)?;
    }
    Ok(())
}

/// Tells policyd and waits; whether its silence fails ADD is the configuration's choice.
fn wait(
    standing: &Standing<'_>,
    settings: &Settings,
    places: &Places,
    attachment: &Attachment,
) -> Result<(), CniError> {
    if standing.endpoints().is_empty() {
        return Ok(()); // loopback alone
    }
    let request = Request::Add {
        container_id: attachment.container_id.clone(),
        endpoints: standing.endpoints().to_vec(),
    };
    let ifindexes: Vec<_> = standing.endpoints().iter().map(|e| e.ifindex).collect();
    let asked = Instant::now();
    let Err(cause) = daemon::confirm(&places.socket, &request, settings.policyd_timeout) else {
        let waited_ms = asked.elapsed().as_secs_f64() * 1e3;
        info!(?ifindexes, waited_ms, "policy is in force");
        return Ok(());
    };
    match settings.on_timeout {
        OnTimeout::Hold => {
            let startup = settings.startup.name();
            warn!(?ifindexes, startup, %cause, "pod starts in its startup state");
            Ok(())
        }
        OnTimeout::Fail => {
            Err(CniError::new(Code::TryAgain, "wait for the pod's policy to be in force")
                .because(cause))
        }
    }
}

/// policyd keeps these up to date; the plugin writes them so that the first pod's node is known even
/// before policyd runs. A missing one only means that policy judges that address too.
fn add_node_addresses(gate: &Gate, addresses: &[IpAddr]) {
    for address in addresses.iter().filter(|ip| !ip.is_loopback()) {
        let added = match gate.maps.is_node_addr(*address) {
            Ok(true) => Ok(()),
            _ => gate.maps.add_node_addr(*address),
        };
        if let Err(error) = added {
            warn!(%address, error = chain(&error), "add node's address");
        }
    }
}
