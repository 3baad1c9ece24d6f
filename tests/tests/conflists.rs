//! The chains in `conf/conflists`, and that what `policyd install` writes is what the plugin reads: the two share no
//! code, as the plugin's crate is nobody's library.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podgate_bpf::attach::AttachMode;
use podgate_cni::spec::keys::{Log, PluginPaths, Settings, misspelt};
use podgate_cni::spec::{NetConf, SpecVersion};
use podgate_contract::plugin_conf::{LogLevel, OnTimeout, Startup};
use policyd::install::{Conflist, Entry, VERSIONS};
use serde_json::Value;

const CONFLISTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/conflists");

fn conflists() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(CONFLISTS)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "conflist") {
            let name = path.file_stem().context("name")?.to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

/// podgate's entry as libcni hands it over.
fn handed(list: &str) -> Result<NetConf> {
    let list: Value = serde_json::from_str(list)?;
    let plugins = list["plugins"].as_array().context("plugins")?;
    let mut entry = plugins.last().context("an entry")?.clone();
    ensure!(entry["type"] == "podgate", "the last is {entry}");
    entry["name"] = list["name"].clone();
    entry["cniVersion"] = list["cniVersion"].clone();
    Ok(NetConf::parse(entry.to_string().as_bytes())?)
}

#[test]
fn each_is_what_install_makes_of_the_primarys_own() -> Result<()> {
    let all = conflists()?;
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "aws-vpc-cni",
        "bridge",
        "calico-nopolicy",
        "cilium-nopolicy",
        "flannel",
        "kindnet",
        "ptp",
    ];
    ensure!(names == expected, "{names:?}");
    for (name, text) in all {
        let list = Conflist::parse(&text).with_context(|| name.clone())?;
        ensure!(list.refusal().is_none(), "{name}: {:?}", list.refusal());
        ensure!(list.kinds().last() == Some("podgate"), "{name}: podgate is not the last");
        let original = list.without().with_context(|| format!("{name} without podgate"))?;
        let primary = Conflist::parse(&original).with_context(|| name.clone())?;
        ensure!(
            !primary.has_podgate() && primary.kinds().eq(list.kinds().filter(|k| *k != "podgate"))
        );
        // what install has where no option is given
        let entry = Entry { bandwidth: Some(true), ..Entry::default() };
        let made = primary.with(&entry).context("it was not put in")?;
        // that one shows every key
        if name == "bridge" {
            ensure!(Conflist::parse(&made)?.kinds().eq(list.kinds()), "{name}: {made}");
        } else {
            ensure!(made == text, "{name}: install makes\n{made}\nof it");
        }
        let conf = handed(&text)?;
        Settings::read(&conf).with_context(|| name.clone())?;
        ensure!(misspelt(&conf).is_empty(), "{name}: {:?}", misspelt(&conf));
    }
    Ok(())
}

#[test]
fn the_plugin_reads_every_option_that_install_writes() -> Result<()> {
    let entry = Entry {
        startup: Some(Startup::Open),
        policyd_timeout_ms: Some(1234),
        on_timeout: Some(OnTimeout::Fail),
        socket: Some("/s".into()),
        bpf_root: Some("/b".into()),
        anti_spoofing: Some(false),
        attach: Some(AttachMode::Tcx),
        bandwidth: Some(true),
        plugin_log_file: Some("/l".into()),
        plugin_log_level: Some(LogLevel::Trace),
    };
    let text = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;
    let conf = handed(&Conflist::parse(text)?.with(&entry).context("it was not put in")?)?;
    let settings = Settings::read(&conf)?;
    ensure!(settings.startup == podgate_bpf::abi::Startup::Open, "{settings:?}");
    ensure!(settings.policyd_timeout == Duration::from_millis(1234), "{settings:?}");
    ensure!(settings.on_timeout == OnTimeout::Fail, "{settings:?}");
    ensure!(!settings.anti_spoofing && settings.attach == AttachMode::Tcx, "{settings:?}");
    let paths = PluginPaths::read(&conf)?;
    ensure!(paths.socket == Path::new("/s") && paths.bpf_root == Path::new("/b"), "{paths:?}");
    let log = Log::read(&conf)?;
    ensure!(log.file == Some(PathBuf::from("/l")) && log.level.as_str() == "TRACE", "{log:?}");
    Ok(())
}

#[test]
fn install_takes_the_versions_that_the_plugin_speaks() {
    assert_eq!(VERSIONS.to_vec(), SpecVersion::ALL.map(SpecVersion::text).to_vec());
}
