//! Frames that BPF_PROG_TEST_RUN cannot make, on real links: cut short within the IP header, longer than a page (of
//! which the kernel leaves nothing but the Ethernet header in the linear part), fragments, VLAN tags.
//!
//! They are sent through AF_PACKET sockets and looked for by others, past the gate:
//!
//! ```text
//!   pod: eth0 == gate == v10 -- br0 -- v11 == eth0 :peer        (no addresses anywhere: nobody else speaks)
//! ```

mod bench;
mod fragments;
mod long;
mod short;
mod tagged;

use std::process::ExitCode;

use libtest_mimic::Trial;
use podgate_bpf::attach::AttachMode;
use podgate_testkit::sandbox;

/// A test that holds for both kinds of attachment.
type Test = (&'static str, fn(AttachMode));

fn main() -> ExitCode {
    sandbox::run(|| {
        let tests = [short::TESTS, long::TESTS, fragments::TESTS, tagged::TESTS].concat();
        let of = |&kind: &AttachMode| tests.clone().into_iter().map(move |test| trial(kind, test));
        AttachMode::of_this_kernel().iter().flat_map(of).collect()
    })
}

fn trial(kind: AttachMode, (name, test): Test) -> Trial {
    Trial::test(format!("{kind}::{name}"), move || {
        test(kind);
        Ok(())
    })
}
