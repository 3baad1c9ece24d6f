//! Which class each address that is left alone gets.
//!
//! Addresses share a class where they share their answers: those of nodes, of which there may be thousands, and those
//! that lead nowhere. What the compiler says of such addresses must be the same, since the class takes the place of theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podgate_policy::compile::{Class, Compiled, Endpoint, Entry, PortMatch};
use podgate_policy::model::{Direction, Protocol};
use podgate_policy::services::{Frontend, LeftAnswer, LeftPorts, LeftSet, answer_left};

use super::{Entries, FIRST, Value};
use crate::encode;

/// Addresses that share a class. With the class that the compiler gives them, where they may be several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// Nodes' addresses of one family (true: IPv4), with all node ports and no others.
    Nodes(bool, Class),
    /// Addresses at which services have these ports and no endpoint.
    Nowhere(Vec<(Protocol, u16)>, Class),
    /// One by itself.
    Address(IpAddr),
}

/// What a class of such addresses stands for.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) class: Class,
    /// The class that the compiler gives the addresses: its entries hold for what is not answered here.
    base: Class,
    /// One of the addresses.
    address: IpAddr,
    ports: LeftPorts,
}

/// Every address that is left alone, and its class.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    numbers: BTreeMap<Group, Class>,
    pub(super) shared: Vec<Shared>,
    pub(super) addresses: BTreeMap<IpAddr, Class>,
    /// The endpoints to which they may lead.
    backends: BTreeSet<IpAddr>,
    /// The classes whose entries the answers follow from.
    interest: BTreeSet<Class>,
}

impl Groups {
    /// The groups of a set. Those that were there before keep their numbers; `taken` are numbers that the maps still hold.
    pub(super) fn of(
        set: &LeftSet,
        compiled: &Compiled,
        before: &Self,
        taken: impl Iterator<Item = Class>,
    ) -> Self {
        let classes = compiled.classifier();
        let mut groups = Self { backends: set.backends(), ..Self::default() };
        let taken = taken.chain(before.numbers.values().copied());
        let mut next = taken.map(|class| class.0.saturating_add(1)).max().unwrap_or(FIRST);
        let mut new_number = || {
            next = next.saturating_add(1);
            Class(next - 1)
        };
        for address in set.addresses() {
            let base = classes.class_of(address);
            let at_node = set.node_ports_at(address).is_some();
            let group = match set.ports.get(&address) {
                None => Group::Nodes(address.is_ipv4(), base),
                Some(ports) if !at_node && nowhere(ports) => {
                    Group::Nowhere(ports.keys().copied().collect(), base)
                }
                Some(_) => Group::Address(address),
            };
            let class = match groups.numbers.get(&group) {
                Some(class) => *class,
                None => {
                    let known = before.numbers.get(&group).copied();
                    let class = known.unwrap_or_else(&mut new_number);
                    let ports = set.ports_at(address);
                    groups.shared.push(Shared { class, base, address, ports });
                    groups.numbers.insert(group, class);
                    class
                }
            };
            groups.addresses.insert(address, class);
            groups.interest.insert(base);
        }
        groups.interest.insert(Class::ANY);
        groups.interest.extend(groups.backends.iter().map(|of| classes.class_of(*of)));
        groups
    }

    /// Whether answers follow from the entries of one of these classes.
    pub(super) fn follow_from(&self, classes: &BTreeSet<Class>) -> bool {
        !self.interest.is_disjoint(classes)
    }

    /// Whether it matters which class the compiler gives one of these addresses.
    pub(super) fn concern(&self, hosts: &BTreeSet<IpAddr>) -> bool {
        let concerned = |host| self.addresses.contains_key(host) || self.backends.contains(host);
        hosts.iter().any(concerned)
    }

    /// The entries of one endpoint's policy map.
    pub(super) fn entries(&self, compiled: &Compiled, endpoint: &Endpoint, owner: u32) -> Entries {
        let mut entries = Entries::new();
        let Some(table) = compiled.tables.get(&endpoint.id) else { return entries };
        let add = |entries: &mut Entries, entry: Entry, value: Value| {
            entries.extend(encode::keys(owner, &entry).into_iter().map(|key| (key, value)));
        };
        for shared in &self.shared {
            let Shared { class, base, address, ports } = shared;
            // entries for every peer hold for these addresses too
            let base = (*base != Class::ANY).then(|| table.column(*base));
            for entry in base.into_iter().flatten() {
                let Some(rule) = table.entries.get(&entry) else { continue };
                add(&mut entries, Entry { class: *class, ..entry }, Value::allow(rule.0));
            }
            for ((protocol, port), claims) in ports {
                let frontend = Frontend { address: *address, port: *port, protocol: *protocol };
                let entry = Entry {
                    direction: Direction::Egress,
                    class: *class,
                    ports: PortMatch::one(*protocol, *port),
                };
                match answer_left(compiled, endpoint, &frontend, claims) {
                    Some(LeftAnswer::Allow(rule)) => {
                        add(&mut entries, entry, Value::allow(rule.map_or(0, |rule| rule.0)));
                    }
                    // Of one port alone: what is allowed elsewhere at the address lets fragments without ports pass.
                    Some(LeftAnswer::Deny) => {
                        let exact = encode::keys(owner, &entry).into_iter().next();
                        entries.extend(exact.map(|key| (key, Value::DENY)));
                    }
                    None => {}
                }
            }
        }
        entries
    }

    /// Entries for an endpoint whose answers are too many: nothing may be sent to any of these addresses.
    pub(super) fn closed(&self, owner: u32) -> Entries {
        let everything = |shared: &Shared| Entry {
            direction: Direction::Egress,
            class: shared.class,
            ports: PortMatch::Everything,
        };
        let keys = self.shared.iter().flat_map(|shared| encode::keys(owner, &everything(shared)));
        keys.map(|key| (key, Value::DENY)).collect()
    }
}

fn nowhere(ports: &LeftPorts) -> bool {
    let mut claims = ports.values().flatten();
    claims.all(|left| left.backends.is_empty() && left.sources.is_none() && !left.is_node_local())
}
