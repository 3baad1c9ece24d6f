//! Frontends, what a pod sends to, and their backends.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use podgate_contract::api::BackendState;

use crate::model::{ObjectKey, Protocol};

/// What a pod sends to: an address of a service, a port and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The service's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// An endpoint of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address, of the frontend's family.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// The backends over which a frontend's flows are spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSet {
    /// The service that the frontend belongs to.
    pub service: ObjectKey,
    /// The service port's name, empty if it has none.
    pub port: Arc<str>,
    /// For how many seconds a client keeps its endpoint, if it does.
    pub affinity: Option<NonZeroU32>,
    /// At least one of them is [`BackendState::Ready`].
    pub backends: BTreeMap<Backend, BackendState>,
    /// Those that take new flows, but not this node's: topology hints intend them for others. Sorted; in `backends` they are
    /// [`BackendState::Serving`].
    pub left_out: Vec<Backend>,
}

impl BackendSet {
    /// The backends that may be selected for new flows, sorted.
    pub fn ready(&self) -> impl Iterator<Item = Backend> + '_ {
        let ready = self.backends.iter().filter(|(_, state)| **state == BackendState::Ready);
        ready.map(|(backend, _)| *backend)
    }

    /// The backends that a proxy may select for new flows: it need not know the hints that hold here, as one of an older
    /// version does not, and one that has not yet seen a change.
    pub fn ready_anywhere(&self) -> impl Iterator<Item = Backend> + '_ {
        self.ready().chain(self.left_out.iter().copied())
    }
}

/// A frontend that several services claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// The frontend.
    pub frontend: Frontend,
    /// The service that has it: the first by name.
    pub winner: ObjectKey,
    /// The others.
    pub losers: Vec<ObjectKey>,
}

impl fmt::Display for Dispute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let losers: Vec<_> = self.losers.iter().map(ToString::to_string).collect();
        write!(
            f,
            "service {}: {} is also claimed by {}: the first by name has it, change the others' address or port",
            self.winner,
            self.frontend,
            losers.join(", ")
        )
    }
}
