//! ADD: attaches a gate at the host end of each of the pod's interfaces, then waits until policyd confirms that the pod's
//! policy is in force.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use podgate_bpf::abi::LimitsRecord;
use podgate_bpf::endpoint::draw_owner;
use podgate_bpf::error::chain;
use podgate_bpf::maps::{PodRef, Registration};
use podgate_bpf::{Datapath, PinRoot};
use podgate_contract::handshake::Request;
use podgate_contract::plugin_conf::OnTimeout;
use tracing::{info, warn};

use super::interfaces::{self, Discovery, PodInterface};
use crate::gating::AttachTransaction;
use crate::policyd_client;
use crate::spec::env::Attachment;
use crate::spec::keys::{PluginPaths, Settings};
use crate::spec::{CniError, Code, NetConf, PrevResult, args, bandwidth};

/// The input of one ADD, read and checked.
struct Add<'a> {
    conf: &'a NetConf,
    settings: Settings,
    paths: PluginPaths,
    attachment: &'a Attachment,
    netns: &'a Path,
    found: Discovery,
    pod: Option<PodRef>,
    limits: Option<LimitsRecord>,
}

pub(super) fn add(
    conf: &NetConf,
    attachment: &Attachment,
    netns: &Path,
) -> Result<String, CniError> {
    // every refusal comes before the first side effect
    conf.require_name()?;
    let settings = Settings::read(conf)?;
    let paths = PluginPaths::read(conf)?;
    let prev = interfaces::prev_result(conf)?;
    let output = prev.output(conf.version)?;
    let pod = args::pod(&attachment.args)?;
    let limits = bandwidth::limits(conf)?;
    if limits.is_some() {
        refuse_second_limiter(&prev)?;
    }
    let found = interfaces::discover(&prev, attachment, netns)?;
    let add = Add { conf, settings, paths, attachment, netns, found, pod, limits };

    let pins = PinRoot::new(&add.paths.bpf_root);
    let datapath = Datapath::open_as_needed_or_load(&pins, &add.settings.sizes)
        .map_err(|e| CniError::new(Code::Load, "open gates").because(chain(&e)))?;
    add_node_addresses(&datapath, &add.found.node_addresses);
    let mut transaction = AttachTransaction::new(&datapath);
    let attached = add.attach(&mut transaction).map_err(|error| name_bandwidth(error, &prev));
    match attached.and_then(|()| add.wait(&transaction)) {
        Ok(()) => Ok(output),
        Err(error) => Err(error.and_then("undo", &transaction.undo())),
    }
}

impl Add<'_> {
    /// Registers and attaches every interface.
    fn attach(&self, transaction: &mut AttachTransaction<'_>) -> Result<(), CniError> {
        for interface in &self.found.interfaces {
            if interface.addresses.is_empty() && self.settings.anti_spoofing {
                warn!(interface = %interface.name, "has no address: with antiSpoofing the pod can send nothing from it");
            }
            let registration = self.registration(interface);
            transaction.attach_endpoint(
                &registration,
                self.settings.attach,
                self.limits.as_ref(),
            )?;
        }
        Ok(())
    }

    fn registration(&self, interface: &PodInterface) -> Registration {
        Registration {
            ifindex: interface.host.index,
            owner: draw_owner(),
            startup: self.settings.startup,
            anti_spoofing: self.settings.anti_spoofing,
            addresses: interface.addresses.clone(),
            mac: interface.mac,
            netns_cookie: self.found.netns_cookie,
            container_id: self.attachment.container_id.clone(),
            // the attachment's, not the interface's own: by it DEL and GC find all of the attachment's gates
            interface: self.attachment.ifname.clone(),
            host_interface: interface.host.name.clone(),
            network: self.conf.name.clone(),
            pod: self.pod.clone(),
            netns: self.netns.to_string_lossy().into_owned(),
        }
    }

    /// Notifies policyd and waits for its confirmation. `onTimeout` decides whether ADD fails without one.
    fn wait(&self, transaction: &AttachTransaction<'_>) -> Result<(), CniError> {
        let endpoints = transaction.endpoints();
        if endpoints.is_empty() {
            return Ok(()); // the pod has only a loopback interface
        }
        let request = Request::Add {
            container_id: self.attachment.container_id.clone(),
            endpoints: endpoints.to_vec(),
        };
        let ifindexes: Vec<_> = endpoints.iter().map(|e| e.ifindex).collect();
        let sent = Instant::now();
        let timeout = self.settings.policyd_timeout;
        let confirmed = policyd_client::confirm(&self.paths.socket, &request, timeout);
        let Err(cause) = confirmed else {
            let waited_ms = sent.elapsed().as_secs_f64() * 1e3;
            info!(?ifindexes, waited_ms, "policy is in force");
            return Ok(());
        };
        match self.settings.on_timeout {
            OnTimeout::Hold => {
                let startup = self.settings.startup.name();
                warn!(?ifindexes, startup, %cause, "pod starts in its startup state");
                Ok(())
            }
            OnTimeout::Fail => {
                Err(CniError::new(Code::TryAgain, "wait for the pod's policy to be in force")
                    .because(cause))
            }
        }
    }
}

/// Adds to an attach error that the `bandwidth` plugin has taken the ingress hook, which the qdisc's kind does not show.
fn name_bandwidth(error: CniError, prev: &PrevResult) -> CniError {
    match prev.bandwidth_device() {
        Some(device) if error.code == Code::Attach => error.and_then(
            "the bandwidth plugin in this list has taken that hook for the pod's egress limit",
            &[format!("its device is {device}")],
        ),
        _ => error,
    }
}

/// The runtime tells each plugin that asks of the pod's limits: two would limit it.
fn refuse_second_limiter(prev: &PrevResult) -> Result<(), CniError> {
    match prev.bandwidth_device() {
        None => Ok(()),
        Some(device) => Err(CniError::new(Code::InvalidConfig, "limit the pod's bandwidth").because(
            format!(
                "the bandwidth plugin in this list has done that (its device is {device}): remove it, or \
                 \"capabilities\": {{\"bandwidth\": true}} from podgate's entry"
            ),
        )),
    }
}

/// policyd keeps these up to date; the plugin adds them so that they are known even before policyd has started. If one
/// is missing, policy applies to connections from that address as well.
fn add_node_addresses(datapath: &Datapath, addresses: &[IpAddr]) {
    for address in addresses.iter().filter(|ip| !ip.is_loopback()) {
        let added = match datapath.maps.is_node_addr(*address) {
            Ok(true) => Ok(()),
            _ => datapath.maps.add_node_addr(*address),
        };
        if let Err(error) = added {
            warn!(%address, error = chain(&error), "add node's address");
        }
    }
}
