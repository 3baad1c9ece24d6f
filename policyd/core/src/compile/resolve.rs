//! Ranked rules, resolved: from the rules that match a peer, in the order of their evaluation, to one decision for each
//! protocol and port (docs/semantics.md 15).
//!
//! The kernel's map finds the most specific entry, which says nothing of order. So the order is resolved here: each stage
//! (local rules, Admin tier, NetworkPolicy, Baseline tier, default) takes what it decides out of what is still open, and what comes out
//! are ranges without overlaps.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Action, IpProtocol, Protocol};
use crate::tables::{Decision, Effect, PortMatch};

/// The stages of evaluation, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The node operator's own rules.
    Local,
    Admin,
    NetworkPolicy,
    Baseline,
}

/// All stages, in order.
pub(super) const STAGES: [Stage; 4] =
    [Stage::Local, Stage::Admin, Stage::NetworkPolicy, Stage::Baseline];

/// What a rule says of some ports of a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statement {
    pub(super) stage: Stage,
    pub(super) action: Action,
    pub(super) ports: PortMatch,
    /// For Accept and Deny.
    pub(super) decision: Decision,
}

/// How an evaluation ends where no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    /// At the end of the NetworkPolicy stage, if some policy isolates.
    pub(super) isolated: Option<Decision>,
    /// At the very end.
    pub(super) default: Decision,
}

/// Protocols that are resolved separately from others: those that some statement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Track {
    Ports(Protocol),
    /// One without ports: what is said of it is said of "all ports".
    Numbered(IpProtocol),
    /// All others together, of which nothing is said but of all their ports.
    Others,
}

/// Ports from first to last, inclusive.
type Range = (u16, u16);

/// The decision on every port, ascending, without gaps and overlaps.
type Pieces = Vec<(Range, Decision)>;

/// The decisions on everything. What is not among the tracks is decided as [`Track::Others`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved(BTreeMap<Track, Pieces>);

/// Resolves statements, which are in the order of their evaluation.
pub(super) fn resolve(statements: &[Statement], ends: Ends) -> Resolved {
    let named = statements.iter().filter_map(|statement| match statement.ports {
        PortMatch::Everything => None,
        PortMatch::Numbered(protocol) => Some(Track::Numbered(protocol)),
        PortMatch::Range { protocol, .. } => Some(Track::Ports(protocol)),
    });
    let tracks: BTreeSet<Track> = named.chain([Track::Others]).collect();
    Resolved(tracks.into_iter().map(|of| (of, track(of, statements, ends))).collect())
}

fn track(track: Track, statements: &[Statement], ends: Ends) -> Pieces {
    let mut open = vec![(0, u16::MAX)];
    let mut pieces = Pieces::new();
    for stage in STAGES {
        let mut passed = Vec::new();
        for statement in statements.iter().filter(|statement| statement.stage == stage) {
            let Some(range) = ports_of(track, statement.ports) else { continue };
            let taken = take(&mut open, range);
            match statement.action {
                Action::Pass => passed.extend(taken),
                Action::Accept | Action::Deny => {
                    pieces.extend(taken.into_iter().map(|range| (range, statement.decision)));
                }
            }
        }
        open.extend(passed);
        if stage == Stage::NetworkPolicy
            && let Some(isolated) = ends.isolated
        {
            pieces.extend(open.drain(..).map(|range| (range, isolated)));
        }
    }
    pieces.extend(open.into_iter().map(|range| (range, ends.default)));
    joined(pieces)
}

/// The ports of a track that these are, if any.
fn ports_of(track: Track, ports: PortMatch) -> Option<Range> {
    match ports {
        PortMatch::Everything => Some((0, u16::MAX)),
        PortMatch::Numbered(of) => (track == Track::Numbered(of)).then_some((0, u16::MAX)),
        PortMatch::Range { protocol: of, first, last } => {
            (track == Track::Ports(of)).then_some((first, last))
        }
    }
}

/// Takes a range out of those that are open, and returns what of it was.
fn take(open: &mut Vec<Range>, (first, last): Range) -> Vec<Range> {
    let (mut taken, mut left) = (Vec::new(), Vec::with_capacity(open.len() + 1));
    for (from, to) in open.drain(..) {
        if to < first || from > last {
            left.push((from, to));
            continue;
        }
        taken.push((from.max(first), to.min(last)));
        if let Some(before) = first.checked_sub(1).filter(|before| *before >= from) {
            left.push((from, before));
        }
        if let Some(after) = last.checked_add(1).filter(|after| *after <= to) {
            left.push((after, to));
        }
    }
    *open = left;
    taken
}

/// Sorted, with neighbours joined that say the same.
fn joined(mut pieces: Pieces) -> Pieces {
    pieces.sort_unstable_by_key(|(range, _)| *range);
    pieces.dedup_by(|((_, later_end), later), ((_, end), decision)| {
        let same = later == decision;
        if same {
            *end = *later_end;
        }
        same
    });
    pieces
}

impl Resolved {
    /// What is in force and what would be with the audited policies, together: where the latter would deny what passes now,
    /// it passes and is reported.
    pub(super) fn audited(self, with_audited: Self) -> Self {
        let tracks: BTreeSet<Track> = self.0.keys().chain(with_audited.0.keys()).copied().collect();
        let both = tracks.into_iter().map(|track| {
            let mut pieces = Pieces::new();
            let mut then = with_audited.of(track).iter().copied().peekable();
            for ((first, last), decision) in self.of(track).iter().copied() {
                let mut from = first;
                while let Some(((_, end), other)) = then.peek().copied() {
                    let to = end.min(last);
                    let denied = decision.effect.passes() && !other.effect.passes();
                    let both = match denied {
                        true => Decision { effect: Effect::Audit, ..other },
                        false => decision,
                    };
                    pieces.push(((from, to), both));
                    if end <= last {
                        then.next();
                    }
                    match to.checked_add(1) {
                        Some(next) if to < last => from = next,
                        _ => break,
                    }
                }
            }
            (track, joined(pieces))
        });
        Self(both.collect())
    }

    fn of(&self, track: Track) -> &[(Range, Decision)] {
        let known = self.0.get(&track).or_else(|| self.0.get(&Track::Others));
        known.map(Vec::as_slice).unwrap_or_default()
    }

    /// The entries of a class, without the class and as few as possible: the others inherit from the entry for everything,
    /// or from one for all ports of the protocol.
    pub(super) fn column(&self) -> Vec<(PortMatch, Decision)> {
        let others = self.of(Track::Others).first().map(|(_, decision)| *decision);
        let Some(others) = others else { return Vec::new() };
        let mut entries = vec![(PortMatch::Everything, others)];
        for (track, pieces) in &self.0 {
            let protocol = match track {
                Track::Ports(protocol) => *protocol,
                Track::Numbered(protocol) => {
                    let own = pieces.iter().filter(|(_, decision)| *decision != others);
                    let ports = PortMatch::Numbered(*protocol);
                    entries.extend(own.map(|(_, decision)| (ports, *decision)));
                    continue;
                }
                Track::Others => continue,
            };
            let base = base(pieces, others);
            if base != others {
                entries.push((PortMatch::all(protocol), base));
            }
            let exceptions = pieces.iter().filter(|(_, decision)| *decision != base);
            entries.extend(exceptions.map(|((first, last), decision)| {
                let (first, last) = (*first, *last);
                (PortMatch::Range { protocol, first, last }, *decision)
            }));
        }
        entries
    }
}

/// The decision that spares the most entries if all ports have it where nothing else is said: that of the most pieces,
/// and `others`, which need not be said, before one of as many. Of several the one with the lowest port: the numbers of
/// their rules depend on what was compiled before, and the entries must not.
fn base(pieces: &Pieces, others: Decision) -> Decision {
    let count = |wanted: Decision| pieces.iter().filter(|(_, of)| *of == wanted).count();
    let decisions = pieces.iter().map(|(_, decision)| *decision);
    // the last of several that are alike
    let best = decisions.rev().max_by_key(|decision| count(*decision));
    best.filter(|best| count(*best) > count(others)).unwrap_or(others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Direction;
    use crate::tables::{Class, Entry, RuleId, Table, Transport};
    use proptest::prelude::*;

    /// A decision on one packet in the most naive way.
    fn walk(statements: &[Statement], ends: Ends, packet: Transport) -> Decision {
        for stage in STAGES {
            for statement in statements.iter().filter(|statement| statement.stage == stage) {
                if statement.ports.matches(packet) {
                    match statement.action {
                        Action::Pass => break,
                        Action::Accept | Action::Deny => return statement.decision,
                    }
                }
            }
            if stage == Stage::NetworkPolicy
                && let Some(isolated) = ends.isolated
            {
                return isolated;
            }
        }
        ends.default
    }

    fn protocol() -> impl Strategy<Value = Protocol> {
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
    }

    fn ports() -> impl Strategy<Value = PortMatch> {
        let port = prop_oneof![4 => 0u16..6, 1 => (u16::MAX - 2)..=u16::MAX, 1 => any::<u16>()];
        prop_oneof![
            1 => Just(PortMatch::Everything),
            1 => protocol().prop_map(PortMatch::all),
            2 => (0u8..3).prop_map(|number| PortMatch::Numbered(IpProtocol(number))),
            4 => (protocol(), port.clone(), port).prop_map(|(protocol, a, b)| PortMatch::Range {
                protocol,
                first: a.min(b),
                last: a.max(b),
            }),
        ]
    }

    fn statement() -> impl Strategy<Value = Statement> {
        let stage = prop::sample::select(&STAGES[..]);
        let action = prop_oneof![Just(Action::Accept), Just(Action::Deny), Just(Action::Pass)];
        (stage, action, ports(), 10u32..20).prop_map(|(stage, action, ports, rule)| {
            let action = match (stage, action) {
                (Stage::NetworkPolicy, _) | (Stage::Local, Action::Pass) => Action::Accept,
                (_, action) => action,
            };
            let decision = match action {
                Action::Deny => Decision::deny(RuleId(rule)),
                Action::Accept | Action::Pass => Decision::allow(RuleId(rule)),
            };
            Statement { stage, action, ports, decision }
        })
    }

    fn ends() -> impl Strategy<Value = Ends> {
        (any::<bool>(), any::<bool>()).prop_map(|(isolated, denies)| Ends {
            isolated: isolated.then_some(Decision::deny(RuleId(3))),
            default: if denies { Decision::deny(RuleId(2)) } else { Decision::allow(RuleId(1)) },
        })
    }

    fn packets() -> Vec<Transport> {
        let ports = (0..8).chain([100, 40_000]).chain((u16::MAX - 4)..=u16::MAX);
        let of = |protocol| ports.clone().map(move |port| Transport::Port(protocol, port));
        let with_ports = of(Protocol::Tcp).chain(of(Protocol::Udp)).chain(of(Protocol::Sctp));
        let numbered = (0..4).map(|number| Transport::Number(IpProtocol(number)));
        with_ports.chain(numbered).chain([Transport::Other]).collect()
    }

    fn table(resolved: &Resolved) -> Table {
        let entry = |ports| Entry { direction: Direction::Ingress, class: Class(7), ports };
        let entries = resolved.column().into_iter().map(|(ports, of)| (entry(ports), of));
        Table { entries: entries.collect(), ranked: true, ..Table::default() }
    }

    proptest! {
        /// The entries decide on every packet as the rules do, evaluated one by one.
        #[test]
        fn the_entries_decide_as_the_rules_one_by_one(
            statements in prop::collection::vec(statement(), 0..12),
            ends in ends(),
        ) {
            let table = table(&resolve(&statements, ends));
            for packet in packets() {
                let found = table.lookup(Direction::Ingress, Class(7), packet);
                prop_assert_eq!(found, Some(walk(&statements, ends, packet)), "{}", packet);
            }
        }

        /// The verdict is that without the audited policies, and where only they would deny, it says so.
        #[test]
        fn an_audit_changes_no_verdict(
            statements in prop::collection::vec((statement(), any::<bool>()), 0..12),
            ends in ends(),
        ) {
            let all: Vec<_> = statements.iter().map(|(statement, _)| *statement).collect();
            let enforced = statements.iter().filter(|(_, audited)| !audited);
            let enforced: Vec<_> = enforced.map(|(statement, _)| *statement).collect();
            let resolved = resolve(&enforced, ends).audited(resolve(&all, ends));
            let table = table(&resolved);
            for packet in packets() {
                let found = table.lookup(Direction::Ingress, Class(7), packet).unwrap();
                let (now, then) = (walk(&enforced, ends, packet), walk(&all, ends, packet));
                let wanted = match (now.effect, then.effect) {
                    (Effect::Allow, Effect::Deny) => Decision { effect: Effect::Audit, ..then },
                    _ => now,
                };
                prop_assert_eq!(found, wanted, "{}", packet);
            }
        }
    }

    #[test]
    fn one_denied_port_costs_one_entry() {
        let statement = Statement {
            stage: Stage::Admin,
            action: Action::Deny,
            ports: PortMatch::one(Protocol::Tcp, 25),
            decision: Decision::deny(RuleId(9)),
        };
        let ends = Ends { isolated: None, default: Decision::allow(RuleId(1)) };
        assert_eq!(table(&resolve(&[statement], ends)).entries.len(), 2);
        let allowed = Statement { decision: Decision::allow(RuleId(9)), ..statement };
        let ends = Ends { isolated: Some(Decision::deny(RuleId(3))), ..ends };
        assert_eq!(table(&resolve(&[allowed], ends)).entries.len(), 2);
    }
}
