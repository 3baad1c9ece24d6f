//! The operator's command, also as the kubectl plugin `kubectl-podgate`.

use std::process::ExitCode;

fn main() -> ExitCode {
    podgatectl::main()
}
