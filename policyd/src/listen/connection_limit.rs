//! How many connections a TCP listener accepts, in total and from each client.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts connections against limits. The node itself has a limit of its own, so that its health checks are answered
/// whatever the number of other clients; each other address has a small one, so that one client cannot use up the total.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
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

/// Counts one connection until it is dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    taken: Arc<Mutex<Taken>>,
    /// `None`: the node itself.
    client: Option<IpAddr>,
}

impl ConnectionLimit {
    /// Limits for the node itself, for all other clients together, and for each of those.
    pub fn new(node: usize, others: usize, each: usize) -> Self {
        let limits = Limits { node, others, each };
        Self { limits, taken: Arc::default(), refused: Arc::default() }
    }

    /// A permit for a connection from `peer` to `local`. `None` if a limit is reached; the refusal is counted.
    pub fn admit(&self, peer: SocketAddr, local: SocketAddr) -> Option<ConnectionPermit> {
        let peer = peer.ip().to_canonical();
        // a packet from outside with one of these as its source is dropped by the kernel as martian
        let from_node = peer.is_loopback() || peer == local.ip().to_canonical();
        let client = (!from_node).then_some(peer);
        let admitted = take(&mut lock(&self.taken), &self.limits, client);
        if !admitted {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted.then(|| ConnectionPermit { taken: self.taken.clone(), client })
    }

    /// Connections refused since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

fn take(taken: &mut Taken, limits: &Limits, client: Option<IpAddr>) -> bool {
    let Some(client) = client else {
        let admitted = taken.node < limits.node;
        taken.node += usize::from(admitted);
        return admitted;
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

impl Drop for ConnectionPermit {
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
    // a panic cannot leave the counts inconsistent
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
        let limit = ConnectionLimit::new(2, 3, 2);
        let node = at("192.0.2.1");
        let admit = |peer: &str| limit.admit(at(peer), node);
        let first: Vec<_> = (0..5).filter_map(|_| admit("10.0.0.1")).collect();
        assert_eq!((first.len(), limit.refused()), (2, 3));
        // the same client in the other notation
        assert!(admit("::ffff:10.0.0.1").is_none());
        let second: Vec<_> = (0..5).filter_map(|_| admit("10.0.0.2")).collect();
        assert_eq!(second.len(), 1, "the sum is bounded too");
        let own: Vec<_> = ["127.0.0.1", "192.0.2.1", "::1"].into_iter().filter_map(admit).collect();
        assert_eq!(own.len(), 2);
        drop((first, own));
        assert!(admit("10.0.0.1").is_some() && admit("127.0.0.1").is_some());
        drop(second);
        assert!(lock(&limit.taken).by_client.is_empty(), "no entry remains");
    }
}
