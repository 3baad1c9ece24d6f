//! Taking over maps that an earlier policyd filled.
//!
//! What it installed stays in force while this one computes; the first commit goes from there to the new state
//! by the ordinary ordered plan. Nobody knows any more what the old class numbers meant, so new ones
//! begin above them: no new entry can ever match an address by its old class, nor the reverse.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use podgate_bpf::maps::Registration;
use podgate_bpf::{Gate, Result};
use podgate_policy::compile::{Class, EndpointId, RuleId};
use podgate_policy::engine::Engine;

use super::left::is_left;
use super::{Installed, Kernel, MapState};
use crate::encode::MapKey;

/// A kernel's maps taken over.
#[derive(Debug)]
pub struct Adopted {
    /// The maps.
    pub kernel: Kernel,
    /// The endpoints that are registered.
    pub registrations: Vec<Registration>,
    /// An engine whose classes are all new to these maps.
    pub engine: Engine,
}

impl Kernel {
    /// Reads everything that is in the maps. Changes nothing.
    pub fn adopt(gate: Arc<Gate>) -> Result<Adopted> {
        let maps = &gate.maps;
        let registrations = maps.registrations()?;
        let mut shadow = MapState::default();
        let mut installed = BTreeMap::new();
        for registration in &registrations {
            let (ifindex, owner) = (registration.ifindex, registration.owner);
            let Some(map) = maps.policy_map(ifindex)? else { continue };
            let mut entries = map.entries()?;
            entries.retain(|(key, _)| !is_left(key.class));
            if entries.iter().any(|(key, _)| key.owner != owner) {
                // an earlier pod's, which had this ifindex: it never matches, the endpoint is as good as new
                continue;
            }
            let endpoint = EndpointId(ifindex);
            let table = entries.into_iter().map(|(key, value)| (MapKey(key), RuleId(value.rule)));
            shadow.tables.insert(endpoint, table.collect());
            installed.insert(endpoint, Installed { owner, map });
        }
        for (address, class) in maps.peers()?.into_iter().filter(|(_, class)| !is_left(*class)) {
            shadow.hosts.insert(address, Class(class));
        }
        for ((address, length), class) in maps.nets()? {
            if let Ok(net) = IpNet::new(address, length) {
                shadow.nets.insert(net, Class(class));
            }
        }
        let engine = Engine::above(shadow.classes());
        let known = shadow.classes().filter(|class| !class.is_transient());
        let highest = known.map(|class| class.0).max().unwrap_or_default();
        let kernel =
            Self { gate, shadow, installed, highest, shared: false, first: BTreeMap::new() };
        Ok(Adopted { kernel, registrations, engine })
    }
}
