//! The chained CNI plugin: finds the host veth of each of a pod's interfaces and stands podgate's gate
//! there before the first container starts.
//!
//! ```text
//!   spec/     the protocol: environment, configuration, results, errors; knows nothing of podgate's work
//!   cmd/      one verb per file
//!   gating    register + attach, and the way back
//!   daemon    the one line to policyd
//! ```
//!
//! stdout belongs to the protocol alone. Nothing here is kept between two calls: what must last is in
//! the pinned maps (`podgate_bpf`).

pub mod cmd;
pub mod daemon;
pub mod gating;
pub mod logging;
pub mod spec;

use std::io::{Read, Write};
use std::process::ExitCode;

use spec::env::{Command, EnvError};
use spec::{CniError, Code, NetConf, SpecVersion};

/// One call of the plugin, from its environment and input to what it prints and its exit code.
pub fn run(
    env: impl Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> ExitCode {
    let command = match Command::from_env(&env) {
        Ok(command) => command,
        Err(EnvError::NoCommand) => {
            // a person, not a runtime: nothing on stdout, which is the protocol's
            let _ = writeln!(stderr, "{}", about());
            return ExitCode::FAILURE;
        }
        Err(EnvError::Invalid(error)) => return print(stdout, Err(error), SpecVersion::LATEST),
    };
    // one read for nearly every configuration: the growing steps of an empty vector are system calls here
    let mut input = Vec::with_capacity(16 * 1024);
    if let Err(e) = stdin.read_to_end(&mut input) {
        let error = CniError::new(Code::Io, "read configuration from stdin").because(e);
        return print(stdout, Err(error), SpecVersion::LATEST);
    }
    if command == Command::Version {
        let (version, result) = cmd::version(&input);
        return print(stdout, result, version);
    }
    match NetConf::parse(&input) {
        Err(error) => print(stdout, Err(error), SpecVersion::LATEST),
        Ok(conf) => print(stdout, cmd::run(&command, &conf), conf.version),
    }
}

/// Writes the verb's result, or its error as the protocol wants it: on stdout, with exit code 1.
fn print(
    stdout: &mut dyn Write,
    result: Result<String, CniError>,
    version: SpecVersion,
) -> ExitCode {
    let (text, code) = match result {
        Ok(text) if text.is_empty() => return ExitCode::SUCCESS,
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.to_json(version), ExitCode::FAILURE),
    };
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => code,
        // a runtime that went away mid-call will send DEL; it must not take this for a success
        Err(_) => ExitCode::FAILURE,
    }
}

/// What a person who runs the binary by hand reads.
fn about() -> String {
    let versions: Vec<_> = SpecVersion::ALL.iter().map(|v| v.text()).collect();
    format!(
        "podgate {}: chained CNI plugin, enforces Kubernetes NetworkPolicy at the pod's host veth\n\
         CNI protocol versions supported: {}\n\n\
         A container runtime runs this with CNI_COMMAND set (ADD, DEL, CHECK, GC, STATUS or VERSION) and a\n\
         network configuration on stdin. List it after the plugin that makes the pod's interface:\n\n  \
         {{ \"cniVersion\": \"1.0.0\", \"name\": \"pods\", \"plugins\": [ {{ \"type\": \"bridge\", ... }}, {{ \"type\": \"podgate\" }} ] }}",
        env!("CARGO_PKG_VERSION"),
        versions.join(", ")
    )
}
