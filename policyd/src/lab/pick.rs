//! Probes to a service: the gate picks an endpoint for each packet, so many are sent until every endpoint was seen.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use podgate_policy::explain::Verdict;

use super::error::{Error, Result};
use super::wire::{Outcome, Patience, Shot, ask, ask_once};

/// Packets are sent in rounds of so many for each endpoint.
const EACH: usize = 3;
/// After so many rounds an endpoint that was not seen never is: by chance that happens once in 10^20 cases.
const ROUNDS: usize = 16;

/// An endpoint of a service, as a probe may meet it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// What it says when it answers.
    pub(super) name: String,
    /// What the tables say of packets to it.
    pub(super) expected: Verdict,
}

/// Sends to a service until every one of its endpoints has been seen, and says what came of each. Which one a
/// packet was for shows only if it is answered: silence is put down to those from which silence is expected.
pub(super) async fn sample(shot: &Shot, targets: &[Target], sticky: bool) -> Result<Vec<Outcome>> {
    let denied = targets.iter().any(|target| target.expected == Verdict::Deny);
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        // where silence means something each packet counts; else a packet lost on a busy machine does not
        let shots = stream::iter(0..EACH * targets.len()).map(|_| async {
            match denied {
                true => ask_once(shot).await,
                false => ask(shot, Patience::Answer).await,
            }
        });
        let outcomes = shots.buffer_unordered(targets.len().min(16)).collect::<Vec<_>>().await;
        for outcome in outcomes {
            seen.take(shot, targets, outcome?)?;
        }
        // a client that keeps its endpoint never sees another one
        if sticky || seen.everything(targets) {
            break;
        }
    }
    Ok(targets.iter().map(|target| seen.outcome(target, sticky)).collect())
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
    fn take(&mut self, shot: &Shot, targets: &[Target], outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Answered(Some(name)) if targets.iter().all(|target| target.name != name) => {
                return Err(Error::Layout(format!(
                    "a packet to the service at {} was answered by {name}, which is no endpoint of it",
                    shot.to
                )));
            }
            Outcome::Answered(Some(name)) => drop(self.names.insert(name)),
            Outcome::Answered(None) => self.nameless = true,
            Outcome::Silent | Outcome::Unanswered => self.silence = true,
            Outcome::Unroutable(reason) => {
                return Err(Error::Layout(format!(
                    "send a packet from {} to the service at {}: {reason}",
                    shot.from, shot.to
                )));
            }
        }
        Ok(())
    }

    fn answered(&self, target: &Target) -> bool {
        self.names.contains(&target.name) || self.nameless && target.expected == Verdict::Allow
    }

    fn everything(&self, targets: &[Target]) -> bool {
        targets.iter().all(|target| match target.expected {
            Verdict::Allow => self.answered(target),
            Verdict::Deny => self.silence || self.answered(target),
        })
    }

    fn outcome(&self, target: &Target, sticky: bool) -> Outcome {
        let unseen = sticky && (self.nameless || !self.names.is_empty() || self.silence);
        match target.expected {
            _ if self.answered(target) => Outcome::Answered(Some(target.name.clone())),
            // it was never this one's turn
            Verdict::Allow if unseen => Outcome::Answered(Some(target.name.clone())),
            Verdict::Allow => Outcome::Silent,
            Verdict::Deny if self.silence || unseen => Outcome::Silent,
            // nothing was lost: packets for it went somewhere else, or to it and were answered by nobody
            Verdict::Deny => Outcome::Answered(None),
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

    fn target(name: &str, expected: Verdict) -> Target {
        Target { name: name.into(), expected }
    }

    #[test]
    fn an_endpoint_that_does_not_do_as_it_should_shows() {
        let both = [target("a", Verdict::Allow), target("b", Verdict::Deny)];
        let answered = |name: &str| Outcome::Answered(Some(name.into()));
        for (of, everything, outcomes) in [
            (seen(&["a"], true), true, [answered("a"), Outcome::Silent]),
            (seen(&["a"], false), false, [answered("a"), Outcome::Answered(None)]),
            (seen(&[], true), false, [Outcome::Silent, Outcome::Silent]),
            (seen(&["a", "b"], false), true, [answered("a"), answered("b")]),
        ] {
            assert_eq!(of.everything(&both), everything, "{of:?}");
            let found = both.each_ref().map(|target| of.outcome(target, false));
            assert_eq!(found, outcomes, "{of:?}");
        }
    }
}
