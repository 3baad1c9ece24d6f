//! Pods that send and receive real packets.

use std::process::{Child, Command, Stdio};

use podgate_bpf::maps::Registration;
use podgate_testkit::wait::eventually;

use crate::node::ip;

/// A network namespace with the other end of an endpoint's veth, for as long as its process lives.
pub(crate) struct Sandbox {
    pub(crate) holder: Child,
}

impl Sandbox {
    pub(crate) fn of(endpoint: &Registration) -> Self {
        let holder = Command::new("unshare")
            .args(["-n", "sleep", "300"])
            .stdin(Stdio::null())
            .spawn()
            .expect("run unshare (Debian: apt-get install util-linux)");
        let sandbox = Self { holder };
        let pid = sandbox.holder.id();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        eventually("the namespace is there", || {
            let its = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
            (its != own).then_some(())
        });
        let peer = format!("{}p", endpoint.host_interface);
        ip(&format!("link set {peer} netns {pid}"));
        sandbox.run(&format!("ip addr add {}/24 dev {peer}", endpoint.addresses[0]));
        sandbox.run(&format!("ip link set {peer} up"));
        ip(&format!("link set {} up", endpoint.host_interface));
        sandbox
    }

    pub(crate) fn run(&self, command: &str) {
        let pid = self.holder.id().to_string();
        let status = Command::new("nsenter")
            .args(["-t", &pid, "-n", "bash", "-c", command])
            .status()
            .expect("run nsenter (Debian: apt-get install util-linux)");
        assert!(status.success(), "{command}");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
