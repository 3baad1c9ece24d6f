//! BPF_PROG_TEST_RUN: one packet through one program, without a wire. For tests and measurements.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::abi::Direction;
use crate::pins::{FROM_POD, TO_POD};
use crate::{Error, Gate, ProgramSize, Result, sys};

/// What the program learns of the packet beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The host veth; a device of the caller's network namespace.
    pub ifindex: u32,
    /// Where the node received the packet; 0 if the node itself sends it.
    pub ingress_ifindex: u32,
}

/// What became of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The TC action: -1 for "next", 2 for "shot".
    pub action: i32,
    /// Average time of one run.
    pub duration: Duration,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
}

impl Gate {
    /// What the kernel says of the loaded programs' sizes: (from_pod, to_pod).
    pub fn program_sizes(&self) -> Result<(ProgramSize, ProgramSize)> {
        let size = |program: &OwnedFd, name| {
            sys::program_size(program.as_fd()).map_err(|e| Error::io("examine program", name, e))
        };
        Ok((size(&self.from_pod, FROM_POD)?, size(&self.to_pod, TO_POD)?))
    }

    /// Sends `packet`, an Ethernet frame, `repeat` times through the program of `direction`. The kernel
    /// refuses frames whose IP header is cut short, and ones beyond about 3.7 kB.
    pub fn test_run(
        &self,
        direction: Direction,
        context: Context,
        packet: &[u8],
        repeat: u32,
    ) -> Result<Outcome> {
        let (program, name) = match direction {
            Direction::Egress => (&self.from_pod, FROM_POD),
            Direction::Ingress => (&self.to_pod, TO_POD),
        };
        sys::test_run(program.as_fd(), context.ifindex, context.ingress_ifindex, packet, repeat)
            .map(|(action, nanoseconds, packet)| Outcome {
                action: action as i32,
                duration: Duration::from_nanos(nanoseconds.into()),
                packet,
            })
            .map_err(|e| Error::io("test-run program", name, e))
    }
}
