//! `policyd check`: tests whether podgate works on this kernel and which features it lacks. Everything is tried with the
//! real programs, in a mount and a network namespace that end with the process.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use clap::{Args, ValueEnum};
use futures::TryStreamExt;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use podgate_bpf::abi::Direction;
use podgate_bpf::attach::{AttachMode, Attached};
use podgate_bpf::features::{Feature, Kernel};
use podgate_bpf::loader::Sizes;
use podgate_bpf::testrun::Context;
use podgate_bpf::{Datapath, PinRoot, ProgramSize};
use rtnetlink::LinkVeth;
use serde::Serialize;

use crate::logging::Log;

/// Mount point of a BPF file system in the check's own mount namespace.
const BPFFS: &str = "/sys/fs/bpf";

/// TC_ACT_SHOT.
const DROP: i32 = 2;

/// `policyd check`.
#[derive(Debug, Args)]
pub struct Check {
    /// How the answer is written: a table for people, or one JSON object
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
    /// Logging.
    #[command(flatten)]
    pub log: Log,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for users.
    Table,
    /// One JSON object.
    Json,
}

/// The check failed, or this kernel cannot run podgate.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The check's own namespaces or mounts cannot be made.
    #[error("{what}: {source} (the check needs root, with CAP_SYS_ADMIN and CAP_NET_ADMIN)")]
    Isolate {
        /// "verb object".
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The veth pair for the test cannot be made.
    #[error("make a veth pair: {0} (CONFIG_VETH)")]
    Veth(String),
    /// The programs cannot be loaded.
    #[error(transparent)]
    Bpf(#[from] podgate_bpf::Error),
    /// Neither kind of gate can be attached.
    #[error("attach gates: {0}")]
    NoGate(String),
    /// A program returned a wrong action.
    #[error("run {program}: it answered {action} to a packet that it must drop")]
    Verdict {
        /// The program.
        program: &'static str,
        /// The TC action.
        action: i32,
    },
}

/// Result of the check.
#[derive(Debug, Serialize)]
struct Findings {
    kernel: String,
    programs: Vec<Program>,
    gates: Vec<Line>,
    features: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Program {
    name: &'static str,
    instructions: u32,
    jited_bytes: u32,
    verified_instructions: u32,
}

/// A feature, whether this kernel has it, and the consequence if not.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    present: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    without: Option<String>,
}

/// Runs the check and prints the result; an error if podgate cannot run on this kernel. Must be called before any other
/// thread is started, because the namespaces belong to the calling thread.
pub fn check(args: &Check) -> Result<(), CheckError> {
    isolate()?;
    let findings = try_all()?;
    match args.output {
        Output::Table => print!("{}", table(&findings)),
        Output::Json => {
            println!("{}", serde_json::to_string(&findings).unwrap_or_default());
        }
    }
    Ok(())
}

fn isolate() -> Result<(), CheckError> {
    let fault = |what| move |e: nix::errno::Errno| CheckError::Isolate { what, source: e.into() };
    let none: Option<&Path> = None;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(fault("make a mount and a network namespace"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(fault("make mounts private"))?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(fault("mount a BPF file system"))
}

fn try_all() -> Result<Findings, CheckError> {
    let root = PinRoot::new(format!("{BPFFS}/podgate"));
    let datapath = Datapath::open_or_load(&root, &Sizes::default())?;
    let ifindex = veth()?;
    let limits = datapath.load_metered().err().map(|error| error.to_string());
    run_programs(&datapath, ifindex)?;
    let gates = try_gates(&datapath, ifindex)?;
    let Kernel { release, missing } = Kernel::probe();
    let sizes = datapath.program_sizes()?;
    // a kernel that keeps no count may still print one; without either, everything else holds all the same
    let counted = match sizes.iter().any(|(_, size)| size.verified == 0) {
        true => Datapath::count_verified(&root, &Sizes::default()).unwrap_or_default(),
        false => BTreeMap::new(),
    };
    let features = Feature::ALL.into_iter().map(|feature| {
        let present = !missing.contains(&feature);
        Line {
            name: format!("{} (Linux {})", feature.name(), feature.since()),
            present,
            without: (!present).then(|| feature.without().to_owned()),
        }
    });
    let limits = Line { name: "limits of pods".into(), present: limits.is_none(), without: limits };
    Ok(Findings {
        kernel: release,
        programs: sizes.into_iter().map(|(name, size)| program(name, size, &counted)).collect(),
        gates,
        features: [limits].into_iter().chain(features).collect(),
    })
}

fn program(name: &'static str, size: ProgramSize, counted: &BTreeMap<String, u32>) -> Program {
    let ProgramSize { instructions, jited_bytes, verified } = size;
    let verified_instructions = counted.get(name).copied().unwrap_or(verified);
    Program { name, instructions, jited_bytes, verified_instructions }
}

/// An interface that is not registered passes nothing: the programs run, and read their maps.
fn run_programs(datapath: &Datapath, ifindex: u32) -> Result<(), CheckError> {
    // Ethernet, IPv4, UDP: as short as one can be
    let mut frame = [0_u8; 14 + 20 + 8];
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0x00]);
    frame[16..18].copy_from_slice(&28_u16.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    frame[38..40].copy_from_slice(&8_u16.to_be_bytes());
    // ingress_ifindex stays 0: kernel 5.10 takes no other
    let context = Context { ifindex, ingress_ifindex: 0 };
    for direction in [Direction::Egress, Direction::Ingress] {
        for (program, action) in datapath.test_run_all(direction, context, &frame)? {
            if action != DROP {
                return Err(CheckError::Verdict { program, action });
            }
        }
    }
    Ok(())
}

fn try_gates(datapath: &Datapath, ifindex: u32) -> Result<Vec<Line>, CheckError> {
    let mut lines = Vec::new();
    for (mode, kind) in [(AttachMode::Clsact, Attached::Clsact), (AttachMode::Tcx, Attached::Tcx)] {
        let attached = datapath.attach(ifindex, mode).and_then(|_| datapath.verify(ifindex));
        let failure = match attached {
            Ok(found) if found == kind => None,
            Ok(found) => Some(format!("verified as {found:?}")),
            Err(error) => Some(error.to_string()),
        };
        datapath.detach(ifindex)?;
        lines.push(Line {
            name: format!("gate by {mode}"),
            present: failure.is_none(),
            without: failure,
        });
    }
    if lines.iter().any(|line| line.present) {
        return Ok(lines);
    }
    let reasons: Vec<String> = lines.into_iter().filter_map(|line| line.without).collect();
    Err(CheckError::NoGate(reasons.join("; ")))
}

/// Makes a veth pair in the check's network namespace; the index of one end.
fn veth() -> Result<u32, CheckError> {
    const NAME: &str = "pgcheck0";
    let fault = |e: &dyn std::fmt::Display| CheckError::Veth(e.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| fault(&e))?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| fault(&e))?;
        tokio::spawn(connection);
        let pair = LinkVeth::new(NAME, "pgcheck1").build();
        handle.link().add(pair).execute().await.map_err(|e| fault(&e))?;
        let mut found = handle.link().get().match_name(NAME.to_owned()).execute();
        let link = found.try_next().await.map_err(|e| fault(&e))?;
        link.map(|link| link.header.index).ok_or_else(|| fault(&"it is not there"))
    })
}

fn table(findings: &Findings) -> String {
    let mut text = format!("kernel {}: podgate works here\n", findings.kernel);
    for Program { name, instructions, jited_bytes, verified_instructions } in &findings.programs {
        let verified = match verified_instructions {
            0 => String::new(),
            count => format!(", {count} verified"),
        };
        text += &format!(
            "  {name:<30} loaded and ran: {instructions} instructions{verified}, {jited_bytes} bytes of machine code\n"
        );
    }
    for Line { name, present, without } in findings.gates.iter().chain(&findings.features) {
        let answer = match without {
            None if *present => "yes",
            None => "no",
            Some(_) => "no:",
        };
        let consequence = without.as_deref().unwrap_or_default();
        text += format!("  {name:<30} {answer} {consequence}").trim_end();
        text.push('\n');
    }
    text
}
