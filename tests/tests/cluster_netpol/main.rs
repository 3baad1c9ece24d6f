//! The scenarios of Kubernetes' own NetworkPolicy suite on a real cluster: three namespaces with three pods each, every
//! pair tried after every step, by pod address and through services, in both families.
//!
//! What a scenario expects stands in [`scenarios`], written from the suite's text; the rest of the matrix (other
//! ports, the other protocol) is compared with the oracle on the objects that the API server has.

mod reach;
mod scenarios;
mod sctp;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use podgate_tests::cluster::matrix::Matrix;
use podgate_tests::cluster::shared::{self, Test};
use podgate_tests::cluster::{Cluster, Options};

use reach::{Scenario, Step};

/// What all scenarios share.
struct Bench {
    cluster: Cluster,
    matrix: Matrix,
}

fn main() -> ExitCode {
    let written = scenarios::every_scenario().into_iter().map(|scenario| {
        Test::new(scenario.title(), move |bench: &mut Bench| bench.play(&scenario))
    });
    let sctp = sctp::every_scenario().into_iter().map(|scenario| {
        Test::new(scenario.title, move |bench: &mut Bench| sctp::play(bench, &scenario))
    });
    shared::main(Bench::start, written.chain(sctp).collect(), |bench| bench.cluster.finish())
}

impl Bench {
    fn start() -> Result<Self> {
        let cluster = Cluster::start(Options::default())?;
        cluster.install_podgate()?;
        let matrix = Matrix::start(&cluster, &["x", "y", "z"], &["a", "b", "c"])?;
        Ok(Self { cluster, matrix })
    }

    fn play(&self, scenario: &Scenario) -> Result<()> {
        let steps = (scenario.steps)(&self.matrix)?;
        let played = steps.iter().enumerate().try_for_each(|(number, step)| {
            self.play_step(step).with_context(|| format!("step {}", number + 1))
        });
        // also after a failure: the next scenario starts from nothing
        let cleaned = self.clean(&steps);
        played.and(cleaned)
    }

    fn play_step(&self, step: &Step) -> Result<()> {
        for (kind, name, label) in &step.labels {
            let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
            self.cluster.kubectl(&["label", "--overwrite", "-n", namespace, kind, name, label])?;
        }
        if !step.policies.is_empty() {
            self.cluster.apply(&step.policies)?;
        }
        if step.clean {
            self.delete_policies()?;
        }
        self.cluster.await_policies()?;
        let world = self.cluster.world()?;
        let mut verdicts = Vec::new();
        for case in self.matrix.cases() {
            let allowed = Matrix::oracle(&world, &case)?;
            for look in step.looks.iter().filter(|look| look.is_of(case.protocol, case.port)) {
                let expected = look.reach.allows(&case.from.id(), &case.to.id());
                ensure!(expected == allowed, "the scenario and the oracle disagree on {case}");
            }
            verdicts.push(allowed);
        }
        self.matrix.expect_verdicts("after the step", &verdicts)?;
        Ok(())
    }

    fn clean(&self, steps: &[Step]) -> Result<()> {
        for (kind, name, label) in steps.iter().flat_map(|step| &step.labels) {
            let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
            let key = label.split('=').next().unwrap_or_default();
            self.cluster.kubectl(&["label", "-n", namespace, kind, name, &format!("{key}-")])?;
        }
        self.delete_policies()?;
        self.cluster.await_policies()
    }

    fn delete_policies(&self) -> Result<()> {
        for namespace in ["x", "y", "z"] {
            self.cluster.kubectl(&["delete", "networkpolicies", "--all", "-n", namespace])?;
        }
        Ok(())
    }
}
