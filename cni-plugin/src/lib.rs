//! The chained CNI plugin: finds the host veth of each of a pod's interfaces and attaches podgate's gate
//! there before the first container starts.
//!
//! ```text
//!   spec/           the protocol: environment, configuration, results, errors; knows nothing of gates
//!   cmd/            one verb per file
//!   gating          register + attach, and the way back
//!   policyd_client  requests to policyd
//!   limits          how long each part of a call may take
//! ```
//!
//! stdout belongs to the protocol alone. No state is kept between two calls but that in the pinned maps
//! (`podgate_bpf`).

pub mod cmd;
pub mod gating;
pub mod limits;
pub mod logging;
pub mod policyd_client;
pub mod spec;

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use spec::env::{Command, EnvError};
use spec::{CniError, Code, NetConf, SpecVersion};

/// One call of the plugin, from its environment and input to what it prints and its exit code.
pub fn run(
    env: impl Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> ExitCode {
    run_within(env, stdin, stdout, stderr, &|_, _| {})
}

/// The same under a time limit: `bound` is called once, before anything that may block, with the limit of the verb and
/// the text to print when it is exceeded.
pub fn run_within(
    env: impl Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
    bound: &dyn Fn(Duration, String),
) -> ExitCode {
    let command = match Command::from_env(&env) {
        Ok(command) => command,
        Err(EnvError::NoCommand) => {
            // run by hand, not by a runtime: stdout is for the protocol only
            let _ = writeln!(stderr, "{}", about());
            return ExitCode::FAILURE;
        }
        Err(EnvError::Invalid(error)) => return print(stdout, Err(error), SpecVersion::LATEST),
    };
    let mut input = Vec::with_capacity(16 * 1024);
    let read = read_configuration(stdin, &mut input);
    let bound = |conf: Option<&NetConf>| {
        let limit = limits::of(&command, conf);
        let version = conf.map_or(SpecVersion::LATEST, |conf| conf.version);
        bound(limit, limits::exceeded(&command, limit).to_json(version) + "\n");
    };
    if command == Command::Version {
        bound(None);
        let (version, result) = cmd::version(&input);
        return print(stdout, result, version);
    }
    let parsed = match read {
        // such a verb must not fail for its configuration: the plugins before this one are called after it
        _ if command.only_removes() => Ok(NetConf::parse_leniently(&input)),
        Ok(()) => NetConf::parse(&input),
        Err(error) => Err(error),
    };
    let conf = match parsed {
        Err(error) => return print(stdout, Err(error), SpecVersion::LATEST),
        Ok(conf) => conf,
    };
    bound(Some(&conf));
    print(stdout, cmd::run(&command, &conf), conf.version)
}

/// Reads until the JSON is complete: some runtimes never close their end of the pipe.
fn read_configuration(stdin: &mut dyn Read, input: &mut Vec<u8>) -> Result<(), CniError> {
    let mut chunk = [0; 16 * 1024];
    loop {
        match stdin.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => input.extend_from_slice(&chunk[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                let cause = match e.kind() {
                    io::ErrorKind::TimedOut => {
                        format!("it is not whole after {} s", limits::INPUT_TIMEOUT.as_secs())
                    }
                    _ => e.to_string(),
                };
                return Err(
                    CniError::new(Code::Io, "read network configuration from stdin").because(cause)
                );
            }
        }
        if input.trim_ascii_end().ends_with(b"}") && is_whole(input) {
            return Ok(());
        }
    }
}

fn is_whole(input: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(input).is_ok()
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
        // a runtime that did not get the result must not see exit code 0; it will send DEL
        Err(_) => ExitCode::FAILURE,
    }
}

/// Help for running the binary by hand.
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
