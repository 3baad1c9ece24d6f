//! `podgate`, the chained CNI plugin: everything is in the library, so that tests can call it.

use std::process::ExitCode;

fn main() -> ExitCode {
    podgate_cni::run(
        |name| std::env::var(name).ok(),
        &mut std::io::stdin().lock(),
        &mut std::io::stdout().lock(),
        &mut std::io::stderr().lock(),
    )
}
