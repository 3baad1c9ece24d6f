//! The command: from its arguments to its exit status.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use futures::{StreamExt, stream};
use podgate_policy::compile::Transport;
use podgate_policy::explain::Verdict;
use tokio::runtime;

use super::build::{Built, Paths};
use super::error::{Error, Result};
use super::install::Parts;
use super::isolate::{self, Brought};
use super::pick::{Target, sample};
use super::report::{self, Findings};
use super::wire::{Answerers, Outcome, Patience, Shot, ask};
use crate::ctl::{
    Failure, Format, Judged, Matrix, Printer, Probe, Spot, Way, Wire, World, judge_all, read_probes,
};

/// Questions in flight for each CPU; more would wait for each other longer than for an answer.
const AT_ONCE: usize = 32;
/// Pods up to which a matrix is drawn beside probes without being asked for.
const SMALL: usize = 30;
/// From here on a terminal is told how far it is.
const LONG: Duration = Duration::from_secs(2);

/// Arguments of `podgatectl lab`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Directory of *.yaml, *.yml and *.json manifests (not its subdirectories)
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// JSON list of probes; without it, or for a small world, every pod is tried from every other one
    #[arg(long, value_name = "FILE")]
    pub probes: Option<PathBuf>,
    /// A port to try between pods; may be given several times [default: named ports and ports of policies]
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<Wire>,
    /// Only the probes, no matrix
    #[arg(long, requires = "probes")]
    pub no_matrix: bool,
    /// Let the world stand after the packets, until ^C, to look around in it
    #[arg(long)]
    pub keep: bool,
    /// Directory of the CNI plugins `bridge` and `static` [default: CNI_PATH, /opt/cni/bin, /usr/lib/cni]
    #[arg(long, value_name = "DIR")]
    pub cni_path: Option<PathBuf>,
    /// The chained plugin [default: podgate beside this program]
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
    /// The daemon [default: policyd beside this program]
    #[arg(long, value_name = "FILE")]
    pub policyd: Option<PathBuf>,
}

/// Runs a lab; the result is the exit status. The first call makes the walls and runs the program again
/// inside them; the call in there does the work.
pub fn run(printer: &Printer, options: &Options) -> Result<u8, Failure> {
    let lab = Lab::read(printer, options)?;
    let failed = |error: Error| Failure(error.to_string());
    if isolate::is_inner() {
        lab.inside().map_err(failed)
    } else {
        isolate::run_inner().map_err(failed)
    }
}

/// Everything that is known before anything is built.
struct Lab<'a> {
    printer: &'a Printer,
    options: &'a Options,
    world: World,
    probes: Vec<(Probe, Judged)>,
    matrix: Option<(Matrix, Vec<Judged>)>,
    parts: Parts,
}

/// What to send: for which question, and its way, or the ways of one service among which its gate picks.
struct Asked<'a> {
    question: usize,
    ways: &'a [Way],
    shot: Shot,
}

impl<'a> Lab<'a> {
    /// Reads and checks all input: mistakes in it are told before anything needs root.
    fn read(printer: &'a Printer, options: &'a Options) -> Result<Self, Failure> {
        let (mut probes, mut file) = (Vec::new(), None);
        if let Some(path) = &options.probes {
            (probes, file) = (read_probes(path)?, Some(path));
        }
        let world = World::load(&options.manifests, &probes)?;
        let judged = match file {
            Some(file) => judge_all(&world, &probes, file)?,
            None => Vec::new(),
        };
        let wanted = match file {
            None => true,
            Some(_) if options.no_matrix || printer.format == Format::Json => false,
            Some(_) => world.seats.len() <= SMALL || !options.ports.is_empty(),
        };
        let matrix = wanted.then(|| Matrix::of(&world, &options.ports));
        let matrix = matrix
            .map(|matrix| {
                let judged = matrix.questions.iter().map(|question| world.judge(&question.probe));
                let judged = judged.collect::<Result<Vec<_>, _>>();
                judged.map(|judged| (matrix, judged)).map_err(|(_, cause)| cause)
            })
            .transpose()?;
        let parts = Parts::find(
            options.cni_path.as_deref(),
            options.plugin.as_deref(),
            options.policyd.as_deref(),
        )
        .map_err(|error| Failure(error.to_string()))?;
        let probes = probes.into_iter().zip(judged).collect();
        Ok(Self { printer, options, world, probes, matrix, parts })
    }

    /// The inner process, still single-threaded.
    fn inside(self) -> Result<u8> {
        let mut brought = Brought::default();
        let plugin = brought.bring(&self.parts.plugin, "bin/podgate");
        let paths = Paths {
            policyd: brought.bring(&self.parts.policyd, "bin/policyd"),
            manifests: brought.bring(&self.options.manifests, "manifests"),
            plugins: vec![
                plugin.parent().map(PathBuf::from).unwrap_or_default(),
                brought.bring(&self.parts.reference, "cni"),
            ],
        };
        let walls = isolate::raise(&brought)?;
        let runtime = runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("start", "a runtime", e))?;
        runtime.block_on(self.live(&paths, walls.host_pid))
    }

    async fn live(self, paths: &Paths, host_pid: u32) -> Result<u8> {
        let began = Instant::now();
        let ways = || self.questions().flat_map(|judged| &judged.ways);
        let strangers = ways()
            .flat_map(|way| [(way.from, way.source), (way.to, way.destination)])
            .filter(|(spot, _)| *spot == Spot::Outside)
            .map(|(_, address)| address)
            .collect::<BTreeSet<_>>();
        let mut built = Built::new(&self.world, strangers, paths).await?;
        let stands = Instant::now();
        let outcomes = self.send(&built).await?;
        built.check()?;
        let findings = Findings {
            outcomes,
            built: stands - began,
            sent: stands.elapsed(),
            strangers: built.strangers(),
        };
        let probes = self.probes.iter().map(|(probe, judged)| (probe, judged)).collect::<Vec<_>>();
        let matrix = self.matrix.as_ref().map(|(matrix, judged)| (matrix, judged.as_slice()));
        let told = report::tell(self.printer, &self.world, matrix, &probes, &findings);
        let told = told.map_err(|e| Error::io("write to", "standard output", e))?;
        if let Some(disagreement) = told.disagreement {
            return Err(built.failed(disagreement));
        }
        if self.options.keep {
            report::say_how_to_enter(host_pid);
            std::future::pending::<()>().await;
        }
        built.detach().await?;
        Ok(if told.as_expected { 0 } else { 1 })
    }

    /// Every question in one order: the matrix, then the probes.
    fn questions(&self) -> impl Iterator<Item = &Judged> {
        let matrix = self.matrix.iter().flat_map(|(_, judged)| judged);
        matrix.chain(self.probes.iter().map(|(_, judged)| judged))
    }

    /// Sends everything; for each question the outcome of each of its ways, in order.
    async fn send(&self, built: &Built) -> Result<Vec<Vec<Outcome>>> {
        let mut answerers = Answerers::start()?;
        let mut asked = Vec::new();
        for (question, judged) in self.questions().enumerate() {
            for way in &judged.ways {
                let name = self.name(way.to);
                answerers.serve(&built.place(way.to), way.destination, way.transport, &name)?;
            }
            let together = |a: &Way, b: &Way| a.through.is_some() && a.through == b.through;
            for ways in judged.ways.chunk_by(together) {
                let Some(way) = ways.first() else { continue };
                let place = built.place(way.from);
                let (to, transport) = match way.through {
                    Some(of) => (of.address, Transport::Port(of.protocol, of.port)),
                    None => (way.destination, way.transport),
                };
                let shot = Shot { place, from: way.source, to, transport };
                asked.push(Asked { question, ways, shot });
            }
        }
        let mut outcomes = self.questions().map(|_| Vec::new()).collect::<Vec<_>>();
        let (total, began) = (asked.len(), Instant::now());
        let progress = io::stderr().is_terminal();
        let at_once = AT_ONCE * thread::available_parallelism().map_or(1, usize::from);
        let mut answers = stream::iter(&asked).map(|one| self.ask(one)).buffered(at_once);
        let (mut done, mut unanswered) = (0, Vec::new());
        while let Some(answer) = answers.next().await {
            let (question, of) = answer?;
            if let Some(one) = asked.get(done)
                && one.ways.iter().zip(&of).any(|(way, outcome)| is_missing(way, outcome))
            {
                unanswered.push((one, outcomes[question].len()));
            }
            outcomes[question].extend(of);
            done += 1;
            if progress && began.elapsed() > LONG && (done % 16 == 0 || done == total) {
                anstream::eprint!("\r{done} of {total} packets answered or given up ");
                if done == total {
                    anstream::eprint!("\r\x1b[2K");
                }
            }
        }
        for (one, at) in unanswered {
            let again = self.ask_alone(one, &answerers).await?;
            let stays = again.contains(&Outcome::Silent);
            outcomes[one.question][at..at + again.len()].clone_from_slice(&again);
            // a gate that really drops them: the others would only take their time to say the same
            if stays {
                break;
            }
        }
        Ok(outcomes)
    }

    /// Asks once more what got no answer while many were asking: on a machine that is short of CPU that says nothing
    /// about gates.
    async fn ask_alone(&self, asked: &Asked<'_>, answerers: &Answerers) -> Result<Vec<Outcome>> {
        let mut outcomes = match asked.ways {
            [way] if way.through.is_none() => {
                vec![self.ask_one(way, &asked.shot, Patience::Alone).await?]
            }
            ways => self.ask_service(ways, &asked.shot).await?,
        };
        for (way, outcome) in asked.ways.iter().zip(&mut outcomes) {
            let arrived = || answerers.heard(way.source, way.destination, way.transport);
            if is_missing(way, outcome) && arrived() {
                *outcome = Outcome::Unanswered;
            }
        }
        Ok(outcomes)
    }

    async fn ask(&self, asked: &Asked<'_>) -> Result<(usize, Vec<Outcome>)> {
        let outcomes = match asked.ways {
            [way] if way.through.is_none() => {
                let patience = match way.answer.verdict {
                    Verdict::Allow => Patience::Answer,
                    Verdict::Deny => Patience::Silence,
                };
                vec![self.ask_one(way, &asked.shot, patience).await?]
            }
            ways => self.ask_service(ways, &asked.shot).await?,
        };
        Ok((asked.question, outcomes))
    }

    async fn ask_service(&self, ways: &[Way], shot: &Shot) -> Result<Vec<Outcome>> {
        let target = |way: &Way| Target { name: self.name(way.to), expected: way.answer.verdict };
        let targets = ways.iter().map(target).collect::<Vec<_>>();
        let frontend = ways.first().and_then(|way| way.through);
        let balance = frontend.and_then(|frontend| self.world.services.get(&frontend));
        sample(shot, &targets, balance.is_some_and(|balance| balance.affinity.is_some())).await
    }

    async fn ask_one(&self, way: &Way, shot: &Shot, patience: Patience) -> Result<Outcome> {
        let outcome = ask(shot, patience).await?;
        let expected = self.name(way.to);
        match &outcome {
            Outcome::Answered(Some(name)) if *name != expected => Err(Error::Layout(format!(
                "a packet to {} was answered by {name}, not by {expected}",
                shot.to
            ))),
            Outcome::Unroutable(reason) => Err(Error::Layout(format!(
                "send a packet from {} to {}: {reason}",
                shot.from, shot.to
            ))),
            Outcome::Answered(_) | Outcome::Silent | Outcome::Unanswered => Ok(outcome),
        }
    }

    /// What whoever answers at a spot says.
    fn name(&self, spot: Spot) -> String {
        match spot {
            Spot::Pod(seat) => self.world.seats[seat].pod.key.to_string(),
            Spot::Node => "the node".into(),
            Spot::Outside => "the outside".into(),
        }
    }
}

/// Whether an answer that the tables allow did not come.
fn is_missing(way: &Way, outcome: &Outcome) -> bool {
    way.answer.verdict == Verdict::Allow && *outcome == Outcome::Silent
}
