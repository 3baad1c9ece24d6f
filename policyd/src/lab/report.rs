//! What came of the packets, for people and programs.

use std::io;
use std::time::Duration;

use podgate_policy::explain::Verdict;

use super::wire::Outcome;
use crate::ctl::{
    Answer, Ended, Failure, Format, Judged, Mark, Matrix, Printer, Probe, Way, World, name_of,
    report, sum_up,
};

/// What really happened.
#[derive(Debug)]
pub(crate) struct Findings {
    /// For each question (the matrix's, then the probes') the outcome of each of its ways.
    pub outcomes: Vec<Vec<Outcome>>,
    /// How long the world took to build.
    pub built: Duration,
    /// How long the packets took.
    pub sent: Duration,
    /// Addresses outside.
    pub strangers: usize,
}

/// What was told.
#[derive(Debug)]
pub(crate) struct Told {
    /// No expectation failed.
    pub as_expected: bool,
    /// Packets and tables do not say the same: the run is worthless, and this says where.
    pub disagreement: Option<String>,
}

/// Disagreements that an error lists; the first ones tell as much as all.
const LISTED: usize = 10;

/// Prints everything.
pub(crate) fn tell(
    printer: &Printer,
    world: &World,
    matrix: Option<(&Matrix, &[Judged])>,
    probes: &[(&Probe, &Judged)],
    findings: &Findings,
) -> io::Result<Told> {
    let mut disputes = Vec::new();
    // of those, the ones whose packet arrived
    let mut slow = 0;
    let mut outcomes = findings.outcomes.iter();
    let mut real = |probe: &Probe, judged: &Judged| {
        let found = outcomes.next().map_or(&[][..], Vec::as_slice);
        let answer = really(judged, found);
        let before = disputes.len();
        for (way, outcome) in judged.ways.iter().zip(found) {
            if verdict(outcome) != way.answer.verdict {
                slow += usize::from(*outcome == Outcome::Unanswered);
                disputes.push(dispute(probe, way, outcome));
            }
        }
        let (answer, mixed) = answer;
        let mark = match disputes.len() > before {
            true => Mark::Disputed,
            false if mixed => Mark::Mixed,
            false => Mark::Is(answer.verdict),
        };
        (answer, mark)
    };

    let mut title = world.title();
    if let Some((matrix, judged)) = matrix {
        let questions = matrix.questions.iter().zip(judged);
        let answers = questions
            .map(|(question, judged)| (&question.probe, real(&question.probe, judged)))
            .collect::<Vec<_>>();
        match printer.format {
            Format::Json if probes.is_empty() => {
                let lines = answers.iter().map(|(probe, (answer, _))| {
                    probe.json_line(answer.verdict, &answer.why) + "\n"
                });
                printer.print(&lines.collect::<String>())?;
            }
            Format::Json => {}
            Format::Table => {
                let marks = answers.iter().map(|(_, (_, mark))| *mark).collect::<Vec<_>>();
                let drawn = matrix.draw(world, printer, &marks);
                printer.print(&format!("{}{drawn}", printer.title(&title)))?;
                title.clear();
            }
        }
    }

    let mut as_expected = true;
    if !probes.is_empty() {
        let answers = probes
            .iter()
            .map(|(probe, judged)| (*probe, real(probe, judged).0))
            .collect::<Vec<_>>();
        let told = answers
            .iter()
            .map(|(probe, answer)| (*probe, answer.verdict, answer.why.as_str()))
            .collect::<Vec<_>>();
        as_expected = match report(printer, &title, &told) {
            Ok(ended) => ended == Ended::Fine,
            Err(Failure(text)) => return Err(io::Error::other(text)),
        };
    }
    if printer.format == Format::Table {
        printer.print(&sum(world, findings))?;
    }
    Ok(Told { as_expected, disagreement: disagreement(&disputes, slow) })
}

/// The answer that the packets gave, with the reasons of the tables.
fn really(judged: &Judged, outcomes: &[Outcome]) -> (Answer, bool) {
    let answers = judged
        .ways
        .iter()
        .zip(outcomes)
        .map(|(way, outcome)| {
            let verdict = verdict(outcome);
            let why = match verdict == way.answer.verdict {
                true => way.answer.why.clone(),
                false => format!("the packet says so; the tables: {}", way.answer.why),
            };
            Answer { verdict, why }
        })
        .collect::<Vec<_>>();
    sum_up(&judged.ways, &answers).unwrap_or_else(|| (judged.answer.clone(), false))
}

fn verdict(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Answered(_) => Verdict::Allow,
        Outcome::Silent | Outcome::Unanswered | Outcome::Unroutable(_) => Verdict::Deny,
    }
}

fn dispute(probe: &Probe, way: &Way, outcome: &Outcome) -> String {
    let met = match outcome {
        Outcome::Unanswered => {
            "arrived, and its answer did not come back in time (is the machine short of CPU?)"
        }
        Outcome::Answered(_) => "met allow",
        Outcome::Silent | Outcome::Unroutable(_) => "met deny",
    };
    format!(
        "{} -> {} on {} ({} -> {}{}): the packet {met}, the tables say {} ({})",
        probe.src,
        probe.dst,
        probe.wire,
        way.source,
        way.through.map(|frontend| format!("{frontend} -> ")).unwrap_or_default(),
        way.endpoint(),
        name_of(way.answer.verdict),
        way.answer.why
    )
}

fn disagreement(disputes: &[String], slow: usize) -> Option<String> {
    if disputes.is_empty() {
        return None;
    }
    let mut text = match disputes.len() - slow {
        0 => format!(
            "the machine is too slow to tell: {slow} packets arrived and got no answer in time"
        ),
        real => format!("datapath and compiler disagree on {real} packets"),
    };
    for dispute in disputes.iter().take(LISTED) {
        text += &format!("\n  {dispute}");
    }
    Some(text)
}

fn sum(world: &World, findings: &Findings) -> String {
    let packets = findings.outcomes.iter().map(Vec::len).sum::<usize>();
    let strangers = match findings.strangers {
        0 => String::new(),
        1 => ", 1 address outside".into(),
        many => format!(", {many} addresses outside"),
    };
    format!(
        "{} pods{strangers}: built in {:.1} s with bridge + static + podgate; {packets} ways tried with real packets in {:.1} s\n",
        world.seats.len(),
        findings.built.as_secs_f32(),
        findings.sent.as_secs_f32(),
    )
}

/// How to look around in a world that stands.
pub(crate) fn say_how_to_enter(host_pid: u32) {
    anstream::eprintln!(
        "\nThe world stands until ^C. From another terminal:\n  \
         nsenter -t {host_pid} -m -n -p                            # the node; podgatectl works there\n  \
         nsenter -t {host_pid} -m -n -p nsenter --net=/run/netns/NAMESPACE.POD   # a pod"
    );
}
