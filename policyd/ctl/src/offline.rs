//! `matrix` and `check` from manifests, through the same tables as a node's.

use std::path::{Path, PathBuf};

use clap::Args;
use podgate_contract::api::Verdict;
use podgate_policy::reach::{Answer, Field};

use crate::cluster::Cluster;
use crate::matrix::Matrix;
use crate::output::{Format, Mark, Printer};
use crate::probes::{self, Probe, ProbeError};
use crate::target::PortSpec;
use crate::{Failure, Outcome};

/// What is read.
#[derive(Debug, Args)]
pub(super) struct World {
    /// Directory of *.yaml, *.yml and *.json manifests (not its subdirectories)
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Local rules of a node beside them, as `podgatectl rule list -o json` prints them
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

impl World {
    fn load(&self, probes: &[Probe]) -> Result<Cluster, String> {
        Cluster::load(&self.manifests, self.rules.as_deref(), probes)
    }
}

/// Every pod to every other one.
pub(super) fn matrix(
    printer: &Printer,
    world: &World,
    ports: &[PortSpec],
) -> Result<Outcome, Failure> {
    let cluster = world.load(&[])?;
    let matrix = Matrix::of(&cluster, ports);
    let answers = matrix.answers(&cluster)?;
    match printer.format {
        Format::Json => {
            let lines = matrix.questions.iter().zip(&answers).map(|(question, answer)| {
                question.probe.json_line(answer.verdict, &answer.why) + "\n"
            });
            printer.print(&lines.collect::<String>())?;
        }
        Format::Table => {
            let marks = answers.iter().map(|answer| Mark::Is(answer.verdict));
            let drawn = matrix.draw(&cluster, printer, &marks.collect::<Vec<_>>());
            printer.print(&(printer.title(&cluster.title()) + &drawn))?;
        }
    }
    Ok(Outcome::Expected)
}

/// A file of probes.
pub(super) fn check(printer: &Printer, world: &World, file: &Path) -> Result<Outcome, Failure> {
    let probes = probes::read(file)?;
    let cluster = world.load(&probes)?;
    let answers = answer_all(&cluster, &probes, file)?;
    let answered = probes
        .iter()
        .zip(&answers)
        .map(|(probe, answer)| (probe, answer.verdict, answer.why.as_str()))
        .collect::<Vec<_>>();
    report(printer, &cluster.title(), &answered)
}

/// Answers every probe of a file, or lists everything that is wrong with them.
pub(crate) fn answer_all(
    cluster: &Cluster,
    probes: &[Probe],
    file: &Path,
) -> Result<Vec<Answer>, String> {
    let (mut answers, mut errors) = (Vec::new(), String::new());
    for (index, probe) in probes.iter().enumerate() {
        match cluster.answer(&probe.question()) {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                let field = match error.field {
                    Field::From => "src",
                    Field::To => "dst",
                    Field::Port => "port",
                    Field::Protocol => "proto",
                };
                let error = ProbeError { index, field: field.to_owned(), cause: error.cause };
                errors += &format!("\n  {error}");
            }
        }
    }
    match errors.is_empty() {
        true => Ok(answers),
        false => Err(format!(
            "answer probes {}: the cluster cannot answer these{errors}",
            file.display()
        )),
    }
}

/// Prints answered probes and says whether they are as expected.
pub(crate) fn report(
    printer: &Printer,
    title: &str,
    answered: &[(&Probe, Verdict, &str)],
) -> Result<Outcome, Failure> {
    let failed = answered.iter().filter(|(probe, verdict, _)| !probe.is_satisfied_by(*verdict));
    let failed = failed.count();
    let expected = answered.iter().filter(|(probe, ..)| probe.expect.is_some()).count();
    match printer.format {
        Format::Json => {
            let lines =
                answered.iter().map(|(probe, verdict, why)| probe.json_line(*verdict, why) + "\n");
            printer.print(&lines.collect::<String>())?;
        }
        Format::Table => {
            let table = printer.probes(answered.iter().copied());
            let sum = match (expected, failed) {
                (0, _) => format!("{} probes, none with an expectation", answered.len()),
                (_, 0) => format!("{} probes, {expected} as expected", answered.len()),
                _ => format!("{} probes, {failed} of {expected} NOT as expected", answered.len()),
            };
            let title = if title.is_empty() { String::new() } else { printer.title(title) };
            printer.print(&format!("{title}{table}\n{sum}\n"))?;
        }
    }
    Ok(if failed == 0 { Outcome::Expected } else { Outcome::Unexpected })
}
