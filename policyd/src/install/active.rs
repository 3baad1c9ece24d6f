//! Which of a directory's files new pods get.
//!
//! containerd and CRI-O read `.conf`, `.conflist` and `.json`, sorted by name, hidden ones too. containerd takes as many
//! as `max_conf_num` says (one; 0 is all), each an interface of every pod, and none at all if one that it reads is
//! invalid: pods then wait until it is corrected. CRI-O skips an invalid file, and one with a plugin whose binary is
//! missing or does not support the list's version; it takes the first of the rest, or the one whose network
//! `cni_default_network` names.
//!
//! Which runtime and which version of its library reads the directory is not known unless an option says so. So podgate
//! is added to every file that any of them gives new pods. If one of these cannot have it, no file after it is edited and
//! new pods count as not gated. `tests/tests/runtime_install_rules.rs` compares with the runtimes' own code.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use podgate_contract::plugin_conf::PLUGIN;

use super::conflist::{Conflist, from_conf};
use super::libcni::{self, Library, Network, PluginDir, Unfit};
use super::plugins::Plugin;

/// A file of the configuration directory that a runtime would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its content, or why it cannot be read.
    pub text: Result<String, String>,
}

/// A container runtime, with its own rule for choosing files.
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
pub(super) struct Environment<'a> {
    /// The content of the directory with a network's name.
    pub(super) plugin_dir: &'a dyn Fn(&str) -> PluginDir,
    /// The versions that a plugin supports, by its type.
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
    /// It creates no interface that could have a gate.
    NoInterface {
        /// The file's name.
        name: String,
    },
    /// podgate cannot be added to it.
    Refused {
        /// The file's name.
        name: String,
        /// The cause, and what to do.
        reason: String,
    },
}

/// The files that new pods get, and messages about the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The files that any of the possible runtimes gives new pods, in their order.
    pub networks: Vec<Active>,
    /// Invalid files, and files that a runtime skips.
    pub problems: Vec<String>,
    /// What cannot be determined by this program.
    pub doubts: Vec<String>,
    /// Valid files that new pods do not get.
    pub unused: Vec<String>,
}

/// What one runtime gives new pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Names of files. The last one is what it gives; those before it are what it gives instead if a plugin that is missing
    /// here is in another directory.
    pub files: Vec<String>,
    /// Whether it certainly gives the last of them. If not, it may give none.
    pub sure: bool,
    /// Those of the files that it gives only if a plugin that cannot be run by this program cannot be run by the runtime
    /// either.
    pub doubtful: Vec<String>,
}

/// Messages about the files.
#[derive(Default)]
struct Messages {
    problems: Vec<String>,
    doubts: Vec<String>,
}

/// Suffix of a single plugin's file once a list has replaced it: runtimes do not read such names.
pub(super) const BACKUP_SUFFIX: &str = ".before-podgate";

/// Whether a runtime reads files of this name.
pub(super) fn is_read(name: &str) -> bool {
    name.rfind('.').is_some_and(|dot| matches!(&name[dot..], ".conf" | ".conflist" | ".json"))
}

fn read(
    file: &Candidate,
    library: Library,
    environment: Environment<'_>,
) -> Result<Network, Unfit> {
    match &file.text {
        // the runtime may be able to read it, e.g. a link that leads out of this container's mount
        Err(reason) => Err(Unfit::Unknown(format!("this program cannot read it: {reason}"))),
        Ok(text) if file.name.ends_with(".conflist") => {
            libcni::list(text, library, environment.plugin_dir)
        }
        Ok(text) => libcni::single(text),
    }
}

/// What `runtime`, with this version of the library, gives new pods of these files.
pub(super) fn verdict(
    files: &[Candidate],
    runtime: Runtime,
    library: Library,
    rules: &Rules,
    environment: Environment<'_>,
) -> Verdict {
    walk(&sorted(files), runtime, library, rules, environment, &mut Messages::default())
}

fn walk(
    files: &[&Candidate],
    runtime: Runtime,
    library: Library,
    rules: &Rules,
    environment: Environment<'_>,
    messages: &mut Messages,
) -> Verdict {
    let mut verdict = Verdict::default();
    let mut doubt = false;
    for file in files {
        let name = &file.name;
        let network = match read(file, library, environment) {
            Ok(network) => network,
            Err(Unfit::Unknown(_)) => {
                verdict.files.push(name.clone());
                return Verdict { sure: true, ..verdict };
            }
            Err(Unfit::Invalid(reason)) => {
                let what = format!("{name} is no CNI configuration: {reason}");
                match runtime {
                    Runtime::Containerd => {
                        messages.problems.push(format!(
                            "{what}; until it is corrected or removed, containerd starts no pod"
                        ));
                        return Verdict::default();
                    }
                    Runtime::CriO => {
                        messages.problems.push(format!("{what}; CRI-O skips it"));
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
                let skip = skipped(&network, environment);
                let may_be_taken = !matches!(skip, Some((Skip::Certain, _)));
                if is_default && may_be_taken {
                    verdict.files.push(name.clone());
                    verdict.doubtful.extend(doubt.then(|| name.clone()));
                }
                match skip {
                    None if is_default => return Verdict { sure: true, ..verdict },
                    None => {}
                    Some((Skip::Unknown, reason)) => {
                        doubt = true;
                        messages
                            .doubts
                            .push(format!("whether CRI-O takes {name} is not known: {reason}"));
                    }
                    Some((_, reason)) => {
                        messages.problems.push(format!("CRI-O skips {name}: {reason}"));
                    }
                }
            }
        }
    }
    verdict
}

/// How certain it is that CRI-O skips a list, the most certain first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Skip {
    /// It is certain.
    Certain,
    /// It does unless a plugin is in another of its directories.
    Missing,
    /// This program cannot tell.
    Unknown,
}

/// Why CRI-O skips a list, if it does.
fn skipped(network: &Network, environment: Environment<'_>) -> Option<(Skip, String)> {
    let version = if network.version.is_empty() { "0.1.0" } else { &network.version };
    let fault = |kind: &String| match (environment.plugin)(kind) {
        Plugin::Supports(versions) if versions.iter().any(|spoken| spoken == version) => None,
        Plugin::Supports(versions) => {
            let spoken = versions.join(", ");
            Some((Skip::Certain, format!("its plugin {kind} supports {spoken} and not {version}")))
        }
        Plugin::NoAnswer(reason) => {
            Some((Skip::Certain, format!("its plugin {kind} gives no versions: {reason}")))
        }
        Plugin::Missing => {
            let where_else = "unless another of its plugin_dirs has it";
            Some((Skip::Missing, format!("its plugin {kind} is not there ({where_else})")))
        }
        Plugin::Unknown(reason) => Some((
            Skip::Unknown,
            format!("its plugin {kind} cannot be run by this program: {reason}"),
        )),
    };
    network.kinds.iter().filter_map(fault).min_by_key(|(skip, _)| *skip)
}

fn sorted(files: &[Candidate]) -> Vec<&Candidate> {
    let mut files: Vec<_> = files.iter().filter(|file| is_read(&file.name)).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

/// Chooses among `files` as runtimes do.
pub(super) fn choose(files: &[Candidate], rules: &Rules, environment: Environment<'_>) -> Choice {
    let files = sorted(files);
    let mut messages = Messages::default();
    let (mut used, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for runtime in [Runtime::Containerd, Runtime::CriO] {
        if rules.runtime.is_some_and(|only| only != runtime) {
            continue;
        }
        for library in Library::ALL {
            let verdict = walk(&files, runtime, library, rules, environment, &mut messages);
            let certain = verdict.files.iter().filter(|file| !verdict.doubtful.contains(file));
            needed.extend(certain.cloned());
            used.extend(verdict.files);
        }
    }
    let mut choice = Choice::default();
    for file in &files {
        if !used.contains(&file.name) {
            if Library::ALL.iter().any(|library| read(file, *library, environment).is_ok()) {
                choice.unused.push(file.name.clone());
            }
            continue;
        }
        match active(file, &files, environment) {
            Active::Refused { name, reason } if !needed.contains(&name) => {
                messages
                    .doubts
                    .push(format!("if not, CRI-O takes {name}, which has no gate: {reason}"));
            }
            network => choice.networks.push(network),
        }
    }
    // most messages are the same for both libraries
    let once = |mut lines: Vec<String>| {
        let mut seen = BTreeSet::new();
        lines.retain(|line| seen.insert(line.clone()));
        lines
    };
    choice.problems = once(messages.problems);
    choice.doubts = once(messages.doubts);
    choice
}

/// Whether and how podgate can be added to a file that new pods get.
fn active(file: &Candidate, files: &[&Candidate], environment: Environment<'_>) -> Active {
    let name = file.name.clone();
    let refused = |reason: String| Active::Refused { name: name.clone(), reason };
    for library in Library::ALL {
        match read(file, library, environment) {
            Err(Unfit::Unknown(reason)) => return refused(reason),
            Ok(network) if network.name.is_empty() => {
                return refused("its network has no name: write one".into());
            }
            Ok(network) if network.plugin_dir != PluginDir::Nothing => {
                return refused(load_refusal(&network));
            }
            _ => {}
        }
    }
    let only_loopback =
        |network: &Network| network.kinds.iter().all(|kind| kind == "loopback" || kind == PLUGIN);
    if Library::ALL.iter().all(|lib| read(file, *lib, environment).is_ok_and(|n| only_loopback(&n)))
    {
        return Active::NoInterface { name };
    }
    let Ok(text) = &file.text else { return refused("this program cannot read it".into()) };
    if file.name.ends_with(".conflist") {
        return match Conflist::parse(text).map(|list| list.refusal()) {
            Ok(None) => Active::List { name, text: text.clone() },
            Ok(Some(reason)) => refused(reason),
            Err(e) => refused(format!("{e} as podgate reads it, and runtimes take it: correct it")),
        };
    }
    let as_list = match from_conf(text) {
        Ok(as_list) => as_list,
        Err(e) => {
            return refused(format!("{e} as podgate reads it, and runtimes take it: correct it"));
        }
    };
    // as a list it would also load the plugins in the directory with the network's name
    for library in Library::ALL {
        match libcni::list(&as_list, library, environment.plugin_dir) {
            Ok(network) if network.plugin_dir != PluginDir::Nothing => {
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
    match &network.plugin_dir {
        PluginDir::Broken(reason) => format!(
            "libcni 1.3 cannot load plugins from the directory {name:?} beside it ({reason}): correct or remove that, or write \
             \"loadOnlyInlinedPlugins\": true into the list"
        ),
        plugin_dir => {
            let files = match plugin_dir {
                PluginDir::Plugins(files) => files.join(", "),
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

/// A name for the list that sorts where the single file did. The usual name may be taken, or sort after another file. The
/// other one never does: only names that begin with the file's own sort between the two.
fn list_name(single: &str, files: &[&Candidate]) -> String {
    let stem = single.rsplit_once('.').map_or(single, |(stem, _)| stem);
    let usual = format!("{stem}.conflist");
    let others = || files.iter().map(|file| file.name.as_str()).filter(|name| *name != single);
    let place = |name: &str| others().filter(|other| *other < name).count();
    // a list with podgate is from an earlier conversion, whose single file was written again
    let taken = files.iter().any(|file| {
        file.name == usual
            && !file
                .text
                .as_deref()
                .is_ok_and(|text| Conflist::parse(text).is_ok_and(|list| list.has_podgate()))
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
