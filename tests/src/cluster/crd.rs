//! Definitions of kinds in a real API server: what an administrator installs, upgrades and removes while policyd runs. The
//! files of ClusterNetworkPolicy's are those of the Go module that the conformance suite comes from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use podgate_testkit::wait::until;

use super::api::Admin;
use super::{CLUSTER_TIMEOUT, kubectl, programs};
use crate::runtime::Node;

/// The name of ClusterNetworkPolicy's definition: plural and group of the kind.
pub const NAME: &str = "clusternetworkpolicies.policy.networking.k8s.io";

/// The name of PodTrafficPolicy's.
pub const OURS: &str = "podtrafficpolicies.podgate.io";

/// PodTrafficPolicy's definition.
pub const OUR_FILE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/base/crd.yaml");

/// Which of the two definitions of ClusterNetworkPolicy that a release has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Fields that stay.
    Standard,
    /// All fields: also `nodes`, `domainNames` and `destinationNamedPort`.
    Experimental,
}

impl Channel {
    fn file(self) -> &'static str {
        match self {
            Self::Standard => "clusternetworkpolicies-standard.yaml",
            Self::Experimental => "clusternetworkpolicies-experimental.yaml",
        }
    }
}

/// Installs a channel's definition, or changes the installed one to it, on the control plane's node, and waits until
/// the API server serves objects of the kind.
pub fn install(control: &Node, channel: Channel) -> Result<()> {
    install_file(control, &programs::path(channel.file())?, NAME)
}

/// The same with PodTrafficPolicy's.
pub fn install_ours(control: &Node) -> Result<()> {
    install_file(control, Path::new(OUR_FILE), OURS)
}

fn install_file(control: &Node, file: &Path, name: &str) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    // server-side: the definition is too long for the annotation that the other way writes
    let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    kubectl::stdin(control, &arguments, &text).with_context(|| format!("install {name}"))?;
    let limit = format!("--timeout={}s", CLUSTER_TIMEOUT.as_secs());
    kubectl::run(control, &["wait", "--for=condition=Established", &limit, "crd", name])?;
    // the condition comes before the handlers of some milliseconds later
    await_served(control, name, true)
}

/// Removes the definition, and with it all objects of the kind, and waits until the API server knows nothing of them.
pub fn remove(control: &Node) -> Result<()> {
    kubectl::run(control, &["delete", "crd", NAME]).context("remove ClusterNetworkPolicy")?;
    await_served(control, NAME, false)
}

fn await_served(control: &Node, name: &str, wanted: bool) -> Result<()> {
    let admin = Admin::of(control);
    let (plural, group) = name.split_once('.').context("take a definition's name apart")?;
    let seen = until(CLUSTER_TIMEOUT, || is_served(&admin, plural, group) == wanted);
    ensure!(
        seen,
        "wait for the API server: it {} {name}",
        if wanted { "does not serve" } else { "still serves" }
    );
    Ok(())
}

/// Whether the API server serves objects of the kind, in any version.
fn is_served(admin: &Admin, plural: &str, group: &str) -> bool {
    let group: Option<serde_json::Value> =
        admin.raw(&format!("/apis/{group}")).ok().and_then(|text| serde_json::from_str(&text).ok());
    let versions = group.as_ref().and_then(|group| group["versions"].as_array());
    let mut names = versions.into_iter().flatten().filter_map(|v| v["groupVersion"].as_str());
    names.any(|version| admin.raw(&format!("/apis/{version}/{plural}")).is_ok())
}
