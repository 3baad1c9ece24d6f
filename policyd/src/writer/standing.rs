//! How the endpoints stand, for those who only read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use podgate_bpf::abi::Startup;
use podgate_bpf::maps::Registration;
use podgate_policy::compile::EndpointId;
use podgate_policy::model::ObjectKey;

use super::run::Run;
use crate::view::{EndpointState, EndpointView, View};

/// Told how long each commit took.
pub(super) type Observe = Box<dyn FnMut(Duration) + Send>;

impl Run {
    pub(super) fn view(&self) -> View {
        let (compiled, tables) = (self.engine.compiled(), &self.kernel.shadow().tables);
        let endpoint = |(id, registration): (EndpointId, &Arc<Registration>)| {
            let view = EndpointView {
                registration: registration.clone(),
                state: self.state(id, registration),
                table: compiled.tables.get(&id).cloned(),
                rules: tables.get(&id).map_or(0, BTreeMap::len),
            };
            (id, view)
        };
        View {
            ready: self.ready,
            sources: self.store.states(),
            endpoints: self.endpoints.iter().map(endpoint).collect(),
            peers: compiled.hosts.len(),
            nets: compiled.nets.len(),
            classes: self.engine.classes(),
            origins: self.engine.rule_names().clone(),
            node_addresses: self.node_addresses.clone().unwrap_or_default(),
            stopped: self.stopped.clone(),
            rules: tables.values().map(BTreeMap::len).sum(),
            commits: self.commits,
            services: self.services.counts(),
            service_problems: self
                .services
                .problems()
                .into_iter()
                .chain(self.left.problem())
                .collect(),
        }
    }

    fn state(&self, id: EndpointId, registration: &Registration) -> EndpointState {
        if registration.startup == Startup::Watch {
            let reason = "it ran before it had a gate: its connections are being read";
            return EndpointState::Pending(reason.to_owned());
        }
        if registration.startup.is_handover() {
            let reason = "the programs of another layout of the maps still judge it, by the policies that they had";
            return EndpointState::Degraded(reason.to_owned());
        }
        let in_force = self.kernel.in_force(id, registration.owner);
        let reason = match self.degraded.get(&id) {
            Some(reason) => Some(reason.clone()),
            None if !self.ready => Some(self.unready()),
            None if self.engine.compiled().tables.contains_key(&id) => match in_force {
                true => None,
                false => Some(self.stopped.clone().unwrap_or_else(|| "not programmed yet".into())),
            },
            None => Some(self.unknown(registration)),
        };
        match (reason, in_force) {
            (None, _) => EndpointState::Enforced,
            (Some(reason), true) => EndpointState::Degraded(reason),
            (Some(reason), false) => EndpointState::Pending(reason),
        }
    }

    fn unready(&self) -> String {
        let states = self.store.states();
        let names: Vec<_> =
            states.iter().filter(|state| !state.synced).map(|state| state.name.as_str()).collect();
        match names.is_empty() {
            true => self.stopped.clone().unwrap_or_else(|| "policyd has just started".into()),
            false => format!("not read whole yet: source {}", names.join(", ")),
        }
    }

    /// Why there is no table.
    fn unknown(&self, registration: &Registration) -> String {
        let Some(pod) = &registration.pod else { return "not compiled yet".into() };
        let key = ObjectKey::new(pod.namespace.as_str(), pod.name.as_str());
        match self.shared.index().pod(&key) {
            None => format!("pod {key} is not known to any source"),
            Some(known) if !pod.uid.is_empty() && *known.uid != *pod.uid => format!(
                "pod {key} of the sources has uid {}, the one of this interface has {}",
                known.uid, pod.uid
            ),
            Some(_) => format!("pod {key} is not compiled yet"),
        }
    }
}
