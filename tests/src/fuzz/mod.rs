//! Fuzzing one gate: frames, mutated and in sequence, and an evaluator that says what each must meet.
//!
//! The evaluator ([`strict`], [`control`], [`judge`]) is written from the semantics alone. It shares no parsing with
//! the programs, with the oracle or with the packet builder: what those take for granted, it must not.
//!
//! | file | question |
//! |---|---|
//! | `dice` | which random choice comes next? The same for the same seed |
//! | `frames` | what could a host, or an attacker, send? |
//! | `sequences` | which packets follow each other, so that the programs get to have state? |
//! | `mutate` | how is a frame damaged? |
//! | `strict` | what is in this frame, read without good will? |
//! | `control` | is it the ARP, ND, MLD or DHCP that it claims to be? |
//! | `judge` | must it pass, must it be dropped, or is that open? |
//! | `shrink` | how much of a failing sequence does the failure need? |

pub mod control;
pub mod dice;
pub mod frames;
pub mod judge;
pub mod mutate;
pub mod sequences;
pub mod shrink;
pub mod strict;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

pub use podgate_bpf::abi::Direction;

/// How a frame came to the gate, apart from its bytes: `ingress_ifindex`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Through another interface of the node.
    Uplink,
    /// Index 0: made on the node, or forwarded where the kernel loses the index. `BPF_PROG_TEST_RUN` puts a socket on
    /// every packet, so that the two cannot be told apart there.
    Nothing,
    /// Through the pod's own interface.
    Pod,
}

impl Via {
    /// As the corpus spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Nothing => "nothing",
            Self::Pod => "pod",
        }
    }
}

/// One frame on its way through one program.
#[derive(Clone, PartialEq, Eq)]
pub struct Shot {
    /// From the pod, or to it.
    pub direction: Direction,
    /// Where it entered the node; of a frame from the pod always its own interface.
    pub via: Via,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

impl fmt::Debug for Shot {
    /// In hex, and as the strict reader sees it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = crate::kernel::hex(&self.frame);
        let (direction, via) = (self.direction.name(), self.via.name());
        write!(f, "{direction}; {via}; {hex}\n    {:?}", strict::read(&self.frame))
    }
}

/// The addresses and ports that frames are made of.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The pod's addresses.
    pub own: Vec<IpAddr>,
    /// Addresses of others.
    pub peers: Vec<IpAddr>,
    /// The node's.
    pub nodes: Vec<IpAddr>,
    /// Ports that policies may speak of.
    pub ports: Vec<u16>,
}

/// How long to go on, all fuzzing trials of a run together: `PODGATE_FUZZ_SECONDS`, 60 unless set.
pub fn time() -> Duration {
    Duration::from_secs(number("PODGATE_FUZZ_SECONDS").unwrap_or(60))
}

/// `PODGATE_FUZZ_SEED`; or in CI always the same, so that a change is judged by itself and not by the luck of its frames; or
/// one that no other run has.
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let by_chance = || match std::env::var_os("CI") {
        Some(_) => 1,
        None => RandomState::new().hash_one(()),
    };
    number("PODGATE_FUZZ_SEED").unwrap_or_else(by_chance)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}
