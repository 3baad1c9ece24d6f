//! What libbpf prints, which goes to the log: stdout of the plugin belongs to the protocol, stderr to the operator.

use std::sync::{Mutex, PoisonError};

use libbpf_rs::PrintLevel;

use crate::verifier;

/// Held by who sets the level at which libbpf prints, which is the process's.
static PRINT_LEVEL: Mutex<()> = Mutex::new(());

/// Sends libbpf's warnings to the log from now on.
pub(crate) fn reroute() {
    let _level = PRINT_LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    libbpf_rs::set_print(Some((PrintLevel::Warn, log)));
}

/// Runs this while libbpf prints everything, the verifier's statistics included. No other thread sets the level back before
/// they are printed.
pub(crate) fn with_statistics<T>(run: impl FnOnce() -> T) -> T {
    let _level = PRINT_LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    libbpf_rs::set_print(Some((PrintLevel::Debug, log)));
    let result = run();
    libbpf_rs::set_print(Some((PrintLevel::Warn, log)));
    result
}

fn log(level: PrintLevel, text: String) {
    let text = text.trim_end();
    match level {
        PrintLevel::Warn => {
            verifier::keep(text);
            tracing::debug!(target: "libbpf", "{text}");
        }
        PrintLevel::Info | PrintLevel::Debug => {
            verifier::keep_statistics(text);
            tracing::trace!(target: "libbpf", "{text}");
        }
    }
}
