//! The conformance suite of ClusterNetworkPolicy, unmodified, against a [`Cluster`].
//!
//! `tests/conformance` is the suite as a program; what its pods run is Kubernetes' own agnhost, made into an image under
//! the name that the suite's manifests ask for. The kernel of most machines that run tests has no SCTP sockets, so
//! agnhost's SCTP is that of `tests/cluster/sctp`: the same packets, from raw sockets.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use regex::Regex;

use super::crd::{self, Channel};
use super::{Cluster, programs};
use crate::runtime::holder::HOME;
use crate::runtime::image::{self, Image};

/// What the suite's manifests ask for.
const IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.45";

/// The suite starts servers as lines of bash, none of which is more than a shell's.
const BASH: &[u8] = b"#!/bin/sh\nexec /bin/sh \"$@\"\n";

/// How a test of the suite ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It held.
    Passed,
    /// It did not.
    Failed,
    /// It was not tried.
    Skipped,
}

/// What the suite says of a cluster.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its tests in the order in which they ran, each by its name.
    pub tests: Vec<(String, Verdict)>,
    /// The report that it writes, in YAML.
    pub report: String,
    /// All that it said.
    pub log: String,
}

impl Outcome {
    /// What it said in the course of one test.
    pub fn said(&self, test: &str) -> String {
        let begins = format!("=== RUN   {TOP}/{test}");
        let lines = self.log.lines().skip_while(|line| *line != begins);
        let of_another = |line: &str| {
            let name = line.strip_prefix("=== RUN   ").and_then(|name| name.strip_prefix(TOP));
            name.is_some_and(|name| !name.starts_with(&format!("/{test}")))
        };
        lines.take_while(|line| !of_another(line)).collect::<Vec<_>>().join("\n")
    }
}

/// How long a dropped packet is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as the suite itself says.
    Full,
    /// This long.
    Short(Duration),
}

/// The suite's own test around all others.
const TOP: &str = "TestConformanceProfiles";

impl Cluster {
    /// Runs all tests of the suite. The definition of the experimental channel is installed first.
    pub fn conformance(&self, patience: Patience) -> Result<Outcome> {
        let control = &self.control.node;
        crd::install(control, Channel::Experimental)?;
        self.load_agnhost()?;
        let report = format!("--report-output={HOME}/report.yaml");
        let arguments = [
            "-test.v",
            "-test.timeout=40m",
            "-test.run=^TestConformanceProfiles$",
            "--conformance-profiles=ClusterNetworkPolicy",
            "--all-features",
            // it goes with the cluster
            "--cleanup-base-resources=false",
            "--organization=podgate",
            "--project=podgate",
            "--url=https://github.com/podgate/podgate",
            concat!("--version=v", env!("CARGO_PKG_VERSION")),
            "--contact=https://github.com/podgate/podgate/issues",
            "--additional-info=https://github.com/podgate/podgate/blob/main/tests/tests/cluster_conformance.rs",
            report.as_str(),
        ];
        let mut command = programs::command(control, "conformance", &arguments)?;
        command.env("KUBECONFIG", format!("{HOME}/admin.kubeconfig"));
        if let Patience::Short(wait) = patience {
            command.env("CONFORMANCE_REQUEST_TIMEOUT", format!("{}ms", wait.as_millis()));
        }
        // into a file: it can be read while the suite runs
        let log = control.home("conformance.log");
        let file = fs::File::create(&log).context("create the suite's log")?;
        command.stderr(Stdio::from(file.try_clone().context("share the suite's log")?));
        let ended = command.stdout(Stdio::from(file)).status().context("run the suite")?;
        let log = fs::read_to_string(&log).context("read the suite's log")?;
        let tests = tests_of(&log)?;
        if tests.is_empty() {
            bail!("run the conformance suite: it ended with {ended} before any test:\n{log}");
        }
        let report = fs::read_to_string(control.home("report.yaml"));
        let report = report.with_context(|| format!("read the suite's report\n{log}"))?;
        Ok(Outcome { tests, report, log })
    }

    fn load_agnhost(&self) -> Result<()> {
        let agnhost = fs::read(programs::path("agnhost")?).context("read agnhost")?;
        let archive = image::archive(&Image {
            name: IMAGE,
            command: &["/agnhost", "pause"],
            programs: &[("agnhost", &agnhost), ("bin/bash", BASH)],
        })?;
        for worker in &self.workers {
            worker.node.write("agnhost.tar", &archive)?;
            worker.node.import("agnhost.tar").context("import agnhost's image")?;
            // a node's directory is memory
            fs::remove_file(worker.node.home("agnhost.tar")).context("remove agnhost's archive")?;
        }
        Ok(())
    }
}

/// The suite's tests, not their parts, from what `-test.v` prints.
fn tests_of(log: &str) -> Result<Vec<(String, Verdict)>> {
    let line = Regex::new(&format!(r"(?m)^    --- (PASS|FAIL|SKIP): {TOP}/([^/\s]+) \("))?;
    let verdict = |word: &str| match word {
        "PASS" => Verdict::Passed,
        "FAIL" => Verdict::Failed,
        _ => Verdict::Skipped,
    };
    Ok(line.captures_iter(log).map(|found| (found[2].to_owned(), verdict(&found[1]))).collect())
}
