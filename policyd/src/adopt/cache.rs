//! libcni's own notes of what it attached: container ids and pod names of the running pods.
//!
//! Runtimes write one file per attachment after its ADD and remove it at its DEL. They are hints: what is acted on
//! is what the kernel has (see [`super::find`]).

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use podgate_bpf::maps::PodRef;
use serde::Deserialize;

/// What libcni noted of one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    /// CNI_CONTAINERID.
    pub(super) container_id: String,
    /// CNI_IFNAME.
    pub(super) ifname: String,
    /// Name of the network configuration.
    pub(super) network: String,
    /// `None` for a container that is no pod.
    pub(super) pod: Option<PodRef>,
    /// Every spelling of its network namespace.
    pub(super) netns: BTreeSet<PathBuf>,
    /// Its interfaces in there.
    pub(super) interfaces: BTreeSet<String>,
    /// All addresses of the result.
    pub(super) addresses: Vec<IpAddr>,
}

/// A file of the cache, as far as it is of interest. `kind` is "cniCacheV1".
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    network_name: String,
    /// Since libcni 1.2.
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: Outcome,
}

/// Its result, of spec 0.3 or later.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outcome {
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Interface {
    name: String,
    sandbox: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ip {
    address: String,
}

/// Reads the cache; `dir` is libcni's (`/var/lib/cni`). What cannot be read is left out.
pub(super) fn read(dir: &Path) -> Vec<Attachment> {
    let Ok(files) = fs::read_dir(dir.join("results")) else { return Vec::new() };
    let attachment = |path: PathBuf| {
        let text = fs::read(&path).ok()?;
        let read = parse(&text);
        if let Err(error) = &read {
            tracing::debug!(path = %path.display(), %error, "not one of libcni's notes");
        }
        read.ok()
    };
    files.flatten().filter_map(|file| attachment(file.path())).collect()
}

fn parse(text: &[u8]) -> serde_json::Result<Attachment> {
    let file: File = serde_json::from_slice(text)?;
    let inside = || file.result.interfaces.iter().filter(|each| !each.sandbox.is_empty());
    let mut netns: BTreeSet<PathBuf> = inside().map(|each| each.sandbox.clone().into()).collect();
    netns.extend((!file.netns.is_empty()).then(|| file.netns.clone().into()));
    let mut interfaces: BTreeSet<String> = inside().map(|each| each.name.clone()).collect();
    if interfaces.is_empty() {
        interfaces.insert(file.if_name.clone());
    }
    let address = |ip: &Ip| ip.address.parse::<IpNet>().ok().map(|net| net.addr().to_canonical());
    let addresses = file.result.ips.iter().filter_map(address).collect();
    let arg = |wanted: &str| {
        let found = file.cni_args.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    let pod = match (arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => {
            Some(PodRef { namespace, name, uid: arg("K8S_POD_UID").unwrap_or_default() })
        }
        _ => None,
    };
    Ok(Attachment {
        container_id: file.container_id,
        ifname: file.if_name,
        network: file.network_name,
        pod,
        netns,
        interfaces,
        addresses,
    })
}
