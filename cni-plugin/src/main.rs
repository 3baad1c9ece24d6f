//! `podgate`, the chained CNI plugin: everything is in the library, so that tests can call it.

use std::os::fd::AsFd;
use std::process::ExitCode;

use podgate_bpf::timelimit::end_process_after;
use podgate_cni::limits::TimedReader;

fn main() -> ExitCode {
    podgate_cni::run_within(
        |name| std::env::var(name).ok(),
        &mut TimedReader::new(std::io::stdin().as_fd()),
        &mut std::io::stdout().lock(),
        &mut std::io::stderr().lock(),
        &|limit, answer| {
            // without a limit the call is still right, only not bounded
            let _ = end_process_after(limit, answer.into_bytes());
        },
    )
}
