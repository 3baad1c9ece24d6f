//! `policyd check`: does podgate work on this kernel, and what is missing? Everything is tried with the real
//! programs, in a mount and a network namespace that end with the process.

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
use podgate_bpf::{Gate, PinRoot, ProgramSize};
use rtnetlink::LinkVeth;
use serde::Serialize;

use crate::args::Log;

/// Where the namespace of the check has a BPF file system of its own.
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

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The check itself could not be made, or this kernel cannot run podgate.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A namespace or a mount of its own.
    #[error("{what}: {source} (the check needs root, with CAP_SYS_ADMIN and CAP_NET_ADMIN)")]
    Isolate {
        /// "verb object".
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A veth pair to attach to.
    #[error("make a veth pair: {0} (CONFIG_VETH)")]
    Veth(String),
    /// The programs.
    #[error(transparent)]
    Bpf(#[from] podgate_bpf::Error),
    /// Neither kind of gate can be attached.
    #[error("attach gates: {0}")]
    NoGate(String),
    /// The programs run, and do not do what they must.
    #[error("run {program}: it answered {action} to a packet that it must drop")]
    Verdict {
        /// Which.
        program: &'static str,
        /// The TC action.
        action: i32,
    },
}

/// What was found.
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

/// One thing that this kernel has or lacks, and what follows from a lack.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    present: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    without: Option<String>,
}

/// Tries everything, prints what was found; an error if podgate cannot run here. Must be called before any thread
/// exists: the namespaces are the calling thread's.
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
    let gate = Gate::open_or_load(&root, &Sizes::default())?;
    let ifindex = veth()?;
    run_programs(&gate, ifindex)?;
    let gates = try_gates(&gate, ifindex)?;
    let Kernel { release, missing } = Kernel::probe();
    let (from_pod, to_pod) = gate.program_sizes()?;
    let features = Feature::ALL.into_iter().map(|feature| {
        let present = !missing.contains(&feature);
        Line {
            name: format!("{} (Linux {})", feature.name(), feature.since()),
            present,
            without: (!present).then(|| feature.without().to_owned()),
        }
    });
    Ok(Findings {
        kernel: release,
        programs: vec![program("from_pod", from_pod), program("to_pod", to_pod)],
        gates,
        features: features.collect(),
    })
}

fn program(name: &'static str, size: ProgramSize) -> Program {
    let ProgramSize { instructions, jited_bytes, verified } = size;
    Program { name, instructions, jited_bytes, verified_instructions: verified }
}

/// An interface that is not registered passes nothing: the programs run, and read their maps.
fn run_programs(gate: &Gate, ifindex: u32) -> Result<(), CheckError> {
    // Ethernet, IPv4, UDP: as short as one can be
    let mut frame = [0_u8; 14 + 20 + 8];
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0x00]);
    frame[16..18].copy_from_slice(&28_u16.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    frame[38..40].copy_from_slice(&8_u16.to_be_bytes());
    // ingress_ifindex stays 0: kernel 5.10 takes no other
    let context = Context { ifindex, ingress_ifindex: 0 };
    for (direction, program) in [(Direction::Egress, "from_pod"), (Direction::Ingress, "to_pod")] {
        let action = gate.test_run(direction, context, &frame, 1)?.action;
        if action != DROP {
            return Err(CheckError::Verdict { program, action });
        }
    }
    Ok(())
}

fn try_gates(gate: &Gate, ifindex: u32) -> Result<Vec<Line>, CheckError> {
    let mut lines = Vec::new();
    for (mode, kind) in [(AttachMode::Clsact, Attached::Clsact), (AttachMode::Tcx, Attached::Tcx)] {
        let attached = gate.attach(ifindex, mode).and_then(|_| gate.verify(ifindex));
        let failure = match attached {
            Ok(found) if found == kind => None,
            Ok(found) => Some(format!("verified as {found:?}")),
            Err(error) => Some(error.to_string()),
        };
        gate.detach(ifindex)?;
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
