//! What came of the packets, for people and programs.

use std::io;
use std::time::Duration;

use podgate_contract::api::Verdict;
use podgate_policy::reach::Answer;

use super::tries::{Shows, Try, verdicts};
use super::wire::Response;
use crate::{
    Cluster, Failure, Format, Mark, Matrix, Outcome, Printer, Probe, report as report_probes,
};

/// What really happened.
#[derive(Debug)]
pub(crate) struct Findings {
    /// For each question (the matrix's, then the probes') what was sent and the responses to it.
    pub shown: Vec<Vec<(Try, Vec<Response>)>>,
    /// How long the cluster took to build.
    pub built: Duration,
    /// How long the packets took.
    pub sent: Duration,
    /// How many addresses there are outside.
    pub externals: usize,
}

/// What was printed.
#[derive(Debug)]
pub(crate) struct Reported {
    /// No expectation failed.
    pub is_as_expected: bool,
    /// Packets and tables do not say the same: the run is worthless, and this says where.
    pub disagreement: Option<String>,
}

/// Disagreements that an error lists; the first ones tell as much as all.
const LISTED: usize = 10;

/// Prints everything.
pub(crate) fn print(
    printer: &Printer,
    cluster: &Cluster,
    matrix: Option<(&Matrix, &[Answer])>,
    probes: &[(&Probe, &Answer)],
    findings: &Findings,
) -> io::Result<Reported> {
    let mut disputes = Disputes::default();
    let mut shown = findings.shown.iter();
    // the answer that the packets gave, with the reasons of the tables
    let mut observed = |probe: &Probe, answer: &Answer| {
        let shown = shown.next().map_or(&[][..], Vec::as_slice);
        let before = disputes.lines.len();
        shown.iter().for_each(|(of, responses)| disputes.compare(probe, answer, of, responses));
        let answer = answer.observed(&verdicts(answer, shown));
        let mark = match disputes.lines.len() > before {
            true => Mark::Disputed,
            false => Mark::Is(answer.verdict),
        };
        (answer, mark)
    };

    let mut title = cluster.title();
    if let Some((matrix, answers)) = matrix {
        let questions = matrix.questions.iter().zip(answers);
        let answers = questions
            .map(|(question, answer)| (&question.probe, observed(&question.probe, answer)))
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
                let drawn = matrix.draw(cluster, printer, &marks);
                printer.print(&format!("{}{drawn}", printer.title(&title)))?;
                title.clear();
            }
        }
    }

    let mut is_as_expected = true;
    if !probes.is_empty() {
        let answers = probes
            .iter()
            .map(|(probe, answer)| (*probe, observed(probe, answer).0))
            .collect::<Vec<_>>();
        let answered = answers
            .iter()
            .map(|(probe, answer)| (*probe, answer.verdict, answer.why.as_str()))
            .collect::<Vec<_>>();
        is_as_expected = match report_probes(printer, &title, &answered) {
            Ok(outcome) => outcome == Outcome::Expected,
            Err(Failure(text)) => return Err(io::Error::other(text)),
        };
    }
    if printer.format == Format::Table {
        printer.print(&sum(cluster, findings))?;
    }
    Ok(Reported { is_as_expected, disagreement: disagreement(&disputes.lines, disputes.slow) })
}

/// Packets that met another verdict than that of the tables.
#[derive(Debug, Default)]
struct Disputes {
    lines: Vec<String>,
    /// Of those, how many arrived.
    slow: usize,
}

impl Disputes {
    fn compare(&mut self, probe: &Probe, answer: &Answer, of: &Try, responses: &[Response]) {
        for (number, (expected, response)) in
            of.expected(answer).into_iter().zip(responses).enumerate()
        {
            if response.verdict() != expected {
                self.slow += usize::from(*response == Response::Unanswered);
                self.lines.push(dispute(probe, answer, of, number, expected, response));
            }
        }
    }
}

fn dispute(
    probe: &Probe,
    answer: &Answer,
    of: &Try,
    number: usize,
    expected: Verdict,
    response: &Response,
) -> String {
    let met = match response {
        Response::Unanswered => {
            "arrived, and its answer did not come back in time (is the machine short of CPU?)"
        }
        Response::Answered(_) => "met allow",
        Response::Silent | Response::Unroutable(_) => "met deny",
    };
    let (to, why) = match &of.shows {
        Shows::Path(path) => (answer.paths[*path].endpoint(), &answer.paths[*path].why),
        Shows::Endpoints(paths, frontend) => {
            let path = &answer.paths[paths.start + number];
            (format!("{frontend} -> {}", path.endpoint()), &path.why)
        }
        Shows::Vip(gate) => {
            let gate = &answer.untranslated[*gate];
            (gate.frontend.to_string(), &gate.gate.why)
        }
    };
    format!(
        "{} -> {} on {} ({} -> {to}): the packet {met}, the tables say {expected} ({why})",
        probe.src, probe.dst, probe.port, of.from.address,
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

fn sum(cluster: &Cluster, findings: &Findings) -> String {
    let shown = findings.shown.iter().flatten();
    let packets = shown.map(|(_, responses)| responses.len()).sum::<usize>();
    let externals = match findings.externals {
        0 => String::new(),
        1 => ", 1 address outside".into(),
        many => format!(", {many} addresses outside"),
    };
    format!(
        "{} pods{externals}: built in {:.1} s with bridge + static + podgate; {packets} paths tried with real packets in {:.1} s\n",
        cluster.pods.len(),
        findings.built.as_secs_f32(),
        findings.sent.as_secs_f32(),
    )
}

/// How to look around in a cluster that is up.
pub(crate) fn say_how_to_enter(host_pid: u32) {
    anstream::eprintln!(
        "\nThe cluster stays until ^C. From another terminal:\n  \
         nsenter -t {host_pid} -m -n -p                            # the node; podgatectl works there\n  \
         nsenter -t {host_pid} -m -n -p nsenter --net=/run/netns/NAMESPACE.POD   # a pod"
    );
}
