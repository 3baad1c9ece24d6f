//! Random worlds: what the compiled tables say of every probe is what the oracle says.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::cell::Cell;
use std::net::IpAddr;

use podgate_policy::compile::Engine;
use podgate_policy::tables::{Class, Decision, Effect, RuleOrigin, Table};
use podgate_tests::compiling::{direction, endpoint_id, endpoints, index, to_itself, transport};
use podgate_tests::oracle::{Decider, Gate, L4, Policies, Ruling, World, ruling, ruling_on_itself};
use podgate_tests::worlds::{
    config, probe_addresses, probe_ports, ranked_worlds, sole_addresses, worlds,
};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

const WORLDS: u32 = 600;
const RANKED_WORLDS: u32 = 200;

/// How many verdicts were what.
#[derive(Debug, Default)]
struct Tally {
    allowed: Cell<u64>,
    denied: Cell<u64>,
    audited: Cell<u64>,
    /// Of those, by a rule of a ClusterNetworkPolicy.
    by_rules: Cell<u64>,
    /// By a local rule.
    by_local_rules: Cell<u64>,
    /// By a default mode.
    by_defaults: Cell<u64>,
    /// Of the denied, so that the sender is told.
    rejected: Cell<u64>,
    /// Of what a pod sends to itself through a service.
    to_itself_denied: Cell<u64>,
}

fn count(of: &Cell<u64>) {
    of.set(of.get() + 1);
}

impl Tally {
    fn compared(&self) -> u64 {
        self.allowed.get() + self.denied.get() + self.audited.get()
    }

    /// Worlds in which hardly anything is allowed, or denied, would prove little.
    fn assert_enough_of_each(&self) {
        let least = self.compared() / 20;
        assert!(self.allowed.get() > least && self.denied.get() > least, "{self:?}");
    }
}

/// What the oracle says with and without the policies that are only audited, in one word, and who says it.
fn expected(ruling: impl Fn(Policies) -> Ruling) -> (Effect, Decider) {
    let now = ruling(Policies::InForce);
    if !now.passes {
        return (if now.rejects { Effect::Reject } else { Effect::Deny }, now.by);
    }
    let with_audited = ruling(Policies::AndAudited);
    match with_audited.passes {
        true => (Effect::Allow, now.by),
        false => (Effect::Audit, with_audited.by),
    }
}

/// A table's decision. Without one it is denied, by no rule.
fn effect(found: Option<Decision>) -> Effect {
    found.map_or(Effect::Deny, |decision| decision.effect)
}

/// Whether a decision names the rule that decides.
fn names(engine: &Engine, gate: Gate, found: Option<Decision>, by: &Decider) -> bool {
    let Some(decision) = found else { return *by == Decider::NetworkPolicies };
    match (engine.origin(decision.rule), by) {
        (Some(RuleOrigin::NotIsolated(of)), Decider::Nobody) => *of == direction(gate),
        (
            Some(
                RuleOrigin::Policy { direction: of, .. }
                | RuleOrigin::Isolated { direction: of, .. },
            ),
            Decider::NetworkPolicies,
        ) => *of == direction(gate),
        (
            Some(RuleOrigin::Cluster { policy: id, direction: of, index, .. }),
            Decider::Cluster { policy, rule },
        ) => *of == direction(gate) && *id.name == **policy && index == rule,
        (Some(RuleOrigin::Local { id, .. }), Decider::LocalRule(by)) => u64::from(*id) == *by,
        (
            Some(RuleOrigin::LocalDefault { pod, direction: of }),
            Decider::LocalDefault { of_pod },
        ) => *of == direction(gate) && pod.is_some() == *of_pod,
        _ => false,
    }
}

/// Whether the policy that decides asks for a report.
fn is_logged(world: &World, by: &Decider) -> Option<bool> {
    let Decider::Cluster { policy: name, .. } = by else { return None };
    let mut objects = world.cluster_policies.iter().map(|policy| &policy.object);
    let metadata = &objects.find(|of| of["metadata"]["name"] == **name)?["metadata"];
    Some(metadata["annotations"].get("podgate.io/log").is_some())
}

struct Compiled<'a> {
    world: &'a World,
    engine: &'a Engine,
    tally: &'a Tally,
}

impl Compiled<'_> {
    fn judge(
        &self,
        (pod, gate, peer, l4): (usize, Gate, IpAddr, L4),
        (class, table): (Class, &Table),
    ) -> Result<(), TestCaseError> {
        let Self { world, engine, tally } = *self;
        let of = |policies| ruling(world, &world.pods[pod], gate, peer, l4, policies);
        let (wanted, by) = expected(of);
        let found = table.lookup(direction(gate), class, transport(l4, peer));
        count(match wanted {
            Effect::Allow => &tally.allowed,
            Effect::Deny | Effect::Reject => &tally.denied,
            Effect::Audit => &tally.audited,
        });
        match by {
            Decider::Cluster { .. } => count(&tally.by_rules),
            Decider::LocalRule(_) => count(&tally.by_local_rules),
            Decider::LocalDefault { .. } => count(&tally.by_defaults),
            Decider::Nobody | Decider::NetworkPolicies => {}
        }
        if wanted == Effect::Reject {
            count(&tally.rejected);
        }
        let logged = is_logged(world, &by);
        prop_assert!(
            effect(found) == wanted
                && names(engine, gate, found, &by)
                && logged.is_none_or(|log| found.is_some_and(|of| of.log == log)),
            "{gate:?} of pod-{pod}, peer {peer}, {l4:?}: {wanted:?} by {by:?}, logged {logged:?}, but \
             {found:?}, {:?}; class {class:?}, table {table:#?}",
            found.map(|found| engine.origin(found.rule))
        );
        Ok(())
    }

    /// What the pod sends to itself through a service that leads to this address of its own.
    fn judge_itself(
        &self,
        (pod, gate, own, l4): (usize, Gate, IpAddr, L4),
        table: &Table,
    ) -> Result<(), TestCaseError> {
        let world = self.world;
        let of = |policies| ruling_on_itself(world, &world.pods[pod], gate, own, l4, policies);
        let (wanted, by) = expected(of);
        let found = to_itself(table, direction(gate), own, transport(l4, own));
        let found = found.map_or(Effect::Allow, |decision| decision.effect);
        if wanted != Effect::Allow {
            count(&self.tally.to_itself_denied);
        }
        prop_assert!(
            found == wanted,
            "{gate:?} of pod-{pod} at itself, {own}, {l4:?}: {wanted:?} by {by:?}, but {found:?}; \
             table {table:#?}"
        );
        Ok(())
    }
}

fn compare(world: &World, tally: &Tally) -> Result<(), TestCaseError> {
    let index = index(world).unwrap();
    let engine = Engine::of(&index, endpoints(world).unwrap());
    let judging = Compiled { world, engine: &engine, tally };
    let compiled = engine.compiled();
    let classes = compiled.classifier();
    for (pod, addresses) in &world.interfaces {
        let table = &compiled.tables[&endpoint_id(*pod)];
        for gate in [Gate::Ingress, Gate::Egress] {
            for peer in probe_addresses() {
                let class = classes.class_of(peer);
                for l4 in probe_ports() {
                    judging.judge((*pod, gate, peer, l4), (class, table))?;
                }
            }
            for own in sole_addresses(addresses) {
                for l4 in probe_ports() {
                    judging.judge_itself((*pod, gate, own, l4), table)?;
                }
            }
        }
    }
    // the contract of the class maps: no exact address that `nets` would answer alike
    for (address, class) in &compiled.hosts {
        prop_assert_ne!(*class, classes.class_of_net(*address), "{}", address);
        prop_assert_ne!(*class, Class::ANY, "{}", address);
    }
    Ok(())
}

#[test]
fn compiled_equals_oracle() {
    let tally = Tally::default();
    let mut runner = TestRunner::new(config(WORLDS, file!()));
    runner.run(&worlds(), |world| compare(&world, &tally)).unwrap();
    println!("{WORLDS} worlds, {} verdicts compared: {tally:?}", tally.compared());
    tally.assert_enough_of_each();
    let ranked = [&tally.audited, &tally.by_rules, &tally.by_local_rules, &tally.by_defaults];
    assert!(ranked.into_iter().chain([&tally.to_itself_denied]).all(|of| of.get() == 0));
}

#[test]
fn compiled_equals_oracle_with_ranked_rules() {
    let tally = Tally::default();
    let mut runner = TestRunner::new(config(RANKED_WORLDS, file!()));
    runner.run(&ranked_worlds(), |world| compare(&world, &tally)).unwrap();
    println!("{RANKED_WORLDS} worlds, {} verdicts compared: {tally:?}", tally.compared());
    tally.assert_enough_of_each();
    // of each kind some, in whatever worlds the seed gives: seen are a tenth, a thirtieth and 3000
    let by_rules = tally.by_rules.get() > tally.compared() / 50;
    assert!(by_rules && tally.audited.get() > tally.compared() / 200, "{tally:?}");
    assert!(tally.to_itself_denied.get() > 100, "{tally:?}");
    // seen are a hundredth, a fifteenth and a fiftieth
    let (local, defaults) = (tally.by_local_rules.get(), tally.by_defaults.get());
    assert!(local > tally.compared() / 1000 && defaults > tally.compared() / 150, "{tally:?}");
    assert!(tally.rejected.get() > tally.compared() / 500, "{tally:?}");
}
