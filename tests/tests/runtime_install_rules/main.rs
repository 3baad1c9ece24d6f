//! What podgate takes new pods to get, against what the runtimes' own code gives them: containerd 1.6 and 2.1 (go-cni
//! with libcni 1.1 and 1.3) and CRI-O (ocicni with libcni 1.3), over a table of directories. And where install then says
//! that new pods get a gate, each of the three gives them networks with podgate in it, or none.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use podgate_tests::go::{go_tools, go_tools_at};
use podgate_tests::runtime::program::said;
use policyd::install::{Directory, Edit, Entry, InstallState, Installer, Library, Rules, Runtime};
use serde_json::Value;

use cases::{Case, Gated, Nothing, Put, Refuses};

mod cases;

const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/runtimes");
const CONTAINERD: &str = "github.com/containerd/go-cni";

/// Plugins that say which versions they speak, and some that do not.
fn plugins(bin: &Path) -> Result<()> {
    let speaks = |versions: &str| {
        format!(
            r#"[ "$CNI_COMMAND" != VERSION ] || printf '{{"cniVersion":"1.1.0","supportedVersions":[{versions}]}}'"#
        )
    };
    let all = r#""0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0""#;
    let podgate = speaks(r#""0.3.1","0.4.0","1.0.0","1.1.0""#)
        + "\n[ -n \"$CNI_COMMAND\" ] || { echo 'podgate 0.1.0: a stand-in' >&2; exit 1; }";
    fs::create_dir_all(bin.join("folder"))?;
    for (name, body) in [
        ("bridge", speaks(all)),
        ("ptp", speaks(all)),
        ("portmap", speaks(all)),
        ("bandwidth", speaks(all)),
        ("loopback", speaks(all)),
        ("old", speaks(r#""0.3.1","0.4.0""#)),
        ("fails", "exit 1".to_owned()),
        ("nonsense", "echo hello".to_owned()),
        ("versionless", r#"printf '{"cniVersion":"1.0.0"}'"#.to_owned()),
        ("../new-podgate", podgate),
    ] {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn put(dir: &Path, files: &[(&str, Put)]) -> Result<()> {
    fs::create_dir_all(dir)?;
    for (name, put) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().context("its directory")?)?;
        match put {
            Put::Text(text) => fs::write(&path, text)?,
            Put::Link(target) => symlink(target, &path)?,
            Put::Dir => fs::create_dir_all(&path)?,
        }
    }
    Ok(())
}

/// The runtimes' own code.
struct Tools {
    old: PathBuf,
    new: PathBuf,
    bin: PathBuf,
    cache: PathBuf,
}

/// What a runtime gives new pods: the networks' names, and the plugins of each where it says.
type Given = Result<Vec<(String, Option<Vec<String>>)>, String>;

impl Tools {
    fn ask(&self, program: &Path, arguments: &[&str]) -> Result<Value> {
        let output = Command::new(program).args(arguments).output().context("run it")?;
        ensure!(output.status.success(), "{}: {}", program.display(), said(&output));
        serde_json::from_slice(&output.stdout).context("read its answer")
    }

    fn containerd(&self, tools: &Path, dir: &Path, rules: &Rules) -> Result<Given> {
        let max = rules.max_conf_num.to_string();
        let dir = dir.to_str().context("path")?;
        let answer = self.ask(&tools.join("containerd"), &[&max, dir])?;
        let Some(networks) = answer["networks"].as_array() else {
            return Ok(Err(answer["refused"].to_string()));
        };
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let types =
            |network: &Value| network["types"].as_array().map(|t| t.iter().map(text).collect());
        Ok(Ok(networks.iter().map(|network| (text(&network["name"]), types(network))).collect()))
    }

    fn crio(&self, dir: &Path, rules: &Rules) -> Result<Given> {
        let default = rules.default_network.as_deref().unwrap_or_default();
        let path = |path: &Path| path.to_str().map(str::to_owned).context("path");
        let (bin, cache, dir) = (path(&self.bin)?, path(&self.cache)?, path(dir)?);
        let answer = self.ask(&self.new.join("crio"), &[&bin, default, &cache, &dir])?;
        Ok(match answer["network"].as_str() {
            Some(name) => Ok(vec![(name.to_owned(), None)]),
            None => Err(answer["refused"].to_string()),
        })
    }

    /// Every runtime that the rules may mean.
    fn all(
        &self,
        dir: &Path,
        rules: &Rules,
    ) -> Result<Vec<(&'static str, Runtime, Library, Given)>> {
        let mut given = Vec::new();
        if rules.runtime != Some(Runtime::CriO) {
            let (before, since) = (Library::Before, Library::Since);
            let old = self.containerd(&self.old, dir, rules)?;
            let new = self.containerd(&self.new, dir, rules)?;
            given.push(("containerd 1.6", Runtime::Containerd, before, old));
            given.push(("containerd 2.1", Runtime::Containerd, since, new));
        }
        if rules.runtime != Some(Runtime::Containerd) {
            given.push(("CRI-O", Runtime::CriO, Library::Since, self.crio(dir, rules)?));
        }
        Ok(given)
    }
}

/// The network of a file, as the runtimes name it. The last key counts where there are two.
fn network_of(dir: &Path, file: &str, runtime: Runtime) -> String {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    let name = serde_json::from_str::<Value>(&text).unwrap_or_default()["name"].clone();
    match (name.as_str().unwrap_or_default(), runtime) {
        ("", Runtime::CriO) => file.to_owned(),
        (name, _) => name.to_owned(),
    }
}

fn check(tools: &Tools, dir: &Path, case: &Case) -> Result<()> {
    put(dir, &case.files)?;
    let directory = Directory::new(dir.to_owned(), tools.bin.clone());
    let files = directory.files()?;
    if !case.unreadable {
        for (name, runtime, library, given) in tools.all(dir, &case.rules)? {
            let ours = directory.verdict(&files, runtime, library, &case.rules);
            let files = if ours.sure { ours.files } else { Vec::new() };
            // of CRI-O the last: before it there is what it takes if a plugin is elsewhere
            let skip = if runtime == Runtime::CriO { files.len().saturating_sub(1) } else { 0 };
            let ours: Vec<_> =
                files[skip..].iter().map(|file| network_of(dir, file, runtime)).collect();
            let theirs: Vec<_> =
                given.iter().flatten().map(|(network, _)| network.clone()).collect();
            ensure!(ours == theirs, "{name} gives {given:?}, podgate takes it to give {ours:?}");
        }
    }
    let before = text_of(dir)?;
    let plugin = Some(tools.bin.join("../new-podgate"));
    let mut installer = Installer::new(directory, case.rules.clone(), plugin, Entry::default())?;
    let report = installer.reconcile(&Edit::Add)?;
    let told = format!("{report:?}");
    match (&report.state, case.outcome) {
        (InstallState::InForce { .. }, Gated) => {}
        (InstallState::Waiting { reason }, Nothing) => {
            ensure!(reason.contains("no CNI configuration there"), "{told}");
        }
        (InstallState::Waiting { reason }, Refuses(part)) => {
            // of an invalid file it is told beside the outcome
            ensure!(reason.contains(part) || told.contains(part), "no {part:?}: {told}");
        }
        (_, outcome) => anyhow::bail!("expected {outcome:?}: {told}"),
    }
    if case.outcome != Gated {
        let first = report.changes.is_empty();
        ensure!(!first || text_of(dir)? == before, "it changed something and did not say so");
        return Ok(());
    }
    // the proof: whatever these runtimes now give new pods has podgate in it
    for (name, runtime, _, given) in tools.all(dir, &case.rules)? {
        for (network, types) in given.into_iter().flatten() {
            let types = match types {
                Some(types) => types,
                None => types_in(dir, &network, runtime)?,
            };
            let loopback = types.iter().all(|kind| kind == "loopback");
            ensure!(
                loopback || types.last().is_some_and(|last| last == "podgate"),
                "{name} gives {network} of {types:?}: {told}"
            );
        }
    }
    let again = installer.reconcile(&Edit::Add)?;
    ensure!(again.changes.is_empty(), "the second time: {:?}", again.changes);
    Ok(())
}

/// The plugins of the first file of this network that is valid JSON.
fn types_in(dir: &Path, network: &str, runtime: Runtime) -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(dir)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)))
        .filter(|name| network_of(dir, name, runtime) == network)
        .collect();
    names.sort();
    let file = names.first().context("no file of that network")?;
    let value: Value = serde_json::from_str(&fs::read_to_string(dir.join(file))?)?;
    let plugins = value["plugins"].as_array().context("it is no list")?;
    Ok(plugins.iter().map(|plugin| plugin["type"].as_str().unwrap_or("?").to_owned()).collect())
}

fn text_of(dir: &Path) -> Result<Vec<(String, Option<String>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let text = fs::read_to_string(entry.path()).ok();
        all.push((entry.file_name().to_string_lossy().into_owned(), text));
    }
    all.sort();
    Ok(all)
}

#[test]
fn new_pods_get_what_podgate_takes_them_to_get() -> Result<()> {
    let work = tempfile::tempdir()?;
    let tools = Tools {
        old: go_tools_at(MODULE, Some("containerd-1.6.mod"), &["./containerd"])?,
        new: go_tools(MODULE, &["./containerd", "./crio"])?,
        bin: work.path().join("bin"),
        cache: work.path().join("cache"),
    };
    ensure!(tools.old != tools.new, "the two versions of {CONTAINERD} are in one place");
    fs::create_dir(&tools.bin)?;
    plugins(&tools.bin)?;
    let cases: Vec<_> = cases::all();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let dir = work.path().join(format!("{number}/net.d"));
        if let Err(error) = check(&tools, &dir, case) {
            wrong.push(format!("{}: {error:#}", case.name));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} are wrong:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    ensure!(cases.len() > 100, "only {} cases", cases.len());
    Ok(())
}
