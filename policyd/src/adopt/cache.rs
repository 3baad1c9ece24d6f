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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of containerd 1.6 (libcni 1.1), shortened where dots stand.
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
    fn containerds_note_names_pod_container_and_interface() {
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
    fn what_is_no_note_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), []);
        let results = dir.path().join("results");
        fs::create_dir(&results).unwrap();
        fs::write(results.join("half"), "{\"kind\":").unwrap();
        fs::write(results.join("pods-3b1c-eth0"), CONTAINERD).unwrap();
        fs::write(results.join("list"), "[]").unwrap();
        assert_eq!(read(dir.path()).len(), 1);
    }
}
