//! `explain`, `matrix` and `check` from manifests, through the same compiled tables as the node's.

use std::path::Path;

use podgate_policy::explain::Verdict;

use super::cli::Explain;
use super::end::Wire;
use super::judge::Judged;
use super::matrix::Matrix;
use super::output::{Format, Mark, Printer};
use super::probes::{self, Probe, ProbeError, name_of};
use super::world::World;
use super::{Ended, Failure};

/// One packet.
pub(super) fn explain(printer: &Printer, dir: &Path, asked: &Explain) -> Result<Ended, Failure> {
    let probe = Probe::new(asked.from.clone(), asked.to.clone(), asked.port);
    let world = World::load(dir, std::slice::from_ref(&probe))?;
    let flag = |field| match field {
        "src" => "--from",
        "dst" => "--to",
        _ => "--port",
    };
    let judged = world
        .judge(&probe)
        .map_err(|(field, cause)| format!("explain {}: {cause}", flag(field)))?;
    let answer = &judged.answer;
    match printer.format {
        Format::Json => printer.print(&probe.json_line(answer.verdict, &answer.why))?,
        Format::Table => {
            let mut text = printer.title(&format!(
                "{} -> {} on {}: {}",
                probe.src,
                probe.dst,
                probe.wire,
                name_of(answer.verdict)
            ));
            for way in &judged.ways {
                let through = way.through.map(|frontend| format!(" -> {frontend}"));
                text += &format!(
                    "  {}{} -> {}: {}\n",
                    way.source,
                    through.unwrap_or_default(),
                    if way.through.is_some() {
                        way.endpoint()
                    } else {
                        way.destination.to_string()
                    },
                    way.answer.why
                );
            }
            if judged.ways.is_empty() {
                text += &format!("  {}\n", answer.why);
            }
            printer.print(&text)?;
        }
    }
    Ok(match (answer.verdict, asked.exit_code) {
        (Verdict::Deny, true) => Ended::Unexpected,
        _ => Ended::Fine,
    })
}

/// Every pod to every other one.
pub(super) fn matrix(printer: &Printer, dir: &Path, wires: &[Wire]) -> Result<Ended, Failure> {
    let world = World::load(dir, &[])?;
    let matrix = Matrix::of(&world, wires);
    let answers = matrix
        .questions
        .iter()
        .map(|question| world.judge(&question.probe))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|(_, cause)| format!("draw the matrix: {cause}"))?;
    match printer.format {
        Format::Json => {
            let lines = matrix.questions.iter().zip(&answers).map(|(question, judged)| {
                question.probe.json_line(judged.answer.verdict, &judged.answer.why) + "\n"
            });
            printer.print(&lines.collect::<String>())?;
        }
        Format::Table => {
            let marks = answers.iter().map(Mark::of);
            let drawn = matrix.draw(&world, printer, &marks.collect::<Vec<_>>());
            printer.print(&(printer.title(&world.title()) + &drawn))?;
        }
    }
    Ok(Ended::Fine)
}

/// A file of probes.
pub(super) fn check(printer: &Printer, dir: &Path, file: &Path) -> Result<Ended, Failure> {
    let probes = probes::read(file)?;
    let world = World::load(dir, &probes)?;
    let answers = judge_all(&world, &probes, file)?;
    let told = probes
        .iter()
        .zip(&answers)
        .map(|(probe, judged)| (probe, judged.answer.verdict, judged.answer.why.as_str()))
        .collect::<Vec<_>>();
    report(printer, &world.title(), &told)
}

/// Judges every probe of a file, or tells everything that is wrong with them.
pub(crate) fn judge_all(
    world: &World,
    probes: &[Probe],
    file: &Path,
) -> Result<Vec<Judged>, String> {
    let (mut answers, mut errors) = (Vec::new(), String::new());
    for (index, probe) in probes.iter().enumerate() {
        match world.judge(probe) {
            Ok(judged) => answers.push(judged),
            Err((field, cause)) => {
                let error = ProbeError { index, field: field.to_owned(), cause };
                errors += &format!("\n  {error}");
            }
        }
    }
    match errors.is_empty() {
        true => Ok(answers),
        false => {
            Err(format!("answer probes {}: the world cannot answer these{errors}", file.display()))
        }
    }
}

/// Prints answered probes and says whether they are as expected.
pub(crate) fn report(
    printer: &Printer,
    title: &str,
    told: &[(&Probe, Verdict, &str)],
) -> Result<Ended, Failure> {
    let failed = told.iter().filter(|(probe, verdict, _)| !probe.satisfied_by(*verdict)).count();
    let expected = told.iter().filter(|(probe, ..)| probe.expect.is_some()).count();
    match printer.format {
        Format::Json => {
            let lines =
                told.iter().map(|(probe, verdict, why)| probe.json_line(*verdict, why) + "\n");
            printer.print(&lines.collect::<String>())?;
        }
        Format::Table => {
            let table = printer.probes(told.iter().copied());
            let sum = match (expected, failed) {
                (0, _) => format!("{} probes, none with an expectation", told.len()),
                (_, 0) => format!("{} probes, {expected} as expected", told.len()),
                _ => format!("{} probes, {failed} of {expected} NOT as expected", told.len()),
            };
            let title = if title.is_empty() { String::new() } else { printer.title(title) };
            printer.print(&format!("{title}{table}\n{sum}\n"))?;
        }
    }
    Ok(if failed == 0 { Ended::Fine } else { Ended::Unexpected })
}
