//! Which of a directory's files new pods get.
//!
//! containerd and CRI-O read `.conf`, `.conflist` and `.json`, sorted by name, hidden ones too. containerd takes as many
//! as `max_conf_num` says (one; 0 is all), each an interface of every pod, and none at all where one that it reads is
//! invalid: pods then wait until it is mended. CRI-O goes past an invalid file, and past one with a plugin whose binary
//! is missing or does not speak the list's version; it takes the first that is left, or the one whose network
//! `cni_default_network` names.
//!
//! Which runtime and which version of its library reads the directory is not known here unless it is said. So podgate
//! goes into every file that any of them gives new pods, and where one of these cannot take it, none behind it is
//! edited and new pods count as not gated. `tests/tests/runtime_install_rules.rs` compares with the runtimes' own code.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};

use super::PLUGIN;
use super::conflist::{Conflist, from_conf};
use super::libcni::{self, Beside, Library, Network, Unfit};
use super::plugins::Plugin;

/// A file of the configuration directory that a runtime would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its content, or why there is none.
    pub text: Result<String, String>,
}

/// A container runtime, by how it chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// containerd.
    Containerd,
    /// CRI-O.
    #[value(name = "cri-o")]
    CriO,
}

/// What the runtime's own configuration says about the choice.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "The runtime's own configuration, where it is not the default")]
pub struct Rules {
    /// The node's runtime [default: whatever either would give new pods gets a gate]
    #[arg(long, env = "PODGATE_RUNTIME", value_enum, value_name = "NAME")]
    pub runtime: Option<Runtime>,
    /// containerd's max_conf_num: how many of the configurations each pod gets, 0 for all
    #[arg(long, env = "PODGATE_MAX_CONF_NUM", default_value_t = 1, value_name = "N")]
    pub max_conf_num: usize,
    /// CRI-O's cni_default_network: the name of the network that pods get, whatever the order of the files
    #[arg(long, env = "PODGATE_DEFAULT_NETWORK", value_name = "NAME")]
    pub default_network: Option<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { runtime: None, max_conf_num: 1, default_network: None }
    }
}

/// What the choice depends on beside the files.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    /// What is in the directory under a network's name.
    pub(super) beside: &'a dyn Fn(&str) -> Beside,
    /// What is known of a plugin, by its type.
    pub(super) plugin: &'a dyn Fn(&str) -> Plugin,
}

/// A file that new pods get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Active {
    /// A list that podgate can be in.
    List {
        /// The file's name.
        name: String,
        /// Its content.
        text: String,
    },
    /// A single plugin's configuration, which becomes a list.
    Single {
        /// The file's name.
        name: String,
        /// The list's name.
        list: String,
        /// The list.
        text: String,
    },
    /// It makes nothing that could have a gate.
    NoInterface {
        /// The file's name.
        name: String,
    },
    /// It has no room for podgate.
    Refused {
        /// The file's name.
        name: String,
        /// Why not, and what to do.
        reason: String,
    },
}

/// The choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What new pods get, of any runtime that may be meant, in the order of the files.
    pub networks: Vec<Active>,
    /// What is wrong with files, and which are passed over.
    pub problems: Vec<String>,
    /// What cannot be known from here.
    pub doubts: Vec<String>,
    /// Files that are fine and that new pods do not get.
    pub unused: Vec<String>,
}

/// What one runtime gives new pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Names of files: what it gives, and before that what it gives if a plugin that is not where this program looks
    /// is somewhere else.
    pub files: Vec<String>,
    /// Whether it surely gives the last of them. If not, it gives none as far as can be seen from here.
    pub sure: bool,
    /// Those of the files that it gives only if a plugin, which cannot be run from here, does not work there either.
    pub doubtful: Vec<String>,
}

/// What there is to say about the files.
#[derive(Default)]
struct Said {
    problems: Vec<String>,
    doubts: Vec<String>,
}

/// What a single plugin's file is called once the list has taken its place: runtimes do not read it.
pub(super) const KEPT: &str = ".before-podgate";

/// Whether a runtime reads files of this name.
pub(super) fn is_read(name: &str) -> bool {
    name.rfind('.').is_some_and(|dot| matches!(&name[dot..], ".conf" | ".conflist" | ".json"))
}

fn read(file: &Candidate, library: Library, around: Surroundings<'_>) -> Result<Network, Unfit> {
    match &file.text {
        // the runtime may well read it: a link that leads out of a container's mount
        Err(reason) => Err(Unfit::Unknown(format!("it cannot be read from here: {reason}"))),
        Ok(text) if file.name.ends_with(".conflist") => libcni::list(text, library, around.beside),
        Ok(text) => libcni::single(text),
    }
}

/// What `runtime`, with this version of the library, gives new pods of these files.
pub(super) fn verdict(
    files: &[Candidate],
    runtime: Runtime,
    library: Library,
    rules: &Rules,
    around: Surroundings<'_>,
) -> Verdict {
    walk(&sorted(files), runtime, library, rules, around, &mut Said::default())
}

fn walk(
    files: &[&Candidate],
    runtime: Runtime,
    library: Library,
    rules: &Rules,
    around: Surroundings<'_>,
    said: &mut Said,
) -> Verdict {
    let mut verdict = Verdict::default();
    let mut doubt = false;
    for file in files {
        let name = &file.name;
        let network = match read(file, library, around) {
            Ok(network) => network,
            Err(Unfit::Unknown(_)) => {
                verdict.files.push(name.clone());
                return Verdict { sure: true, ..verdict };
            }
            Err(Unfit::Invalid(reason)) => {
                let what = format!("{name} is no CNI configuration: {reason}");
                match runtime {
                    Runtime::Containerd => {
                        said.problems.push(format!(
                            "{what}; until it is mended or removed, containerd starts no pod"
                        ));
                        return Verdict::default();
                    }
                    Runtime::CriO => {
                        said.problems.push(format!("{what}; CRI-O goes on to the next"));
                    }
                }
                continue;
            }
        };
        match runtime {
            Runtime::Containerd => {
                verdict.files.push(name.clone());
                verdict.sure = true;
                if verdict.files.len() == rules.max_conf_num {
                    return verdict;
                }
            }
            Runtime::CriO => {
                let own = if network.name.is_empty() { name } else { &network.name };
                let is_default = rules.default_network.as_ref().is_none_or(|wanted| wanted == own);
                let pass = passed_over(&network, around);
                let may_be_taken = !matches!(pass, Some((Pass::Surely, _)));
                if is_default && may_be_taken {
                    verdict.files.push(name.clone());
                    verdict.doubtful.extend(doubt.then(|| name.clone()));
                }
                match pass {
                    None if is_default => return Verdict { sure: true, ..verdict },
                    None => {}
                    Some((Pass::Unknown, reason)) => {
                        doubt = true;
                        said.doubts
                            .push(format!("whether CRI-O takes {name} is not known: {reason}"));
                    }
                    Some((_, reason)) => {
                        said.problems.push(format!("CRI-O passes over {name}: {reason}"));
                    }
                }
            }
        }
    }
    verdict
}

/// How certain it is that CRI-O passes over a list, the most certain first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pass {
    /// It does.
    Surely,
    /// It does unless a plugin is in another directory.
    Missing,
    /// It cannot be said from here.
    Unknown,
}

/// Why CRI-O passes over a list, if it does.
fn passed_over(network: &Network, around: Surroundings<'_>) -> Option<(Pass, String)> {
    let version = if network.version.is_empty() { "0.1.0" } else { &network.version };
    let fault = |kind: &String| match (around.plugin)(kind) {
        Plugin::Speaks(versions) if versions.iter().any(|spoken| spoken == version) => None,
        Plugin::Speaks(versions) => {
            let spoken = versions.join(", ");
            Some((Pass::Surely, format!("its plugin {kind} speaks {spoken} and not {version}")))
        }
        Plugin::Silent(reason) => {
            Some((Pass::Surely, format!("its plugin {kind} gives no versions: {reason}")))
        }
        Plugin::Missing => {
            let where_else = "unless another of its plugin_dirs has it";
            Some((Pass::Missing, format!("its plugin {kind} is not there ({where_else})")))
        }
        Plugin::Unknown(reason) => {
            Some((Pass::Unknown, format!("its plugin {kind} cannot be run from here: {reason}")))
        }
    };
    network.kinds.iter().filter_map(fault).min_by_key(|(pass, _)| *pass)
}

fn sorted(files: &[Candidate]) -> Vec<&Candidate> {
    let mut files: Vec<_> = files.iter().filter(|file| is_read(&file.name)).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

/// Chooses among `files` as runtimes do.
pub(super) fn choose(files: &[Candidate], rules: &Rules, around: Surroundings<'_>) -> Choice {
    let files = sorted(files);
    let mut said = Said::default();
    let (mut used, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for runtime in [Runtime::Containerd, Runtime::CriO] {
        if rules.runtime.is_some_and(|only| only != runtime) {
            continue;
        }
        for library in Library::ALL {
            let verdict = walk(&files, runtime, library, rules, around, &mut said);
            let certain = verdict.files.iter().filter(|file| !verdict.doubtful.contains(file));
            needed.extend(certain.cloned());
            used.extend(verdict.files);
        }
    }
    let mut choice = Choice::default();
    for file in &files {
        if !used.contains(&file.name) {
            if Library::ALL.iter().any(|library| read(file, *library, around).is_ok()) {
                choice.unused.push(file.name.clone());
            }
            continue;
        }
        match active(file, &files, around) {
            Active::Refused { name, reason } if !needed.contains(&name) => {
                said.doubts
                    .push(format!("if not, CRI-O takes {name}, which has no gate: {reason}"));
            }
            network => choice.networks.push(network),
        }
    }
    // both libraries say most of it
    let once = |mut lines: Vec<String>| {
        let mut seen = BTreeSet::new();
        lines.retain(|line| seen.insert(line.clone()));
        lines
    };
    choice.problems = once(said.problems);
    choice.doubts = once(said.doubts);
    choice
}

/// What podgate can do with a file that new pods get.
fn active(file: &Candidate, files: &[&Candidate], around: Surroundings<'_>) -> Active {
    let name = file.name.clone();
    let refused = |reason: String| Active::Refused { name: name.clone(), reason };
    for library in Library::ALL {
        match read(file, library, around) {
            Err(Unfit::Unknown(reason)) => return refused(reason),
            Ok(network) if network.name.is_empty() => {
                return refused("its network has no name: write one".into());
            }
            Ok(network) if network.beside != Beside::Nothing => {
                return refused(load_refusal(&network));
            }
            _ => {}
        }
    }
    let only_loopback =
        |network: &Network| network.kinds.iter().all(|kind| kind == "loopback" || kind == PLUGIN);
    if Library::ALL.iter().all(|lib| read(file, *lib, around).is_ok_and(|n| only_loopback(&n))) {
        return Active::NoInterface { name };
    }
    let Ok(text) = &file.text else { return refused("it cannot be read from here".into()) };
    if file.name.ends_with(".conflist") {
        return match Conflist::parse(text).map(|list| list.refusal()) {
            Ok(None) => Active::List { name, text: text.clone() },
            Ok(Some(reason)) => refused(reason),
            Err(e) => refused(format!("{e} as podgate reads it, and runtimes take it: mend it")),
        };
    }
    let as_list = match from_conf(text) {
        Ok(as_list) => as_list,
        Err(e) => {
            return refused(format!("{e} as podgate reads it, and runtimes take it: mend it"));
        }
    };
    // as a list it would load what is beside it
    for library in Library::ALL {
        match libcni::list(&as_list, library, around.beside) {
            Ok(network) if network.beside != Beside::Nothing => {
                return refused(load_refusal(&network));
            }
            Ok(_) => {}
            Err(Unfit::Invalid(reason) | Unfit::Unknown(reason)) => return refused(reason),
        }
    }
    match Conflist::parse(&as_list).map(|list| list.refusal()) {
        Ok(None) => {
            let list = list_name(&file.name, files);
            Active::Single { name, list, text: as_list }
        }
        Ok(Some(reason)) => refused(reason),
        Err(e) => refused(e.to_string()),
    }
}

fn load_refusal(network: &Network) -> String {
    let name = &network.name;
    match &network.beside {
        Beside::Broken(reason) => format!(
            "libcni 1.3 looks for plugins in {name:?} beside it, in vain ({reason}): mend or remove that, or write \
             \"loadOnlyInlinedPlugins\": true into the list"
        ),
        beside => {
            let files = match beside {
                Beside::Plugins(files) => files.join(", "),
                _ => String::new(),
            };
            format!(
                "libcni 1.3 runs the plugins in the directory {name:?} beside it after those of the list ({files}), \
                 and podgate must come last: move them into the list's plugins and write \
                 \"loadOnlyInlinedPlugins\": true"
            )
        }
    }
}

/// A name for the list at the same place in the order. Of the two usual ones, that may be taken or jump over
/// another file, the second never is: nothing sorts between it and the file's own name but what begins like it.
fn list_name(single: &str, files: &[&Candidate]) -> String {
    let stem = single.rsplit_once('.').map_or(single, |(stem, _)| stem);
    let usual = format!("{stem}.conflist");
    let others = || files.iter().map(|file| file.name.as_str()).filter(|name| *name != single);
    let place = |name: &str| others().filter(|other| *other < name).count();
    // one that is there is an earlier turn's, whose single file somebody has written anew
    let taken = files.iter().any(|file| {
        file.name == usual
            && !file
                .text
                .as_deref()
                .is_ok_and(|text| Conflist::parse(text).is_ok_and(|list| list.gates()))
    });
    let earlier = others().filter(|other| *other < single && *other != usual).count();
    let moved = others().filter(|other| *other < usual.as_str() && *other != usual).count();
    if !taken && earlier == moved {
        return usual;
    }
    let beside = format!("{single}-podgate.conflist");
    debug_assert!(place(&beside) >= place(single));
    beside
}

#[cfg(test)]
mod tests;
