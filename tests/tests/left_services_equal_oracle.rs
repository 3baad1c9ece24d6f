//! Random worlds with `services: leave`: a service is allowed where the oracle allows every endpoint, and only there.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use podgate_policy::engine::Engine;
use podgate_policy::model::{ObjectKey, Protocol};
use podgate_policy::services::{Backend, BackendState, Balance, Frontend, LeftAnswer, answer_left};
use podgate_tests::compiling::{endpoints, index};
use podgate_tests::oracle::{Gate, L4, policies_allow};
use podgate_tests::worlds::{config, probe_addresses, probe_ports, worlds};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const WORLDS: u32 = 200;

#[test]
fn left_services_equal_oracle() {
    let mut runner = TestRunner::new(config(WORLDS, file!()));
    let counts = std::cell::RefCell::new([0u64; 3]);
    let ports: Vec<u16> = probe_ports()
        .into_iter()
        .filter_map(|l4| match l4 {
            L4::Port("TCP", port) => Some(port),
            _ => None,
        })
        .collect();
    let judged = runner.run(&worlds(), |world| {
        let index = index(&world).unwrap();
        let endpoints = endpoints(&world).unwrap();
        let engine = Engine::of(&index, endpoints.clone());
        let compiled = engine.compiled();
        for ((pod, _), endpoint) in world.interfaces.iter().zip(&endpoints) {
            for (nth, one) in probe_addresses().into_iter().enumerate() {
                for two in
                    probe_addresses().into_iter().filter(|two| two.is_ipv4() == one.is_ipv4())
                {
                    let backends = [(one, ports[nth % ports.len()]), (two, ports[0])];
                    let balance = Balance {
                        service: ObjectKey::new("shop", "web"),
                        port: "".into(),
                        affinity: None,
                        backends: backends
                            .iter()
                            .map(|(address, port)| {
                                (Backend { address: *address, port: *port }, BackendState::Ready)
                            })
                            .collect(),
                    };
                    let frontend = Frontend { address: one, port: 1, protocol: Protocol::Tcp };
                    let expected = backends.iter().all(|(address, port)| {
                        let l4 = L4::Port("TCP", *port);
                        endpoint.addresses.contains(address)
                            || policies_allow(&world, &world.pods[*pod], Gate::Egress, *address, l4)
                    });
                    let found = answer_left(compiled, endpoint, &frontend, &balance);
                    let mut counts = counts.borrow_mut();
                    match found {
                        // not isolated
                        None => prop_assert!(expected),
                        Some(LeftAnswer::Allow(_)) => prop_assert!(expected, "{balance:?}"),
                        Some(LeftAnswer::Deny) => prop_assert!(!expected, "{balance:?}"),
                    }
                    counts[match found {
                        None => 0,
                        Some(LeftAnswer::Allow(_)) => 1,
                        Some(LeftAnswer::Deny) => 2,
                    }] += 1;
                }
            }
        }
        Ok(())
    });
    judged.unwrap();
    let [open, allowed, denied] = counts.into_inner();
    println!("{WORLDS} worlds: {open} open, {allowed} allowed, {denied} denied");
    // worlds in which nothing is allowed, or denied, would prove little
    assert!(open > 1000 && allowed > 1000 && denied > 1000);
}
