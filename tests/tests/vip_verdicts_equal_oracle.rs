//! Random worlds with untranslated services: the verdict is that of the oracle.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use podgate_policy::compile::Engine;
use podgate_policy::model::{ObjectKey, Protocol};
use podgate_policy::services::{
    Backend, Frontend, Untranslated, UntranslatedReason, VipVerdict, vip_verdict,
};
use podgate_tests::compiling::{endpoints, index};
use podgate_tests::oracle::{L4, UntranslatedService, untranslated_allows};
use podgate_tests::worlds::{config, probe_addresses, probe_ports, worlds};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const WORLDS: u32 = 200;

#[test]
fn vip_verdicts_equal_oracle() {
    let mut runner = TestRunner::new(config(WORLDS, file!()));
    let counts = std::cell::RefCell::new([0u64; 3]);
    let ports: Vec<u16> = probe_ports()
        .into_iter()
        .filter_map(|l4| match l4 {
            L4::Port("TCP", port) => Some(port),
            _ => None,
        })
        .collect();
    let result = runner.run(&worlds(), |world| {
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
                    let ranges = ["10.0.0.0/9", "fd00::/16"];
                    // each kind in turn, the node's own address with a port that policies know
                    let (reason, guarded, port) = match nth % 3 {
                        0 => (UntranslatedReason::AllAre, false, 1),
                        1 => (UntranslatedReason::SourceRanges, true, 1),
                        _ => (UntranslatedReason::NodeLocal, false, ports[0]),
                    };
                    let vip = Untranslated {
                        service: ObjectKey::new("shop", "web"),
                        reason,
                        backends: backends
                            .iter()
                            .map(|(address, port)| Backend { address: *address, port: *port })
                            .collect(),
                        sources: guarded.then(|| ranges.map(|range| range.parse().unwrap()).into()),
                    };
                    let frontend = Frontend { address: two, port, protocol: Protocol::Tcp };
                    let service = UntranslatedService {
                        address: (two, port),
                        endpoints: &backends,
                        ranges: guarded.then_some(&ranges),
                        on_the_node: reason == UntranslatedReason::NodeLocal,
                    };
                    let pod = &world.pods[*pod];
                    let expected =
                        untranslated_allows(&world, pod, &endpoint.addresses, "TCP", &service);
                    let claims = [std::sync::Arc::new(vip.clone())];
                    let found = vip_verdict(compiled, endpoint, &frontend, &claims);
                    let mut counts = counts.borrow_mut();
                    match found {
                        // not isolated
                        // the ranges are kube-proxy's to keep
                        None => prop_assert!(expected || guarded),
                        Some(VipVerdict::Allow(_)) => prop_assert!(expected, "{vip:?}"),
                        Some(VipVerdict::Deny) => prop_assert!(!expected, "{vip:?}"),
                    }
                    counts[match found {
                        None => 0,
                        Some(VipVerdict::Allow(_)) => 1,
                        Some(VipVerdict::Deny) => 2,
                    }] += 1;
                }
            }
        }
        Ok(())
    });
    result.unwrap();
    let [open, allowed, denied] = counts.into_inner();
    println!("{WORLDS} worlds: {open} open, {allowed} allowed, {denied} denied");
    // worlds in which nothing is allowed, or denied, would prove little
    assert!(open > 1000 && allowed > 1000 && denied > 1000);
}
