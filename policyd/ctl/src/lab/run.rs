//! The command: from its arguments to its exit status.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use futures::{StreamExt, stream};
use podgate_contract::api::Verdict;
use podgate_policy::reach::Answer;
use tokio::runtime;

use super::build::{Built, Paths};
use super::error::{Error, Result};
use super::install::Parts;
use super::isolate::{self, BindMounts};
use super::report::{self, Findings};
use super::sample_backends::{Backend, sample};
use super::tries::{self, Shows, Site, Try};
use super::wire::{Answerers, Netns, PacketSpec, Patience, Response, ask};
use crate::{Cluster, Failure, Format, Matrix, PortSpec, Printer, Probe, answer_all, read_probes};

/// Packets in flight for each CPU; more would wait for each other longer than for an answer.
const AT_ONCE: usize = 32;
/// Pods up to which a matrix is drawn beside probes without being asked for.
const SMALL: usize = 30;
/// After this time a terminal shows the progress.
const LONG: Duration = Duration::from_secs(2);

/// Arguments of `podgatectl lab`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Directory of *.yaml, *.yml and *.json manifests (not its subdirectories)
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// JSON list of probes; without it, or for a small cluster, every pod is tried from every other one
    #[arg(long, value_name = "FILE")]
    pub probes: Option<PathBuf>,
    /// A port to try between pods; may be given several times [default: named ports and ports of policies]
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<PortSpec>,
    /// Only the probes, no matrix
    #[arg(long, requires = "probes")]
    pub no_matrix: bool,
    /// Let the cluster stand after the packets, until ^C, to look around in it
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

/// Runs a lab; the result is the exit status. The first call makes the namespaces and runs the program again
/// inside them; the call in there does the work.
pub(crate) fn run(printer: &Printer, options: &Options) -> Result<u8, Failure> {
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
    cluster: Cluster,
    probes: Vec<(Probe, Answer)>,
    matrix: Option<(Matrix, Vec<Answer>)>,
    parts: Parts,
}

/// Packets that are ready to be sent.
struct Ready<'a> {
    /// The question, by its place in [`Lab::answers`].
    question: usize,
    answer: &'a Answer,
    of: Try,
    /// The name that an answer must give; `None`: any endpoint's of the service.
    name: Option<String>,
    packet: PacketSpec,
}

impl<'a> Lab<'a> {
    /// Reads and checks all input: mistakes in it are reported before anything needs root.
    fn read(printer: &'a Printer, options: &'a Options) -> Result<Self, Failure> {
        let (mut probes, mut file) = (Vec::new(), None);
        if let Some(path) = &options.probes {
            (probes, file) = (read_probes(path)?, Some(path));
        }
        let cluster = Cluster::load(&options.manifests, None, &probes)?;
        let answers = match file {
            Some(file) => answer_all(&cluster, &probes, file)?,
            None => Vec::new(),
        };
        let is_drawn = match file {
            None => true,
            Some(_) if options.no_matrix || printer.format == Format::Json => false,
            Some(_) => cluster.pods.len() <= SMALL || !options.ports.is_empty(),
        };
        let matrix = is_drawn.then(|| Matrix::of(&cluster, &options.ports));
        let matrix = matrix
            .map(|matrix| matrix.answers(&cluster).map(|answers| (matrix, answers)))
            .transpose()?;
        let parts = Parts::find(
            options.cni_path.as_deref(),
            options.plugin.as_deref(),
            options.policyd.as_deref(),
        )
        .map_err(|error| Failure(error.to_string()))?;
        let probes = probes.into_iter().zip(answers).collect();
        Ok(Self { printer, options, cluster, probes, matrix, parts })
    }

    /// The inner process, still single-threaded.
    fn inside(self) -> Result<u8> {
        let mut mounts = BindMounts::default();
        let plugin = mounts.bring(&self.parts.plugin, "bin/podgate");
        let paths = Paths {
            policyd: mounts.bring(&self.parts.policyd, "bin/policyd"),
            manifests: mounts.bring(&self.options.manifests, "manifests"),
            plugins: vec![
                plugin.parent().map(PathBuf::from).unwrap_or_default(),
                mounts.bring(&self.parts.reference, "cni"),
            ],
        };
        let isolation = isolate::enter(&mounts)?;
        let runtime = runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("start", "a runtime", e))?;
        runtime.block_on(self.live(&paths, isolation.host_pid))
    }

    async fn live(self, paths: &Paths, host_pid: u32) -> Result<u8> {
        let began = Instant::now();
        let mut built = Built::new(&self.cluster, self.externals(), paths).await?;
        let is_up = Instant::now();
        let shown = self.send(&built).await?;
        built.check()?;
        let findings = Findings {
            shown,
            built: is_up - began,
            sent: is_up.elapsed(),
            externals: built.externals(),
        };
        let probes = self.probes.iter().map(|(probe, answer)| (probe, answer)).collect::<Vec<_>>();
        let matrix = self.matrix.as_ref().map(|(matrix, answers)| (matrix, answers.as_slice()));
        let reported = report::print(self.printer, &self.cluster, matrix, &probes, &findings);
        let reported = reported.map_err(|e| Error::io("write to", "standard output", e))?;
        if let Some(disagreement) = reported.disagreement {
            return Err(built.failed(disagreement));
        }
        if self.options.keep {
            report::say_how_to_enter(host_pid);
            std::future::pending::<()>().await;
        }
        built.detach().await?;
        Ok(if reported.is_as_expected { 0 } else { 1 })
    }

    /// Every answer in one order: those of the matrix, then those of the probes.
    fn answers(&self) -> impl Iterator<Item = &Answer> {
        let matrix = self.matrix.iter().flat_map(|(_, answers)| answers);
        matrix.chain(self.probes.iter().map(|(_, answer)| answer))
    }

    /// The addresses that the namespace outside must have: all that packets are sent from or to there.
    fn externals(&self) -> BTreeSet<IpAddr> {
        let plan = &self.cluster.plan;
        let ends = self.answers().flat_map(|answer| {
            let starts = tries::tries(plan, answer).into_iter().map(|of| of.from);
            let finishes = answer.paths.iter().map(|path| tries::finish(plan, path));
            let vips = answer.untranslated.iter().map(|gate| tries::vip(plan, gate));
            starts.chain(finishes).chain(vips).collect::<Vec<_>>()
        });
        ends.filter(|end| end.site == Site::Outside).map(|end| end.address).collect()
    }

    /// Sends everything; for each question the packets that were sent and the responses to them, in order.
    async fn send(&self, built: &Built) -> Result<Vec<Vec<(Try, Vec<Response>)>>> {
        let mut answerers = Answerers::start()?;
        let mut ready = Vec::new();
        for (question, answer) in self.answers().enumerate() {
            for of in tries::tries(&self.cluster.plan, answer) {
                ready.push(self.prepare(built, &mut answerers, question, answer, of)?);
            }
        }
        let mut shown = self.answers().map(|_| Vec::new()).collect::<Vec<_>>();
        let (total, began) = (ready.len(), Instant::now());
        let progress = io::stderr().is_terminal();
        let at_once = AT_ONCE * thread::available_parallelism().map_or(1, usize::from);
        let mut responses = stream::iter(&ready).map(|one| self.ask(one)).buffered(at_once);
        let (mut done, mut unanswered) = (0, Vec::new());
        while let Some(found) = responses.next().await {
            let (one, found) = found?;
            if one.lacks_an_answer(&found) {
                unanswered.push((one, shown[one.question].len()));
            }
            shown[one.question].push((one.of.clone(), found));
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
            let is_dropped = again.contains(&Response::Silent);
            shown[one.question][at].1 = again;
            // a gate that really drops them: the others would only take their time to show the same
            if is_dropped {
                break;
            }
        }
        Ok(shown)
    }

    /// Starts the listeners for some packets.
    fn prepare<'b>(
        &self,
        built: &Built,
        answerers: &mut Answerers,
        question: usize,
        answer: &'b Answer,
        of: Try,
    ) -> Result<Ready<'b>> {
        let plan = &self.cluster.plan;
        let netns = |site: &Site| -> Result<Netns> {
            let found = built.netns(&self.cluster, site);
            found.ok_or_else(|| Error::Layout(format!("{} is no pod of the lab", site.name())))
        };
        let mut serve = |end: &tries::End, transport| -> Result<String> {
            let name = end.site.name();
            answerers.serve(&netns(&end.site)?, end.address, transport, &name)?;
            Ok(name)
        };
        let name = match &of.shows {
            Shows::Path(path) => {
                let path = &answer.paths[*path];
                Some(serve(&tries::finish(plan, path), path.transport)?)
            }
            Shows::Endpoints(paths, _) => {
                for path in &answer.paths[paths.clone()] {
                    serve(&tries::finish(plan, path), path.transport)?;
                }
                None
            }
            Shows::Vip(gate) => {
                Some(serve(&tries::vip(plan, &answer.untranslated[*gate]), of.transport)?)
            }
        };
        let packet = PacketSpec {
            netns: netns(&of.from.site)?,
            from: of.from.address,
            to: of.to,
            transport: of.transport,
        };
        Ok(Ready { question, answer, of, name, packet })
    }

    async fn ask<'b, 'c>(&self, ready: &'b Ready<'c>) -> Result<(&'b Ready<'c>, Vec<Response>)> {
        let responses = match &ready.name {
            Some(name) => {
                let patience = match ready.of.expected(ready.answer).first() {
                    Some(Verdict::Allow) => Patience::Answer,
                    _ => Patience::Silence,
                };
                vec![ask_one(name, &ready.packet, patience).await?]
            }
            None => self.ask_service(ready).await?,
        };
        Ok((ready, responses))
    }

    /// Asks once more what got no answer while many were asking: on a machine that is short of CPU that says nothing
    /// about gates.
    async fn ask_alone(&self, ready: &Ready<'_>, answerers: &Answerers) -> Result<Vec<Response>> {
        let mut responses = match &ready.name {
            Some(name) => vec![ask_one(name, &ready.packet, Patience::Alone).await?],
            None => self.ask_service(ready).await?,
        };
        let expected = ready.of.expected(ready.answer);
        let arrivals: Vec<_> = match &ready.of.shows {
            Shows::Endpoints(paths, _) => ready.answer.paths[paths.clone()]
                .iter()
                .map(|path| (path.destination, path.transport))
                .collect(),
            Shows::Path(_) | Shows::Vip(_) => vec![(ready.packet.to, ready.packet.transport)],
        };
        for ((verdict, (to, transport)), response) in
            expected.iter().zip(arrivals).zip(&mut responses)
        {
            let has_arrived = || answerers.heard(ready.packet.from, to, transport);
            if is_missing(*verdict, response) && has_arrived() {
                *response = Response::Unanswered;
            }
        }
        Ok(responses)
    }

    async fn ask_service(&self, ready: &Ready<'_>) -> Result<Vec<Response>> {
        let Shows::Endpoints(paths, frontend) = &ready.of.shows else { return Ok(Vec::new()) };
        let plan = &self.cluster.plan;
        let backends = ready.answer.paths[paths.clone()].iter().map(|path| Backend {
            name: tries::finish(plan, path).site.name(),
            expected: path.verdict,
        });
        let balance = self.cluster.services.get(frontend);
        let is_sticky = balance.is_some_and(|balance| balance.affinity.is_some());
        sample(&ready.packet, &backends.collect::<Vec<_>>(), is_sticky).await
    }
}

impl Ready<'_> {
    /// Whether an answer that the tables allow did not come.
    fn lacks_an_answer(&self, responses: &[Response]) -> bool {
        let expected = self.of.expected(self.answer);
        expected.iter().zip(responses).any(|(verdict, response)| is_missing(*verdict, response))
    }
}

async fn ask_one(expected: &str, packet: &PacketSpec, patience: Patience) -> Result<Response> {
    let response = ask(packet, patience).await?;
    match &response {
        Response::Answered(Some(name)) if name != expected => Err(Error::Layout(format!(
            "a packet to {} was answered by {name}, not by {expected}",
            packet.to
        ))),
        Response::Unroutable(reason) => Err(Error::Layout(format!(
            "send a packet from {} to {}: {reason}",
            packet.from, packet.to
        ))),
        Response::Answered(_) | Response::Silent | Response::Unanswered => Ok(response),
    }
}

fn is_missing(expected: Verdict, response: &Response) -> bool {
    expected == Verdict::Allow && *response == Response::Silent
}
