//! Random worlds: what the compiled tables say of every probe is what the oracle says.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use podgate_policy::compile::Class;
use podgate_policy::engine::Engine;
use podgate_tests::compiling::{direction, endpoint_id, endpoints, index, transport};
use podgate_tests::oracle::{Gate, policies_allow};
use podgate_tests::worlds::{config, probe_addresses, probe_ports, worlds};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const WORLDS: u32 = 600;

#[test]
fn compiled_equals_oracle() {
    let mut runner = TestRunner::new(config(WORLDS, file!()));
    let (mut allowed, mut denied) = (0u64, 0u64);
    let counts = std::cell::RefCell::new((&mut allowed, &mut denied));
    let judged = runner.run(&worlds(), |world| {
        let index = index(&world).unwrap();
        let engine = Engine::of(&index, endpoints(&world).unwrap());
        let compiled = engine.compiled();
        let classes = compiled.classifier();
        for (pod, _) in &world.interfaces {
            let table = &compiled.tables[&endpoint_id(*pod)];
            for gate in [Gate::Ingress, Gate::Egress] {
                for peer in probe_addresses() {
                    for l4 in probe_ports() {
                        let expected = policies_allow(&world, &world.pods[*pod], gate, peer, l4);
                        let class = classes.class_of(peer);
                        let rule = table.lookup(direction(gate), class, transport(l4));
                        let (allowed, denied) = &mut *counts.borrow_mut();
                        **if expected { allowed } else { denied } += 1;
                        prop_assert_eq!(
                            rule.is_some(),
                            expected,
                            "{:?} of pod-{}, peer {}, {:?}; class {:?}, rule {:?}, table {:#?}",
                            gate,
                            pod,
                            peer,
                            l4,
                            class,
                            rule,
                            table
                        );
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
    });
    judged.unwrap();
    println!(
        "{WORLDS} worlds, {} verdicts compared: {allowed} allowed, {denied} denied",
        allowed + denied
    );
    // worlds in which hardly anything is allowed, or denied, would prove little
    assert!(allowed > (allowed + denied) / 10 && denied > (allowed + denied) / 10);
}
