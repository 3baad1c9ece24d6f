//! Under which number the programs remember the endpoint that each client of a service port had.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::{BackendSet, Frontend, stable_hash};
use crate::model::{ObjectKey, Protocol};

/// Distinguishes these numbers from the numbers of frontends, under which the programs remember clients of entries that an
/// older policyd wrote.
const MARK: NonZeroU32 = NonZeroU32::new(1 << 31).unwrap();

/// The numbers of all service ports with session affinity.
///
/// As with kube-proxy, a client keeps its endpoint at every address of a service port: cluster address, external ones, load
/// balancers', node ports. The two families are apart, as a client has an address of each.
///
/// A number comes from the names alone, so that it is the same after a restart of policyd, and when the endpoints have gone
/// and come back. A later service of another name gets another number and so never meets what clients of the earlier
/// one had. If two names have the same hash, the later one to be asked for takes the next free number.
#[derive(Clone, Debug, Default)]
pub struct AffinityNumbers {
    numbers: BTreeMap<Group, NonZeroU32>,
    taken: BTreeSet<NonZeroU32>,
}

/// The frontends that share one memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    service: ObjectKey,
    port: Arc<str>,
    protocol: Protocol,
    v4: bool,
}

impl Group {
    /// The number if no other group has it. Names of objects and ports contain no space.
    fn preferred(&self) -> NonZeroU32 {
        let Self { service, port, protocol, v4 } = self;
        MARK | stable_hash(&format!("{service} {port} {protocol} {v4}"))
    }
}

impl AffinityNumbers {
    /// The lowest of these numbers: those of frontends are below.
    pub const FIRST: u32 = MARK.get();

    /// The number for a frontend that has these backends; no frontend's own.
    pub fn of(&mut self, frontend: &Frontend, backends: &BackendSet) -> NonZeroU32 {
        let group = Group {
            service: backends.service.clone(),
            port: backends.port.clone(),
            protocol: frontend.protocol,
            v4: frontend.address.is_ipv4(),
        };
        if let Some(number) = self.numbers.get(&group) {
            return *number;
        }
        let mut number = group.preferred();
        while !self.taken.insert(number) {
            number = MARK | number.get().wrapping_add(1);
        }
        self.numbers.insert(group, number);
        number
    }

    /// Forgets the numbers of all services but those that `lives` names.
    pub fn retain(&mut self, lives: impl Fn(&ObjectKey) -> bool) {
        let taken = &mut self.taken;
        self.numbers.retain(|group, number| {
            let stays = lives(&group.service);
            if !stays {
                taken.remove(number);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn number(
        numbers: &mut AffinityNumbers,
        service: &str,
        port: &str,
        address: &str,
    ) -> NonZeroU32 {
        number_of(numbers, service, port, address, Protocol::Tcp)
    }

    fn number_of(
        numbers: &mut AffinityNumbers,
        service: &str,
        port: &str,
        address: &str,
        protocol: Protocol,
    ) -> NonZeroU32 {
        let address: IpAddr = address.parse().unwrap();
        let backends = BackendSet {
            service: ObjectKey::new("shop", service),
            port: port.into(),
            affinity: None,
            backends: BTreeMap::new(),
            left_out: Vec::new(),
        };
        numbers.of(&Frontend { address, port: 80, protocol }, &backends)
    }

    #[test]
    fn addresses_of_one_port_and_family_share_a_number() {
        let mut numbers = AffinityNumbers::default();
        let first = number(&mut numbers, "web", "http", "10.96.0.1");
        assert_eq!(number(&mut numbers, "web", "http", "192.0.2.1"), first);
        let others = [
            number(&mut numbers, "web", "http", "fd00::1"),
            number(&mut numbers, "web", "admin", "10.96.0.1"),
            number(&mut numbers, "api", "http", "10.96.0.1"),
            number_of(&mut numbers, "web", "http", "10.96.0.1", Protocol::Udp),
        ];
        let all: BTreeSet<NonZeroU32> = others.into_iter().chain([first]).collect();
        assert_eq!(all.len(), 5, "{all:?}");
        assert!(all.iter().all(|number| number.get() >= AffinityNumbers::FIRST), "{all:?}");
    }

    #[test]
    fn a_number_is_the_same_for_every_policyd() {
        // a released number: another hash would give every client another endpoint at the upgrade
        let number = number(&mut AffinityNumbers::default(), "web", "http", "10.96.0.1");
        assert_eq!(number.get(), 0xC172_CB09);
    }

    #[test]
    fn names_of_one_hash_have_numbers_of_their_own_for_as_long_as_they_live() {
        let mut numbers = AffinityNumbers::default();
        let taken = number(&mut AffinityNumbers::default(), "web", "http", "10.96.0.1");
        numbers.taken.insert(taken);
        let next = number(&mut numbers, "web", "http", "10.96.0.1");
        assert_eq!(next, MARK | taken.get().wrapping_add(1));
        numbers.taken.remove(&taken);
        assert_eq!(number(&mut numbers, "web", "http", "192.0.2.1"), next, "while it lives");
        numbers.retain(|service| service.to_string() != "shop/web");
        assert!(numbers.numbers.is_empty() && numbers.taken.is_empty());
        assert_eq!(number(&mut numbers, "web", "http", "10.96.0.1"), taken);
    }
}
