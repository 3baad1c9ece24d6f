//! How many connections a TCP listener takes, and from whom.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places for connections. The node itself has places of its own, so that its health checks are answered however many
/// others there are; each other address has a few, so that one client cannot take them all.
#[derive(Clone, Debug)]
pub struct Room {
    limits: Limits,
    taken: Arc<Mutex<Taken>>,
    refused: Arc<AtomicU64>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    node: usize,
    others: usize,
    each: usize,
}

#[derive(Debug, Default)]
struct Taken {
    node: usize,
    others: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A place that a connection has; dropped with it.
#[derive(Debug)]
pub struct Place {
    taken: Arc<Mutex<Taken>>,
    /// `None`: the node itself.
    client: Option<IpAddr>,
}

impl Room {
    /// With so many places for the node itself and for all others, and so many for each of those.
    pub fn new(node: usize, others: usize, each: usize) -> Self {
        let limits = Limits { node, others, each };
        Self { limits, taken: Arc::default(), refused: Arc::default() }
    }

    /// A place for a connection from `peer` to `local`; `None`, which is counted, if there is none left.
    pub fn admit(&self, peer: SocketAddr, local: SocketAddr) -> Option<Place> {
        let peer = peer.ip().to_canonical();
        // a packet from outside with one of these as its source is dropped by the kernel as martian
        let from_node = peer.is_loopback() || peer == local.ip().to_canonical();
        let client = (!from_node).then_some(peer);
        let has_place = take(&mut lock(&self.taken), &self.limits, client);
        if !has_place {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        has_place.then(|| Place { taken: self.taken.clone(), client })
    }

    /// Connections that got no place, since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

fn take(taken: &mut Taken, limits: &Limits, client: Option<IpAddr>) -> bool {
    let Some(client) = client else {
        let has_place = taken.node < limits.node;
        taken.node += usize::from(has_place);
        return has_place;
    };
    if taken.others >= limits.others {
        return false;
    }
    let of_client = taken.by_client.entry(client).or_default();
    if *of_client >= limits.each {
        return false;
    }
    *of_client += 1;
    taken.others += 1;
    true
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        let Some(client) = self.client else {
            taken.node = taken.node.saturating_sub(1);
            return;
        };
        taken.others = taken.others.saturating_sub(1);
        if let Entry::Occupied(mut entry) = taken.by_client.entry(client) {
            *entry.get_mut() = entry.get().saturating_sub(1);
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // counts only, each changed in one step
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 4000)
    }

    #[test]
    fn one_client_has_its_share_and_the_node_its_own() {
        let room = Room::new(2, 3, 2);
        let node = at("192.0.2.1");
        let admit = |peer: &str| room.admit(at(peer), node);
        let first: Vec<_> = (0..5).filter_map(|_| admit("10.0.0.1")).collect();
        assert_eq!((first.len(), room.refused()), (2, 3));
        // the same client in the other notation
        assert!(admit("::ffff:10.0.0.1").is_none());
        let second: Vec<_> = (0..5).filter_map(|_| admit("10.0.0.2")).collect();
        assert_eq!(second.len(), 1, "the sum is bounded too");
        let own: Vec<_> = ["127.0.0.1", "192.0.2.1", "::1"].into_iter().filter_map(admit).collect();
        assert_eq!(own.len(), 2);
        drop((first, own));
        assert!(admit("10.0.0.1").is_some() && admit("127.0.0.1").is_some());
        drop(second);
        assert!(lock(&room.taken).by_client.is_empty(), "who is gone is forgotten");
    }
}
