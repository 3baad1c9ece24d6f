//! The kernel tier's tables: a world, packets in order, and what each must meet.
//!
//! Every table has programs and maps of its own (its own pins), so tables run side by side. A packet's
//! expectation is a [`Reason`]: exactly that counter of that direction must rise, by one packet and the
//! packet's bytes, no other may, and the verdict must be the reason's. What failed is shown with the whole world.
//!
//! ```ignore
//! table("a reply is of its flow", World::isolated().allow(Ingress, ANY, Ports::One(TCP, 80)))
//!     .to_pod(tcp(40000, 80).syn().between(PEER, POD), AllowPolicy)
//!     .from_pod(tcp(80, 40000).syn_ack().between(POD, PEER), AllowFlow)
//! ```

mod lab;
mod limits;
mod wire;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use libtest_mimic::{Completion, Trial};
use podgate_bpf::abi::{Direction, Reason};

use lab::Carrier;
pub use lab::{DROP, Lab, Met, NEXT, REDIRECT};
use wire::NotCarried;
pub use world::{Ports, Service, World};

use podgate_testkit::packet::Ip;

/// The pod of every table.
pub const POD: &str = "10.0.0.5";
/// The same.
pub const POD6: &str = "fd00::5";
/// Somebody else, of class [`world::PEER_CLASS`] in worlds that say so.
pub const PEER: &str = "10.0.0.9";
/// The same.
pub const PEER6: &str = "fd00::9";
/// The node, in worlds that say so.
pub const NODE: &str = "10.0.0.1";
/// The same.
pub const NODE6: &str = "fd00::1";
/// Entries of this class hold for every peer.
pub const ANY: u32 = podgate_bpf::abi::CLASS_ANY;
/// An interface through which packets reach the node; none is 0.
pub const UPLINK: u32 = 4242;

/// Anything that can be sent.
pub trait Frame {
    /// The Ethernet frame.
    fn into_frame(self) -> Vec<u8>;
}

impl Frame for Ip {
    fn into_frame(self) -> Vec<u8> {
        self.frame()
    }
}

impl Frame for Vec<u8> {
    fn into_frame(self) -> Vec<u8> {
        self
    }
}

type Act = Box<dyn FnOnce(&mut Lab) + Send>;

/// Through which interface a packet came into the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Another one than the pod's.
    Uplink,
    /// None: the node's own stack made it.
    Nothing,
    /// The pod's own.
    Pod,
}

/// What a packet that passes looks like afterwards.
enum Leaves {
    /// As it came.
    Untouched,
    /// Like this.
    As(Vec<u8>),
    /// Like this, back to the pod.
    BackAs(Vec<u8>),
    /// Denied, and this is sent to its sender instead.
    Answer(Vec<u8>),
}

enum Step {
    Packet { direction: Direction, frame: Vec<u8>, via: Via, expected: Reason, leaves: Leaves },
    Act { what: String, act: Act },
}

/// A named sequence of packets and changes in a world.
pub struct Table {
    name: String,
    world: World,
    carrier: Carrier,
    steps: Vec<Step>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} steps)", self.name, self.steps.len())
    }
}

/// Starts a table.
pub fn table(name: impl Into<String>, world: World) -> Table {
    Table { name: name.into(), world, carrier: Carrier::TestRun, steps: Vec::new() }
}

impl Table {
    fn packet(
        mut self,
        direction: Direction,
        frame: impl Frame,
        via: Via,
        expected: Reason,
        leaves: Leaves,
    ) -> Self {
        let frame = frame.into_frame();
        self.steps.push(Step::Packet { direction, frame, via, expected, leaves });
        self
    }

    /// The pod sends.
    pub fn from_pod(self, frame: impl Frame, expected: Reason) -> Self {
        self.packet(Direction::Egress, frame, Via::Nothing, expected, Leaves::Untouched)
    }

    /// Somebody sends to the pod, through an interface of the node.
    pub fn to_pod(self, frame: impl Frame, expected: Reason) -> Self {
        self.packet(Direction::Ingress, frame, Via::Uplink, expected, Leaves::Untouched)
    }

    /// The node's own stack sends to the pod.
    pub fn node_to_pod(self, frame: impl Frame, expected: Reason) -> Self {
        self.packet(Direction::Ingress, frame, Via::Nothing, expected, Leaves::Untouched)
    }

    /// What the pod itself has sent comes back to it.
    pub fn pod_to_pod(self, frame: impl Frame, expected: Reason) -> Self {
        self.packet(Direction::Ingress, frame, Via::Pod, expected, Leaves::Untouched)
    }

    /// The pod sends, and what leaves for the node is `becomes`, byte for byte.
    pub fn from_pod_as(self, frame: impl Frame, expected: Reason, becomes: impl Frame) -> Self {
        let leaves = Leaves::As(becomes.into_frame());
        self.packet(Direction::Egress, frame, Via::Nothing, expected, leaves)
    }

    /// Somebody sends, and what the pod receives is `becomes`, byte for byte.
    pub fn to_pod_as(self, frame: impl Frame, expected: Reason, becomes: impl Frame) -> Self {
        let leaves = Leaves::As(becomes.into_frame());
        self.packet(Direction::Ingress, frame, Via::Uplink, expected, leaves)
    }

    /// The pod sends; it comes back as `becomes` with the Ethernet addresses swapped, meets the gate on its way in
    /// as what the pod sent itself, and passes there as of a known flow.
    pub fn comes_back_as(self, frame: impl Frame, expected: Reason, becomes: impl Frame) -> Self {
        let mut back = becomes.into_frame();
        let (to, from) = back.split_at_mut(6);
        to.swap_with_slice(&mut from[..6]);
        let leaves = Leaves::BackAs(back.clone());
        self.packet(Direction::Egress, frame, Via::Nothing, expected, leaves)
            .pod_to_pod(back, Reason::AllowFlow)
    }

    /// The packet is denied by policy, and in its place `answer` goes back with the Ethernet addresses swapped. No carrier
    /// sees where to; a packet to the pod is of the node's stack.
    pub fn answered_as(self, direction: Direction, frame: impl Frame, answer: impl Frame) -> Self {
        self.refused_as(direction, frame, Reason::DenyPolicy, answer)
    }

    /// As [`Table::answered_as`], denied for this reason.
    pub fn refused_as(
        self,
        direction: Direction,
        frame: impl Frame,
        reason: Reason,
        answer: impl Frame,
    ) -> Self {
        let mut answer = answer.into_frame();
        let (to, from) = answer.split_at_mut(6);
        to.swap_with_slice(&mut from[..6]);
        let leaves = Leaves::Answer(answer);
        self.packet(direction, frame, Via::Nothing, reason, leaves)
    }

    /// Sends what the node received over real interfaces on every kernel, as is done where a test run cannot say where that
    /// was.
    #[must_use]
    pub fn over_wire(self) -> Self {
        Self { carrier: Carrier::Wire, ..self }
    }

    /// Something else happens.
    pub fn then(
        mut self,
        what: impl Into<String>,
        act: impl FnOnce(&mut Lab) + Send + 'static,
    ) -> Self {
        self.steps.push(Step::Act { what: what.into(), act: Box::new(act) });
        self
    }

    /// The policy's entries change, and the epoch moves.
    pub fn change(self, act: impl FnOnce(&mut Lab) + Send + 'static) -> Self {
        self.then("policy changes", move |lab| {
            act(lab);
            lab.bump();
        })
    }

    /// Runs it; panics at the first packet that meets something else than expected.
    pub fn run(self) {
        let mut lab = Lab::with(&self.world, self.carrier);
        for (number, step) in self.steps.into_iter().enumerate() {
            let number = number + 1;
            match step {
                Step::Packet { direction, frame, via, expected, leaves } => {
                    let met = lab.send(direction, &frame, via);
                    let (action, after) = match &leaves {
                        Leaves::Answer(after) => (lab::REDIRECT, Some(after)),
                        _ if expected.is_denial() => (lab::DROP, None),
                        Leaves::Untouched => (lab::NEXT, Some(&frame)),
                        Leaves::As(after) => (lab::NEXT, Some(after)),
                        Leaves::BackAs(after) => (lab::REDIRECT, Some(after)),
                    };
                    let wrong = met.is_counted(action, expected, frame.len());
                    let wrong = wrong.and_then(|()| match after {
                        Some(after) if *after != met.packet => Err(format!(
                            "it left as\n  {}\nand not as\n  {}",
                            hex(&met.packet),
                            hex(after)
                        )),
                        _ => Ok(()),
                    });
                    if let Err(wrong) = wrong {
                        panic!(
                            "step {number}, {} of {} bytes: {wrong}\n  frame {}\n{lab}",
                            direction.name(),
                            frame.len(),
                            hex(&frame),
                        );
                    }
                }
                Step::Act { what, act } => {
                    let outcome = catch_unwind(AssertUnwindSafe(|| act(&mut lab)));
                    if let Err(panic) = outcome {
                        eprintln!("step {number}, {what}:\n{lab}");
                        resume_unwind(panic);
                    }
                }
            }
        }
    }

    /// As a test. One whose frames the wire cannot carry is not run where there is only that, and says so.
    pub fn trial(self) -> Trial {
        Trial::ignorable_test(self.name.clone(), move || {
            let panic = match catch_unwind(AssertUnwindSafe(|| self.run())) {
                Ok(()) => return Ok(Completion::Completed),
                Err(panic) => panic,
            };
            match panic.downcast::<NotCarried>() {
                Ok(reason) => Ok(Completion::ignored_with(reason)),
                Err(panic) => resume_unwind(panic),
            }
        })
    }
}

/// Bytes, readable.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
