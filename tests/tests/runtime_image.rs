//! The container image: the same bytes again, what it is made of, and a containerd that imports and runs it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use podgate_tests::runtime::holder::HOME;
use podgate_tests::runtime::node::built;
use podgate_tests::runtime::program::said;
use podgate_tests::runtime::{Conflist, Node};
use serde_json::{Value, json};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/image.sh");
const NAME: &str = "registry.example:5000/some/podgate:test";

/// Makes the archive of the static binaries that `make build` has left.
fn archive(at: &Path, umask: &str) -> Result<PathBuf> {
    let policyd = built("policyd")?;
    let binaries = policyd.parent().context("its directory")?;
    let archive = at.join("image.tar");
    let output = Command::new("bash")
        .args(["-c", "umask $0; exec \"$@\"", umask, SCRIPT])
        .arg(binaries)
        .arg(NAME)
        .arg(&archive)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .context("run bash")?;
    ensure!(output.status.success(), "make the image: {}", said(&output));
    Ok(archive)
}

#[test]
fn the_same_binaries_make_the_same_bytes() -> Result<()> {
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let first = fs::read(archive(one.path(), "022")?)?;
    let second = fs::read(archive(two.path(), "077")?)?;
    ensure!(first == second, "they differ");
    let [one, two] = [one, two].map(|dir| fs::read(dir.path().join("image.spdx.json")));
    ensure!(one? == two?, "the lists of what they are made of differ");
    Ok(())
}

/// Runs a program, which must succeed.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", said(&output));
    Ok(String::from_utf8(output.stdout)?)
}

/// The crates that a binary is linked from, as `make build` builds it with these features of it: name and version.
fn linked(package: &str, features: &str) -> Result<Vec<(String, String)>> {
    let top = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut tree = Command::new("scripts/cargo.sh");
    tree.current_dir(top).args(["tree", "--locked", "--offline", "--prefix", "none"]);
    tree.args(["-e", "normal,no-proc-macro", "-p", package, "--features", features]);
    let lines = run(&mut tree)?;
    let words = lines.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let name = |words: Vec<&str>| match words[..] {
        [name, version, ..] => {
            version.strip_prefix('v').map(|version| (name.to_owned(), version.to_owned()))
        }
        _ => None,
    };
    Ok(words.filter_map(name).collect())
}

#[test]
fn it_says_what_it_is_made_of_and_holds_every_licence() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = archive(dir.path(), "022")?;
    let unpack = |archive: &Path, into: &str| -> Result<PathBuf> {
        let into = dir.path().join(into);
        fs::create_dir(&into)?;
        run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&into))?;
        Ok(into)
    };
    let layout = unpack(&archive, "oci")?;
    let json = |path: &Path| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(path).with_context(|| path.display().to_string())?)?)
    };
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let manifest = json(&blob(&json(&layout.join("index.json"))?["manifests"][0])?)?;
    let doc = unpack(&blob(&manifest["layers"][0])?, "root")?.join("usr/share/doc/podgate");

    let inside = fs::read(doc.join("podgate.spdx.json"))?;
    let beside = fs::read(archive.with_extension("spdx.json"))?;
    ensure!(inside == beside, "the two differ");
    let document: Value = serde_json::from_slice(&inside)?;
    ensure!(document["spdxVersion"] == "SPDX-2.3", "{}", document["spdxVersion"]);
    ensure!(document["creationInfo"]["created"] == "2023-11-14T22:13:20Z", "not the epoch's time");
    let packages = document["packages"].as_array().context("packages")?;
    let mut listed = BTreeSet::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().context("a string").map(str::to_owned);
        let (name, version) = (text("name")?, text("versionInfo")?);
        ensure!(!text("licenseDeclared")?.is_empty(), "{name} has no licence");
        let linked = json!({
            "spdxElementId": "SPDXRef-podgate-0.1.0".replace("0.1.0", env!("CARGO_PKG_VERSION")),
            "relationshipType": "STATIC_LINK", "relatedSpdxElement": package["SPDXID"],
        });
        let whole = name == "podgate";
        ensure!(whole || document["relationships"].as_array().is_some_and(|r| r.contains(&linked)));
        let texts = match whole {
            true => vec![doc.join("LICENSE")],
            false => fs::read_dir(doc.join("licences").join(format!("{name}-{version}")))
                .with_context(|| format!("licences of {name} {version}"))?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()?,
        };
        let longest =
            texts.iter().filter_map(|text| fs::metadata(text).ok()).map(|m| m.len()).max();
        ensure!(longest > Some(200), "{name} {version} has no text: {texts:?}");
        ensure!(listed.insert((name.clone(), version)), "{name} is there twice");
    }
    for (package, features) in [("policyd", "policyd/static"), ("podgate-cni", "")] {
        let linked = linked(package, features)?;
        ensure!(linked.len() > 50, "only {} crates in {package}", linked.len());
        for part in linked {
            ensure!(listed.contains(&part), "{package} has {part:?} in it, which is not listed");
        }
    }
    for other in ["libbpf", "elfutils", "zlib", "glibc", "libgcc", "rust"] {
        ensure!(listed.iter().any(|(name, _)| name == other), "{other} is not listed");
    }
    ensure!(doc.join("licences/podgate-programs/LICENSE.GPL-2.0").is_file(), "the programs'");
    Ok(())
}

#[test]
fn containerd_imports_and_runs_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = archive(dir.path(), "022")?;
    let node = Node::start(&Conflist::ungated())?;
    fs::copy(archive, node.home("podgate.tar"))?;
    let ctr = |more: &[&str]| {
        let socket = format!("{HOME}/c.sock");
        let mut arguments = vec!["-a", &socket, "-n", "k8s.io"];
        arguments.extend(more);
        node.run("ctr", &arguments)
    };
    ctr(&["images", "import", &format!("{HOME}/podgate.tar")])?;
    let images = ctr(&["images", "list", "-q"])?;
    ensure!(images.lines().any(|line| line == NAME), "{images}");
    for (name, arguments, told) in [
        ("entrypoint", &["/usr/bin/policyd", "--version"][..], env!("CARGO_PKG_VERSION")),
        ("ctl", &["/usr/bin/podgatectl", "--version"], env!("CARGO_PKG_VERSION")),
        ("kubectl", &["/usr/bin/kubectl-podgate", "--help"], "Usage"),
    ] {
        let cgroup = format!("/{}/{name}", node.mark());
        let mut run = vec!["run", "--rm", "--read-only", "--cgroup", &cgroup, NAME, name];
        run.extend(arguments);
        let said = ctr(&run)?;
        ensure!(said.contains(told), "{name} says {said}");
    }
    node.finish()
}
