//! A node that runs pods: containerd, kubelet, and kube-proxy if there is to be one.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::control::{Control, tail};
use super::{Options, Proxy, network, programs};
use crate::runtime::holder::HOME;
use crate::runtime::program::Daemon;
use crate::runtime::{Node, cgroup};

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    /// The walls, and containerd in them.
    pub node: Node,
    /// Its name as Kubernetes knows it.
    pub name: String,
    number: u8,
    kubelet: Option<Daemon>,
    proxy: Option<Daemon>,
}

impl Worker {
    /// Starts worker `number`; others have the numbers `others`. It does not wait until the node is ready.
    pub fn start(control: &Control, number: u8, others: &[u8], options: Options) -> Result<Self> {
        let mut node = Node::bare()?;
        network::script(&node, MOUNTS).context("mount what a kubelet needs")?;
        // the plugin comes with podgate's installation, not before
        fs::remove_file(node.home("bin/podgate")).context("remove the plugin")?;
        network::attach(&control.node, &node, number, others)?;
        let conflist = network::conflist(number, options.primary).to_string();
        node.write("conf/10-pods.conflist", conflist.as_bytes())?;
        cgroup::create(node.mark())?;
        node.start_with_image()?;
        let mut worker =
            Self { node, name: format!("node{number}"), number, kubelet: None, proxy: None };
        worker.write_configuration(control, options)?;
        worker.start_kubelet()?;
        if options.proxy != Proxy::Absent {
            let config = format!("--config={HOME}/proxy.json");
            let command = programs::command(&worker.node, "kube-proxy", &[&config])?;
            worker.proxy = Some(worker.node.start_daemon("kube-proxy", command)?);
        }
        Ok(worker)
    }

    /// Its addresses, one of each family.
    pub fn addresses(&self) -> [IpAddr; 2] {
        network::worker(self.number)
    }

    /// Starts the kubelet, for the first time or again.
    pub fn start_kubelet(&mut self) -> Result<()> {
        let [v4, v6] = self.addresses();
        let arguments = [
            format!("--config={HOME}/kubelet.json"),
            format!("--kubeconfig={HOME}/kubelet.kubeconfig"),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={v4},{v6}"),
            format!("--cert-dir={HOME}/kubelet"),
        ];
        let command = programs::command(&self.node, "kubelet", &arguments)?;
        self.kubelet = Some(self.node.start_daemon("kubelet", command)?);
        Ok(())
    }

    /// Ends it and looks whether anything of it is left.
    pub fn finish(self) -> Result<()> {
        drop((self.kubelet, self.proxy));
        self.node.finish()
    }

    /// Fails if one of its programs has ended, and says what it said last.
    pub fn check(&mut self) -> Result<()> {
        for daemon in [&mut self.kubelet, &mut self.proxy].into_iter().flatten() {
            if !daemon.is_running() {
                bail!("run {}: a program has ended: {}", self.name, tail(&daemon.log()));
            }
        }
        Ok(())
    }

    fn write_configuration(&self, control: &Control, options: Options) -> Result<()> {
        let authority = control.authority();
        let user = format!("system:node:{}", self.name);
        authority.kubeconfig(&self.node, "kubelet", &user, "system:nodes")?;
        authority.kubeconfig(&self.node, "proxy", "system:kube-proxy", "system:proxies")?;
        // no name is ever resolved
        self.node.write("resolv.conf", b"nameserver 127.0.0.1\n")?;
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.node.mark()),
            "containerRuntimeEndpoint": format!("unix://{HOME}/c.sock"),
            "failCgroupV1": false,
            "failSwapOn": false,
            "resolvConf": format!("{HOME}/resolv.conf"),
            "staticPodPath": format!("{HOME}/static"),
            "podLogsDir": format!("{HOME}/logs/pods"),
            "volumePluginDir": format!("{HOME}/volume-plugins"),
            // quick to notice, for a test waits for it
            "fileCheckFrequency": "1s",
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "2s",
            "serializeImagePulls": false,
            "registryPullQPS": 0,
            "kubeAPIQPS": 500,
            "kubeAPIBurst": 500,
            "eventRecordQPS": 0,
            // the machine's disk is not the test's business
            "localStorageCapacityIsolation": false,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
        });
        self.node.write("kubelet.json", kubelet.to_string().as_bytes())?;
        let mode = match options.proxy {
            Proxy::Iptables => "iptables",
            Proxy::Nftables => "nftables",
            Proxy::Absent => return Ok(()),
        };
        // what is for the whole machine is left alone; a change is seen at once
        let quick = json!({ "minSyncPeriod": "50ms", "syncPeriod": "30s" });
        let proxy = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode,
            "clientConnection": { "kubeconfig": format!("{HOME}/proxy.kubeconfig") },
            "hostnameOverride": self.name,
            "clusterCIDR": network::PODS,
            "detectLocalMode": "ClusterCIDR",
            "iptables": quick,
            "nftables": quick,
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        });
        self.node.write("proxy.json", proxy.to_string().as_bytes())
    }

    /// A log of the node's, for a message.
    pub fn log(&self, name: &str) -> String {
        let log = fs::read_to_string(self.node.home(&format!("{name}.log"))).unwrap_or_default();
        tail(&log)
    }

    /// Cuts the node off from the API server, or joins it again. Pods go on reaching other nodes.
    pub fn partition(&self, cut: bool) -> Result<()> {
        let verb = if cut { "add" } else { "del" };
        let route = format!("ip route {verb} blackhole 172.30.0.1/32");
        network::script(&self.node, &route).with_context(|| format!("{verb} the partition"))
    }

    /// Leaves the pods to come only so many addresses of each family, so that they are soon used again.
    pub fn limit_addresses(&self, count: u8) -> Result<()> {
        let file = "conf/10-pods.conflist";
        let text = fs::read(self.node.home(file)).context("read the conflist")?;
        let mut conflist: Value = serde_json::from_slice(&text).context("read the conflist")?;
        let ranges = &mut conflist["plugins"][0]["ipam"]["ranges"];
        for range in ranges.as_array_mut().into_iter().flatten() {
            let subnet = range[0]["subnet"].as_str().context("a range has a subnet")?;
            let base = subnet.split('/').next().context("a subnet has a length")?;
            // the last octet or group is 0 in both families
            let base = base.strip_suffix('0').unwrap_or(base);
            let end = if base.ends_with(':') {
                format!("{:x}", count + 1)
            } else {
                (count + 1).to_string()
            };
            range[0]["rangeEnd"] = format!("{base}{end}").into();
        }
        self.node.write(file, conflist.to_string().as_bytes())
    }

    /// The process id of this node's policyd, as the test sees it.
    pub fn policyd_pid(&self) -> Result<i32> {
        self.node.pod_process("policyd run").context("find policyd")
    }
}

/// On top of the walls: a kubelet writes below /etc, /opt and /var/log, wants mounts to propagate to its pods, and sets
/// what is the whole machine's (it finds values already set, in files that are not the kernel's).
const MOUNTS: &str = r"
    home=/run/node
    for dir in etc opt; do
        mkdir -p /$dir $home/over/$dir/upper $home/over/$dir/work
        mount -t overlay overlay -o lowerdir=/$dir,upperdir=$home/over/$dir/upper,workdir=$home/over/$dir/work /$dir
    done
    mount -t tmpfs -o mode=0755 tmpfs /var/log
    mkdir -p /etc/cni/net.d /opt/cni/bin $home/static $home/logs/pods /var/lib/cni
    mount --bind $home/conf /etc/cni/net.d
    mount --bind $home/bin /opt/cni/bin
    while read -r name value; do
        printf '%s\n' $value >$home/sysctl-$name
        mount --bind $home/sysctl-$name /proc/sys/$(echo $name | tr . /)
    done <<SYSCTLS
vm.overcommit_memory 1
vm.panic_on_oom 0
kernel.panic 10
kernel.panic_on_oops 1
kernel.keys.root_maxkeys 1000000
kernel.keys.root_maxbytes 25000000
SYSCTLS
    mount --make-rshared /
";
