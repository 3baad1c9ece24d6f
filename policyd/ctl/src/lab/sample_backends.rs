//! Probes to a service: the gate selects an endpoint for each flow, so flows are opened until every endpoint was seen.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use podgate_contract::api::Verdict;

use super::error::{Error, Result};
use super::wire::{PacketSpec, Patience, Response, ask, ask_once};

/// Packets are sent in rounds of so many for each endpoint.
const EACH: usize = 3;
/// After so many rounds an endpoint that was not seen never is: by chance that happens once in 10^20 cases.
const ROUNDS: usize = 16;

/// An endpoint of a service, as a probe may meet it.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    /// What it says when it answers.
    pub(super) name: String,
    /// What the tables say of packets to it.
    pub(super) expected: Verdict,
}

/// Sends to a service until every one of its endpoints has been seen, and says what came of each. Which one a
/// packet was for shows only if it is answered: silence is put down to those from which silence is expected.
pub(super) async fn sample(
    packet: &PacketSpec,
    backends: &[Backend],
    sticky: bool,
) -> Result<Vec<Response>> {
    let denied = backends.iter().any(|backend| backend.expected == Verdict::Deny);
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        // where silence means something each packet counts; else a packet lost on a busy machine does not
        let packets = stream::iter(0..EACH * backends.len()).map(|_| async {
            match denied {
                true => ask_once(packet).await,
                false => ask(packet, Patience::Answer).await,
            }
        });
        let responses = packets.buffer_unordered(backends.len().min(16)).collect::<Vec<_>>().await;
        for response in responses {
            seen.take(packet, backends, response?)?;
        }
        // a client that keeps its endpoint never sees another one
        if sticky || seen.everything(backends) {
            break;
        }
    }
    Ok(backends.iter().map(|backend| seen.response(backend, sticky)).collect())
}

/// What came back so far.
#[derive(Debug, Default)]
struct Seen {
    names: BTreeSet<String>,
    /// Answers that do not say whose they are.
    nameless: bool,
    silence: bool,
}

impl Seen {
    fn take(
        &mut self,
        packet: &PacketSpec,
        backends: &[Backend],
        response: Response,
    ) -> Result<()> {
        match response {
            Response::Answered(Some(name))
                if backends.iter().all(|backend| backend.name != name) =>
            {
                return Err(Error::Layout(format!(
                    "a packet to the service at {} was answered by {name}, which is no endpoint of it",
                    packet.to
                )));
            }
            Response::Answered(Some(name)) => drop(self.names.insert(name)),
            Response::Answered(None) => self.nameless = true,
            Response::Silent | Response::Unanswered => self.silence = true,
            Response::Unroutable(reason) => {
                return Err(Error::Layout(format!(
                    "send a packet from {} to the service at {}: {reason}",
                    packet.from, packet.to
                )));
            }
        }
        Ok(())
    }

    fn answered(&self, backend: &Backend) -> bool {
        self.names.contains(&backend.name) || self.nameless && backend.expected == Verdict::Allow
    }

    fn everything(&self, backends: &[Backend]) -> bool {
        backends.iter().all(|backend| match backend.expected {
            Verdict::Allow | Verdict::Mixed => self.answered(backend),
            Verdict::Deny => self.silence || self.answered(backend),
        })
    }

    fn response(&self, backend: &Backend, sticky: bool) -> Response {
        let unseen = sticky && (self.nameless || !self.names.is_empty() || self.silence);
        match backend.expected {
            _ if self.answered(backend) => Response::Answered(Some(backend.name.clone())),
            // it was never this one's turn
            Verdict::Allow | Verdict::Mixed if unseen => {
                Response::Answered(Some(backend.name.clone()))
            }
            Verdict::Allow | Verdict::Mixed => Response::Silent,
            Verdict::Deny if self.silence || unseen => Response::Silent,
            // nothing was lost: packets for it went somewhere else, or to it and were not answered
            Verdict::Deny => Response::Answered(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(names: &[&str], silence: bool) -> Seen {
        let names = names.iter().map(ToString::to_string).collect();
        Seen { names, nameless: false, silence }
    }

    fn backend(name: &str, expected: Verdict) -> Backend {
        Backend { name: name.into(), expected }
    }

    #[test]
    fn an_endpoint_that_does_not_do_as_it_should_shows() {
        let both = [backend("a", Verdict::Allow), backend("b", Verdict::Deny)];
        let answered = |name: &str| Response::Answered(Some(name.into()));
        for (of, everything, responses) in [
            (seen(&["a"], true), true, [answered("a"), Response::Silent]),
            (seen(&["a"], false), false, [answered("a"), Response::Answered(None)]),
            (seen(&[], true), false, [Response::Silent, Response::Silent]),
            (seen(&["a", "b"], false), true, [answered("a"), answered("b")]),
        ] {
            assert_eq!(of.everything(&both), everything, "{of:?}");
            let found = both.each_ref().map(|backend| of.response(backend, false));
            assert_eq!(found, responses, "{of:?}");
        }
    }
}
