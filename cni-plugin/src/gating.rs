//! Standing and taking away gates: the registry entry and the programs belong together, and each order
//! of the two is chosen for what a packet meets if the plugin dies between them.

use podgate_bpf::attach::AttachMode;
use podgate_bpf::error::chain;
use podgate_bpf::handover::OtherLayout;
use podgate_bpf::handshake::{EndpointRef, Request};
use podgate_bpf::maps::Registration;
use podgate_bpf::{Error as BpfError, Gate, PinRoot};
use tracing::{debug, info, warn};

use crate::daemon;
use crate::spec::keys::Places;
use crate::spec::{CniError, Code};

/// The gates that one ADD has stood so far, to be taken away again if it fails.
#[derive(Debug)]
pub struct Standing<'a> {
    gate: &'a Gate,
    done: Vec<EndpointRef>,
}

impl<'a> Standing<'a> {
    /// None yet.
    pub fn new(gate: &'a Gate) -> Self {
        Self { gate, done: Vec::new() }
    }

    /// What stands.
    pub fn endpoints(&self) -> &[EndpointRef] {
        &self.done
    }

    /// Registers, then attaches. In between the interface is open, but no container has started yet and
    /// the runtime sends DEL for an ADD that has died; the other way round it would be closed to all,
    /// also at a gate that stands already and is only being registered anew.
    pub fn stand(&mut self, registration: &Registration, mode: AttachMode) -> Result<(), CniError> {
        let ifindex = registration.ifindex;
        let failed = |code: Code, cause: BpfError| {
            let what = format!("stand gate at {}", registration.host_interface);
            CniError::new(code, what).because(chain(&cause))
        };
        self.clear(registration).map_err(|e| failed(Code::Register, e))?;
        // noted first: a half-done one is undone too
        self.done.push(EndpointRef { ifindex, owner: registration.owner });
        self.gate.maps.register(registration).map_err(|e| failed(Code::Register, e))?;
        let attached = self.gate.attach(ifindex, mode).map_err(|e| failed(Code::Attach, e))?;
        // an earlier version's, of an earlier pod or of an ADD that is repeated: two gates would judge one packet
        for layout in others(self.gate.pins()) {
            let cleared = layout.registration(ifindex).and_then(|found| {
                let endpoint = |found: Registration| EndpointRef { ifindex, owner: found.owner };
                found.map(endpoint).map_or(Ok(()), |endpoint| layout.take_away(endpoint))
            });
            if let Err(error) = cleared {
                warn!(ifindex, error = chain(&error), "cannot take an earlier version's gate away");
            }
        }
        debug!(ifindex, host_interface = %registration.host_interface, ?attached, "gate stands");
        Ok(())
    }

    /// Makes room for a registration where an earlier one still is: its policy map must not meet the new
    /// owner, for whom nothing in it matches.
    fn clear(&self, registration: &Registration) -> podgate_bpf::Result<()> {
        let ifindex = registration.ifindex;
        let Some(earlier) = self.gate.maps.registration(ifindex)? else { return Ok(()) };
        if earlier.container_id != registration.container_id {
            // a reused ifindex; of the same container it is a repeated ADD, whose gate keeps standing
            warn!(ifindex, earlier = %earlier.container_id, "remove registration of an earlier interface");
            self.gate.detach(ifindex)?;
        }
        self.gate.maps.unregister(ifindex)
    }

    /// Takes everything away again; what could not be is returned as text.
    pub fn undo(self) -> Vec<String> {
        let mut errors = Vec::new();
        for endpoint in self.done.iter().rev() {
            if let Err(error) = self.gate.take_away(*endpoint) {
                errors.push(chain(&error));
            }
        }
        errors
    }
}

/// Opens the pins if they are there. `None`: nobody has ever loaded the programs, so nothing stands.
pub fn open(places: &Places) -> Result<Option<Gate>, CniError> {
    match Gate::open_as_needed(&PinRoot::new(&places.bpf_root)) {
        Ok(gate) => Ok(Some(gate)),
        Err(BpfError::NotLoaded { path }) => {
            debug!(pin = %path.display(), "no gate has ever stood");
            Ok(None)
        }
        Err(error) => Err(CniError::new(Code::Load, "open gates").because(chain(&error))),
    }
}

/// The layouts of other versions that have pods here. One that cannot be opened is policyd's to report.
pub fn others(pins: &PinRoot) -> Vec<OtherLayout> {
    OtherLayout::all(pins).unwrap_or_else(|error| {
        warn!(error = chain(&error), "cannot look for the pins of other versions");
        Vec::new()
    })
}

/// Takes away the gates of all registrations that `doomed` picks, those of other versions too, and tells policyd. Goes
/// on after an error, and reports all of them at the end. No `gate`: none of this version has ever stood.
pub fn remove_all(
    gate: Option<&Gate>,
    places: &Places,
    doomed: impl Fn(&Registration) -> bool,
) -> Result<(), CniError> {
    let mut errors = Vec::new();
    if let Some(gate) = gate {
        errors.extend(remove_here(gate, places, &doomed)?);
    }
    for layout in others(&PinRoot::new(&places.bpf_root)) {
        let registration = |ifindex: &u32| layout.registration(*ifindex).ok().flatten();
        let interfaces = layout.interfaces().unwrap_or_else(|error| {
            warn!(error = chain(&error), "cannot read the registrations of another version");
            Vec::new()
        });
        for registration in interfaces.iter().filter_map(registration).filter(|r| doomed(r)) {
            let endpoint = EndpointRef { ifindex: registration.ifindex, owner: registration.owner };
            match layout.take_away(endpoint) {
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

/// What could not be removed, as text.
fn remove_here(
    gate: &Gate,
    places: &Places,
    doomed: impl Fn(&Registration) -> bool,
) -> Result<Vec<String>, CniError> {
    let registrations = gate
        .maps
        .registrations()
        .map_err(|e| CniError::new(Code::Remove, "remove gates").because(chain(&e)))?;
    let mut removed: Vec<(String, EndpointRef)> = Vec::new();
    let mut errors = Vec::new();
    for registration in registrations.iter().filter(|r| doomed(r)) {
        let endpoint = EndpointRef { ifindex: registration.ifindex, owner: registration.owner };
        match gate.take_away(endpoint) {
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
    tell_removed(places, removed);
    Ok(errors)
}

/// One line per container. policyd reconciles with the registry by itself, so silence is only logged.
fn tell_removed(places: &Places, mut removed: Vec<(String, EndpointRef)>) {
    removed.sort();
    for group in removed.chunk_by(|a, b| a.0 == b.0) {
        let request = Request::Del {
            container_id: group[0].0.clone(),
            endpoints: group.iter().map(|(_, endpoint)| *endpoint).collect(),
        };
        if let Err(cause) = daemon::confirm(&places.socket, &request, daemon::NOTICE) {
            debug!(%cause, "policyd does not know of the removal yet");
            if matches!(cause, daemon::NotEnforced::Silent(_)) {
                return; // it will not be quicker for the next ones
            }
        }
    }
}
