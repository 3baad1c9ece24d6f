//! The verbs, one per file.

mod add;
mod check;
mod del;
mod gc;
mod interfaces;
mod status;
mod version;

use tracing::{debug, error, info_span, warn};

pub use version::version;

use crate::logging;
use crate::spec::env::{Attachment, Command};
use crate::spec::keys::{Log, PluginPaths, misspelt};
use crate::spec::{CniError, NetConf, SpecVersion, args};

/// Runs a verb; its text goes to stdout.
pub fn run(command: &Command, conf: &NetConf) -> Result<String, CniError> {
    let log = match (Log::read(conf), command) {
        (Ok(log), _) => log,
        // a mistake in the log's keys must not keep a pod from being removed
        (Err(_), command) if command.only_removes() => Log::default(),
        (Err(error), _) => return Err(error),
    };
    logging::with(&log, || {
        let _span = match command {
            Command::Add(at, _) | Command::Check(at, _) | Command::Del(at) => span(command, at),
            _ => info_span!("cni", verb = command.verb(), network = %conf.name),
        }
        .entered();
        for (found, ours) in misspelt(conf) {
            warn!(
                found,
                meant = ours,
                "configuration key differs from the one meant in upper and lower case: ignored"
            );
        }
        for error in &conf.ignored {
            warn!(%error, "ignored: this verb only removes");
        }
        let result = dispatch(command, conf);
        match &result {
            Ok(_) => debug!("done"),
            Err(error) => error!(code = error.code as u32, %error, "failed"),
        }
        result
    })
}

/// The paths for a verb that only removes: the default for each that cannot be read.
fn paths(conf: &NetConf) -> PluginPaths {
    let (paths, wrong) = PluginPaths::read_leniently(conf);
    for error in wrong {
        warn!(%error, "the default is used instead: this verb only removes");
    }
    paths
}

fn span(command: &Command, attachment: &Attachment) -> tracing::Span {
    let pod = args::pod(&attachment.args).ok().flatten();
    let pod = pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
    info_span!("cni", verb = command.verb(), container = %attachment.container_id,
        ifname = %attachment.ifname, %pod)
}

fn dispatch(command: &Command, conf: &NetConf) -> Result<String, CniError> {
    let since = |version| conf.version.require(command.verb(), version);
    match command {
        Command::Add(attachment, netns) => add::add(conf, attachment, netns),
        Command::Del(attachment) => del::del(conf, attachment),
        Command::Check(attachment, netns) => {
            since(SpecVersion::V0_4_0)?;
            check::check(conf, attachment, netns)
        }
        Command::Gc => gc::gc(conf),
        Command::Status => {
            since(SpecVersion::V1_1_0)?;
            status::status(conf)
        }
        // `crate::run` answers VERSION itself, without a configuration
        Command::Version => Ok(conf.version.answer()),
    }
}
