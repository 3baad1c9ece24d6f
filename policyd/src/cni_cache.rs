//! Reads libcni's cache, in which runtimes keep one file per attachment from its ADD to its DEL.
//!
//! Adoption takes container ids and pod names of running pods from it; these are hints, and the kernel decides what is
//! gated. Uninstalling reads which attachments' plugin lists have podgate: CRI-O and podman take the list for a pod's DEL
//! from the cache and not from the present conflist, so they need the plugin's binary as long as there is one.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use podgate_bpf::maps::PodRef;
use serde::Deserialize;

use crate::install::Conflist;

/// One attachment in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// CNI_CONTAINERID.
    pub(crate) container_id: String,
    /// CNI_IFNAME.
    pub(crate) ifname: String,
    /// Name of the network configuration.
    pub(crate) network: String,
    /// `None` for a container that is no pod.
    pub(crate) pod: Option<PodRef>,
    /// Every path by which its network namespace is named.
    pub(crate) netns: BTreeSet<PathBuf>,
    /// Names of its interfaces in that namespace.
    pub(crate) interfaces: BTreeSet<String>,
    /// All addresses in its result.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The keys of a file that adoption reads. `kind` is "cniCacheV1".
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    container_id: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    network_name: String,
    /// Written since libcni 1.2.
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: CachedResult,
}

/// A result of CNI 0.3 or later.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CachedResult {
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

/// The files of the cache; `dir` is libcni's directory (`/var/lib/cni`). Files that cannot be read are left out.
fn files(dir: &Path) -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(dir.join("results")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), fs::read(entry.path()).ok()?)))
}

/// All attachments. Files that cannot be parsed are left out.
pub(crate) fn attachments(dir: &Path) -> Vec<Attachment> {
    let attachment = |(path, text): (PathBuf, Vec<u8>)| {
        let read = parse(&text);
        if let Err(error) = &read {
            tracing::debug!(path = %path.display(), %error, "not a file of libcni's cache");
        }
        read.ok()
    };
    files(dir).filter_map(attachment).collect()
}

/// The number of attachments whose plugin list has podgate. A file that cannot be parsed counts as one without: libcni
/// ignores it too.
pub(crate) fn count_with_podgate(dir: &Path) -> usize {
    files(dir).filter(|(_, text)| has_podgate(text).unwrap_or(false)).count()
}

fn has_podgate(text: &[u8]) -> Option<bool> {
    #[derive(Deserialize)]
    struct Cached {
        /// The conflist, in base64 as Go encodes bytes.
        config: String,
    }
    let cached: Cached = serde_json::from_slice(text).ok()?;
    let list = String::from_utf8(STANDARD.decode(cached.config).ok()?).ok()?;
    Some(Conflist::parse(&list).ok()?.has_podgate())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// From containerd 1.6 (libcni 1.1), shortened.
    const CONTAINERD: &str = r#"{"kind":"cniCacheV1","containerId":"3b1c","config":"ewog","ifName":"eth0",
        "networkName":"pods","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],
        ["K8S_POD_NAME","a"],["K8S_POD_INFRA_CONTAINER_ID","3b1c"],["K8S_POD_UID","uid-of-a"]],
        "capabilityArgs":{"dns":{},"io.kubernetes.cri.pod-annotations":{}},
        "result":{"cniVersion":"1.0.0","dns":{},"interfaces":[
          {"mac":"be:87","name":"cni0"},{"mac":"5a:3e","name":"veth7d"},
          {"mac":"96:ab","name":"eth0","sandbox":"/var/run/netns/cni-1"}],
        "ips":[{"address":"10.88.0.10/16","gateway":"10.88.0.1","interface":2},
          {"address":"fd00::a/64","interface":2}],"routes":[{"dst":"0.0.0.0/0"}]}}"#;

    #[test]
    fn containerds_file_names_pod_container_and_interface() {
        let found = parse(CONTAINERD.as_bytes()).unwrap();
        let pod = PodRef { namespace: "default".into(), name: "a".into(), uid: "uid-of-a".into() };
        assert_eq!(found.pod, Some(pod));
        assert_eq!((found.container_id.as_str(), found.ifname.as_str()), ("3b1c", "eth0"));
        assert_eq!(found.network, "pods");
        assert_eq!(found.netns, BTreeSet::from(["/var/run/netns/cni-1".into()]));
        assert_eq!(found.interfaces, BTreeSet::from(["eth0".to_owned()]));
        let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.88.0.10", "fd00::a"]);
    }

    #[test]
    fn later_libcni_names_the_namespace_and_podman_no_pod() {
        let text = r#"{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"n",
            "netns":"/run/netns/x","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAME","tool"]]}"#;
        let found = parse(text.as_bytes()).unwrap();
        assert_eq!(found.pod, None);
        assert_eq!(found.netns, BTreeSet::from(["/run/netns/x".into()]));
        assert_eq!(found.interfaces, BTreeSet::from(["eth0".to_owned()]));
    }

    #[test]
    fn other_files_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(attachments(dir.path()), []);
        let results = dir.path().join("results");
        fs::create_dir(&results).unwrap();
        fs::write(results.join("half"), "{\"kind\":").unwrap();
        fs::write(results.join("pods-3b1c-eth0"), CONTAINERD).unwrap();
        fs::write(results.join("list"), "[]").unwrap();
        assert_eq!(attachments(dir.path()).len(), 1);
    }

    #[test]
    fn only_lists_with_podgate_count() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(count_with_podgate(dir.path()), 0);
        let results = dir.path().join("results");
        fs::create_dir(&results).unwrap();
        let write = |name: &str, plugins: &str| {
            let list = format!(r#"{{"name":"pods","plugins":[{plugins}]}}"#);
            let cached =
                serde_json::json!({ "kind": "cniCacheV1", "config": STANDARD.encode(list) });
            fs::write(results.join(name), cached.to_string()).unwrap();
        };
        write("pods-a-eth0", r#"{"type":"bridge"},{"type":"podgate"}"#);
        write("pods-b-eth0", r#"{"type":"bridge"}"#);
        // written by a libcni that did not cache the configuration, and not by libcni at all
        fs::write(results.join("old"), r#"{"cniVersion":"0.3.1","ips":[]}"#).unwrap();
        fs::write(results.join("junk"), "podgate").unwrap();
        assert_eq!(count_with_podgate(dir.path()), 1);
    }
}
