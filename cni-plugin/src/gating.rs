//! Attaching and removing gates. A gate is a registry entry and two programs; the order of the two steps is chosen for
//! what a packet meets if the plugin dies between them.

use podgate_bpf::abi::{LimitsKey, LimitsRecord};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::error::chain;
use podgate_bpf::handover::OtherLayout;
use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, Error as BpfError, PinRoot};
use podgate_contract::handshake::{EndpointRef, Request};
use tracing::{debug, info, warn};

use crate::policyd_client::{self, NotEnforced, REMOVAL_TIMEOUT};
use crate::spec::keys::PluginPaths;
use crate::spec::{CniError, Code};

/// The gates that one ADD has attached so far, removed again if it fails.
#[derive(Debug)]
pub struct AttachTransaction<'a> {
    datapath: &'a Datapath,
    attached: Vec<EndpointRef>,
}

impl<'a> AttachTransaction<'a> {
    /// No gate is attached yet.
    pub fn new(datapath: &'a Datapath) -> Self {
        Self { datapath, attached: Vec::new() }
    }

    /// The endpoints that are registered and attached.
    pub fn endpoints(&self) -> &[EndpointRef] {
        &self.attached
    }

    /// Registers the endpoint, then attaches the programs. In between the interface is open, but no container has
    /// started yet, and the runtime sends DEL for an ADD that died. In the other order the programs would find no
    /// registration and drop everything, also at the gate of a repeated ADD, whose containers may run.
    pub fn attach_endpoint(
        &mut self,
        registration: &Registration,
        mode: AttachMode,
        limits: Option<&LimitsRecord>,
    ) -> Result<(), CniError> {
        let ifindex = registration.ifindex;
        let failed = |code: Code, cause: BpfError| {
            let what = format!("attach gate at {}", registration.host_interface);
            CniError::new(code, what).because(chain(&cause))
        };
        self.clear(registration).map_err(|e| failed(Code::Register, e))?;
        // recorded first, so that `undo` also covers an endpoint that is registered but not attached
        self.attached.push(EndpointRef { ifindex, owner: registration.owner });
        self.datapath.maps.register(registration).map_err(|e| failed(Code::Register, e))?;
        if let Some(limits) = limits {
            self.datapath.load_metered().map_err(|e| failed(Code::Load, e))?;
            // before the gate, which they decide the programs of
            let pod = LimitsKey::of_pod(registration.owner);
            let limited = self.datapath.maps.limits().set(pod, limits);
            limited.map_err(|e| failed(Code::Register, e))?;
        }
        let attached = self.datapath.attach(ifindex, mode).map_err(|e| failed(Code::Attach, e))?;
        // a gate of another version, from an earlier pod or a repeated ADD: both would judge each packet
        for layout in others(self.datapath.pins()) {
            let cleared = layout.registration(ifindex).and_then(|found| {
                let endpoint = |found: Registration| EndpointRef { ifindex, owner: found.owner };
                found.map(endpoint).map_or(Ok(()), |endpoint| layout.remove_endpoint(endpoint))
            });
            if let Err(error) = cleared {
                warn!(ifindex, error = chain(&error), "cannot remove the gate of another version");
            }
        }
        debug!(ifindex, host_interface = %registration.host_interface, ?attached, "gate attached");
        Ok(())
    }

    /// Removes an earlier registration of the same ifindex with its policy map: no key of that map carries the new owner
    /// number, so every packet would miss.
    fn clear(&self, registration: &Registration) -> podgate_bpf::Result<()> {
        let ifindex = registration.ifindex;
        let Some(earlier) = self.datapath.maps.registration(ifindex)? else { return Ok(()) };
        if earlier.container_id != registration.container_id {
            // The ifindex was reused. The same container means a repeated ADD: its programs stay attached.
            warn!(ifindex, earlier = %earlier.container_id, "remove registration of an earlier interface");
            self.datapath.detach(ifindex)?;
        }
        self.datapath.maps.unregister(ifindex)
    }

    /// Removes all of them, last first. Returns what could not be removed, as text.
    pub fn undo(self) -> Vec<String> {
        let mut errors = Vec::new();
        for endpoint in self.attached.iter().rev() {
            if let Err(error) = self.datapath.remove_endpoint(*endpoint) {
                errors.push(chain(&error));
            }
        }
        errors
    }
}

/// Opens the pinned maps and programs. `None` if there are none: no gate was ever attached on this node.
pub fn open(paths: &PluginPaths) -> Result<Option<Datapath>, CniError> {
    match Datapath::open_as_needed(&PinRoot::new(&paths.bpf_root)) {
        Ok(datapath) => Ok(Some(datapath)),
        Err(BpfError::NotLoaded { path }) => {
            debug!(pin = %path.display(), "no gate was ever attached");
            Ok(None)
        }
        Err(error) => Err(CniError::new(Code::Load, "open gates").because(chain(&error))),
    }
}

/// The map layouts of other versions that have pods on this node. Those that cannot be opened are left out: policyd
/// reports them.
pub fn others(pins: &PinRoot) -> Vec<OtherLayout> {
    OtherLayout::all(pins).unwrap_or_else(|error| {
        warn!(error = chain(&error), "cannot look for the pins of other versions");
        Vec::new()
    })
}

/// Removes the gates of all registrations that `doomed` selects, in the layouts of other versions too, and notifies
/// policyd. Continues after an error and reports all of them at the end. `datapath` is `None` if no gate of this version
/// was ever attached.
pub fn remove_all(
    datapath: Option<&Datapath>,
    paths: &PluginPaths,
    doomed: impl Fn(&Registration) -> bool,
) -> Result<(), CniError> {
    let mut errors = Vec::new();
    if let Some(datapath) = datapath {
        errors.extend(remove_here(datapath, paths, &doomed)?);
    }
    for layout in others(&PinRoot::new(&paths.bpf_root)) {
        let registration = |ifindex: &u32| layout.registration(*ifindex).ok().flatten();
        let interfaces = layout.interfaces().unwrap_or_else(|error| {
            warn!(error = chain(&error), "cannot read the registrations of another version");
            Vec::new()
        });
        for registration in interfaces.iter().filter_map(registration).filter(|r| doomed(r)) {
            let endpoint = EndpointRef { ifindex: registration.ifindex, owner: registration.owner };
            match layout.remove_endpoint(endpoint) {
                Ok(()) => info!(
                    ifindex = registration.ifindex, container = %registration.container_id,
                    "gate of another version removed"
                ),
                Err(error) => {
                    errors.push(format!("{}: {}", registration.host_interface, chain(&error)))
                }
            }
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::Remove, "remove gates").because(errors.join("; ")))
}

/// The same in this version's layout. Returns what could not be removed, as text.
fn remove_here(
    datapath: &Datapath,
    paths: &PluginPaths,
    doomed: impl Fn(&Registration) -> bool,
) -> Result<Vec<String>, CniError> {
    let registrations = datapath
        .maps
        .registrations()
        .map_err(|e| CniError::new(Code::Remove, "remove gates").because(chain(&e)))?;
    let mut removed: Vec<(String, EndpointRef)> = Vec::new();
    let mut errors = Vec::new();
    for registration in registrations.iter().filter(|r| doomed(r)) {
        let endpoint = EndpointRef { ifindex: registration.ifindex, owner: registration.owner };
        match datapath.remove_endpoint(endpoint) {
            Ok(()) => {
                let (ifindex, host) = (registration.ifindex, &registration.host_interface);
                info!(ifindex, container = %registration.container_id, host_interface = %host, "gate removed");
                removed.push((registration.container_id.clone(), endpoint));
            }
            Err(error) => {
                errors.push(format!("{}: {}", registration.host_interface, chain(&error)))
            }
        }
    }
    notify_removed(paths, removed);
    Ok(errors)
}

/// Sends policyd one line per container. A line that gets no answer is only logged, because policyd compares its state
/// with the registry by itself.
fn notify_removed(paths: &PluginPaths, mut removed: Vec<(String, EndpointRef)>) {
    removed.sort();
    for group in removed.chunk_by(|a, b| a.0 == b.0) {
        let request = Request::Del {
            container_id: group[0].0.clone(),
            endpoints: group.iter().map(|(_, endpoint)| *endpoint).collect(),
        };
        let confirmed = policyd_client::confirm(&paths.socket, &request, REMOVAL_TIMEOUT);
        if let Err(cause) = confirmed {
            debug!(%cause, "policyd has not acknowledged the removal");
            if matches!(cause, NotEnforced::NoAnswer(_)) {
                return; // the next request would wait for the whole time-out as well
            }
        }
    }
}
