//! BPF_PROG_TEST_RUN: one packet through one program, without a wire. For tests and measurements.

use std::time::Duration;

use crate::abi::Direction;
use crate::programs::Programs;
use crate::{Datapath, Error, Result, sys};

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
    /// Its `skb->mark`.
    pub mark: u32,
    /// Its `skb->priority`.
    pub priority: u32,
}

impl Datapath {
    /// Sends `packet`, an Ethernet frame, `repeat` times through the program of `direction`, of the pair that the pod at the
    /// interface needs. The kernel refuses frames with a truncated IP header, and ones beyond about 3.7 kB.
    pub fn test_run(
        &self,
        direction: Direction,
        context: Context,
        packet: &[u8],
        repeat: u32,
    ) -> Result<Outcome> {
        self.programs_for("run", context.ifindex)?.run(direction, context, 0, packet, repeat)
    }

    /// As [`Datapath::test_run`], once, of a packet that has this `skb->mark`.
    pub fn test_run_marked(
        &self,
        direction: Direction,
        context: Context,
        mark: u32,
        packet: &[u8],
    ) -> Result<Outcome> {
        self.programs_for("run", context.ifindex)?.run(direction, context, mark, packet, 1)
    }

    /// Sends `packet` through the program of `direction` of each loaded pair: the actions, by the programs' names.
    pub fn test_run_all(
        &self,
        direction: Direction,
        context: Context,
        packet: &[u8],
    ) -> Result<Vec<(&'static str, i32)>> {
        let pairs = [Some(&self.plain), self.metered_if_loaded()?];
        let run = |programs: &Programs| {
            let outcome = programs.run(direction, context, 0, packet, 1)?;
            Ok((programs.name(direction), outcome.action))
        };
        pairs.into_iter().flatten().map(run).collect()
    }
}

impl Programs {
    fn run(
        &self,
        direction: Direction,
        context: Context,
        mark: u32,
        packet: &[u8],
        repeat: u32,
    ) -> Result<Outcome> {
        let interfaces = (context.ifindex, context.ingress_ifindex);
        sys::test_run(self.judging(direction), interfaces, mark, packet, repeat)
            .map(|run| Outcome {
                action: run.action as i32,
                duration: Duration::from_nanos(run.duration.into()),
                packet: run.packet,
                mark: run.mark,
                priority: run.priority,
            })
            .map_err(|e| Error::io("test-run program", self.name(direction), e))
    }
}
