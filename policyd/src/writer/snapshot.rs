//! The snapshot of the writer's state that is published for readers.

use std::collections::BTreeMap;
use std::sync::Arc;

use podgate_bpf::abi::Startup;
use podgate_bpf::maps::Registration;
use podgate_policy::tables::EndpointId;

use super::writer_loop::WriterLoop;
use crate::pod_key::pod_key;
use crate::snapshot::{EndpointSnapshot, EndpointState, Snapshot};

impl WriterLoop {
    pub(super) fn snapshot(&self) -> Snapshot {
        let (compiled, tables) = (self.engine.compiled(), &self.maps.policies().tables);
        let endpoint = |(id, registration): (EndpointId, &Arc<Registration>)| {
            let snapshot = EndpointSnapshot {
                registration: registration.clone(),
                state: self.state(id, registration),
                table: compiled.tables.get(&id).cloned(),
                rules: tables.get(&id).map_or(0, BTreeMap::len),
            };
            (id, snapshot)
        };
        Snapshot {
            ready: self.ready,
            sources: self.store.states(),
            endpoints: self.endpoints.iter().map(endpoint).collect(),
            peers: compiled.hosts.len(),
            nets: compiled.nets.len(),
            classes: self.engine.classes(),
            origins: self.engine.rule_names().clone(),
            limit_origins: self.maps.limits().origins().clone(),
            metered: self.maps.limits().metered(),
            scope_problem: self.maps.scope_problem(),
            limits_failed: self.maps.limits().failed().clone(),
            node_addresses: self.node_addresses.clone().unwrap_or_default(),
            stopped: self.maps.stopped().map(str::to_owned),
            rules: tables.values().map(BTreeMap::len).sum(),
            commits: self.commits,
            services: self.maps.services().counts(),
            service_problems: self.maps.service_problems(),
        }
    }

    fn state(&self, id: EndpointId, registration: &Registration) -> EndpointState {
        if registration.startup == Startup::Learn {
            let reason = "it ran before it had a gate: its connections are being read";
            return EndpointState::Pending(reason.to_owned());
        }
        if registration.startup.is_handover() {
            let reason = "the programs of another layout of the maps still judge it, by the policies that they had";
            return EndpointState::Degraded(reason.to_owned());
        }
        let in_force = self.maps.in_force(id, registration.owner);
        let reason = match self.maps.degraded(id) {
            Some(reason) => Some(reason.to_owned()),
            None if !self.ready => Some(self.unready()),
            None if self.engine.compiled().tables.contains_key(&id) => match in_force {
                true => None,
                false => Some(self.maps.stopped().unwrap_or("not programmed yet").to_owned()),
            },
            None => Some(self.without_table(registration)),
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
            true => self.maps.stopped().unwrap_or("policyd has just started").to_owned(),
            false => format!("not read whole yet: source {}", names.join(", ")),
        }
    }

    /// Why an endpoint has no table.
    fn without_table(&self, registration: &Registration) -> String {
        let Some(pod) = &registration.pod else { return "not compiled yet".into() };
        let key = pod_key(pod);
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
