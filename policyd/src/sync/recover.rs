//! Recovers the state of the maps that an earlier policyd filled.
//!
//! Its entries stay in force while this policyd compiles; the first commit changes them to the new state by the ordinary
//! ordered plan. What its class numbers meant is not known any more, so new classes are numbered above them: no new entry
//! can match an address that still has an old class, and no old entry one that has a new class.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, Result};
use podgate_policy::compile::Engine;
use podgate_policy::tables::{Class, Effect, EndpointId};

use super::{Installed, MapState, PolicyMaps};
use crate::encode::{self, MapKey};

/// The state recovered from the maps.
#[derive(Debug)]
pub struct Recovered {
    /// The maps and their content.
    pub policy_maps: PolicyMaps,
    /// The registered endpoints.
    pub registrations: Vec<Registration>,
    /// An engine whose classes are all new to these maps.
    pub engine: Engine,
}

impl PolicyMaps {
    /// Reads everything that is in the maps. Changes nothing.
    pub fn recover(datapath: Arc<Datapath>) -> Result<Recovered> {
        let maps = &datapath.maps;
        let registrations = maps.registrations()?;
        let mut shadow = MapState::default();
        let mut installed = BTreeMap::new();
        for registration in &registrations {
            let (ifindex, owner) = (registration.ifindex, registration.owner);
            let Some(map) = maps.policy_map(ifindex)? else { continue };
            let mut entries = map.entries()?;
            entries.retain(|(key, _)| !Class(key.class).is_vip());
            if entries.iter().any(|(key, _)| key.owner != owner) {
                // The map of an earlier pod with this ifindex. Its keys carry another owner number and match no packet,
                // so the endpoint counts as one without a map.
                continue;
            }
            let endpoint = EndpointId(ifindex);
            let table =
                entries.into_iter().map(|(key, value)| (MapKey(key), encode::decision(&value)));
            shadow.tables.insert(endpoint, table.collect());
            installed.insert(endpoint, Installed { owner, map });
        }
        for (address, class) in
            maps.peers()?.into_iter().filter(|(_, class)| !Class(*class).is_vip())
        {
            shadow.hosts.insert(address, Class(class));
        }
        for ((address, length), class) in maps.nets()? {
            if let Ok(net) = IpNet::new(address, length) {
                shadow.nets.insert(net, Class(class));
            }
        }
        let mut entries = shadow.tables.values().flat_map(BTreeMap::values);
        shadow.ranked = entries.any(|decision| decision.effect != Effect::Allow);
        let engine = Engine::above(shadow.classes());
        let known = shadow.classes().filter(|class| class.is_compiled());
        let highest = known.map(|class| class.0).max().unwrap_or_default();
        let policy_maps = Self {
            datapath,
            shadow,
            installed,
            highest,
            has_vip_entries: false,
            first: BTreeMap::new(),
        };
        Ok(Recovered { policy_maps, registrations, engine })
    }
}
