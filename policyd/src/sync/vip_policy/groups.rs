//! Assigns a class to each untranslated service address.
//!
//! Addresses with the same verdicts share a class: those of nodes, of which there may be thousands, and those of services
//! without endpoints. They must also have the same class by the compiler, because this one replaces it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podgate_policy::model::{Direction, Protocol};
use podgate_policy::services::{
    Frontend, UntranslatedPorts, UntranslatedSet, VipVerdict, vip_verdict,
};
use podgate_policy::tables::{Class, Compiled, Decision, Endpoint, Entry, PortMatch, RuleId};

use super::Entries;
use crate::encode;

/// Addresses that share a class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// Nodes' addresses of one family (true: IPv4) with node ports only, and the class that the compiler gives them.
    Nodes(bool, Class),
    /// Addresses of services with these ports and without endpoints, and the class that the compiler gives them.
    NoBackends(Vec<(Protocol, u16)>, Class),
    /// A single address.
    Address(IpAddr),
}

/// A class of such addresses.
#[derive(Clone, Debug)]
pub(super) struct VipClass {
    pub(super) class: Class,
    /// The class that the compiler gives the addresses: its entries apply to ports without a service.
    base: Class,
    /// One of the addresses.
    address: IpAddr,
    ports: UntranslatedPorts,
}

/// All untranslated service addresses and their classes.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    numbers: BTreeMap<Group, Class>,
    pub(super) classes: Vec<VipClass>,
    pub(super) addresses: BTreeMap<IpAddr, Class>,
    /// The backends to which they may lead.
    backends: BTreeSet<IpAddr>,
    /// The compiler's classes whose entries decide the verdicts.
    depends_on: BTreeSet<Class>,
}

impl Groups {
    /// Groups the addresses of a set. Groups that were in `before` keep their class; `taken` are classes that the maps still
    /// hold.
    pub(super) fn of(
        set: &UntranslatedSet,
        compiled: &Compiled,
        before: &Self,
        taken: impl Iterator<Item = Class>,
    ) -> Self {
        let classes = compiled.classifier();
        let mut groups = Self { backends: set.backends(), ..Self::default() };
        let taken = taken.chain(before.numbers.values().copied());
        let mut next = taken.map(|class| class.0.saturating_add(1)).max().unwrap_or(Class::VIP.0);
        let mut new_number = || {
            next = next.saturating_add(1);
            Class(next - 1)
        };
        for address in set.addresses() {
            let base = classes.class_of(address);
            let at_node = set.node_ports_at(address).is_some();
            let group = match set.ports.get(&address) {
                None => Group::Nodes(address.is_ipv4(), base),
                Some(ports) if !at_node && has_no_backends(ports) => {
                    Group::NoBackends(ports.keys().copied().collect(), base)
                }
                Some(_) => Group::Address(address),
            };
            let class = match groups.numbers.get(&group) {
                Some(class) => *class,
                None => {
                    let known = before.numbers.get(&group).copied();
                    let class = known.unwrap_or_else(&mut new_number);
                    let ports = set.ports_at(address);
                    groups.classes.push(VipClass { class, base, address, ports });
                    groups.numbers.insert(group, class);
                    class
                }
            };
            groups.addresses.insert(address, class);
            groups.depends_on.insert(base);
        }
        groups.depends_on.insert(Class::ANY);
        groups.depends_on.extend(groups.backends.iter().map(|of| classes.class_of(*of)));
        groups
    }

    /// Whether a change of one of these classes' entries may change a verdict.
    pub(super) fn depend_on(&self, classes: &BTreeSet<Class>) -> bool {
        !self.depends_on.is_disjoint(classes)
    }

    /// Whether a change of one of these addresses' classes may change a verdict.
    pub(super) fn depend_on_hosts(&self, hosts: &BTreeSet<IpAddr>) -> bool {
        let is_relevant = |host| self.addresses.contains_key(host) || self.backends.contains(host);
        hosts.iter().any(is_relevant)
    }

    /// The entries of one endpoint's policy map.
    pub(super) fn entries(&self, compiled: &Compiled, endpoint: &Endpoint, owner: u32) -> Entries {
        let mut entries = Entries::new();
        let Some(table) = compiled.tables.get(&endpoint.id) else { return entries };
        for shared in &self.classes {
            let VipClass { class, base, address, ports } = shared;
            // entries for any class apply to these addresses already
            if *base != Class::ANY {
                let column = table.column(*base).into_iter();
                let column = column.map(|(entry, of)| (Entry { class: *class, ..entry }, of));
                let column = encode::table(owner, &column.collect(), |_| None);
                entries.extend(column.into_iter().map(|(key, decision)| (key.0, decision)));
            }
            for ((protocol, port), claims) in ports {
                let frontend = Frontend { address: *address, port: *port, protocol: *protocol };
                let entry = Entry {
                    direction: Direction::Egress,
                    class: *class,
                    ports: PortMatch::one(*protocol, *port),
                };
                match vip_verdict(compiled, endpoint, &frontend, claims) {
                    Some(VipVerdict::Allow(rule)) => {
                        let allow = Decision::allow(rule.unwrap_or(RuleId::NONE));
                        let keys = encode::keys(owner, &entry).into_iter();
                        entries.extend(keys.map(|key| (key, allow)));
                    }
                    // only the entry of the port itself, not the one for fragments without ports: other ports of the
                    // address may be allowed
                    Some(VipVerdict::Deny) => {
                        let exact = encode::keys(owner, &entry).into_iter().next();
                        entries.extend(exact.map(|key| (key, Decision::deny(RuleId::NONE))));
                    }
                    None => {}
                }
            }
        }
        entries
    }

    /// Entries that deny all of these addresses, for an endpoint whose entries would be too many.
    pub(super) fn deny_all(&self, owner: u32) -> Entries {
        let everything = |shared: &VipClass| Entry {
            direction: Direction::Egress,
            class: shared.class,
            ports: PortMatch::Everything,
        };
        let keys = self.classes.iter().flat_map(|shared| encode::keys(owner, &everything(shared)));
        keys.map(|key| (key, Decision::deny(RuleId::NONE))).collect()
    }
}

fn has_no_backends(ports: &UntranslatedPorts) -> bool {
    let mut claims = ports.values().flatten();
    claims
        .all(|claim| claim.backends.is_empty() && claim.sources.is_none() && !claim.is_node_local())
}
