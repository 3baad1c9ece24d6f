//! Pods that run, with what a test needs to know of them.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cri::ContainerState;
use super::world::World;
use super::{Cri, Pod};

/// A running pod that the world knows with its address.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The pod's configuration in the CRI request.
    pub pod: Pod,
    /// The sandbox.
    pub id: String,
    /// Its address.
    pub address: IpAddr,
    /// Path of its network namespace, in the node.
    pub netns: String,
}

impl Peer {
    /// Runs a pod with the label `app`, as a kubelet does: the world knows the pod first, and its address
    /// afterwards.
    pub fn run(world: &World, cri: &mut Cri, name: &str, app: &str) -> Result<Self> {
        Self::run_pod(world, cri, Pod::new(name), app)
    }

    /// [`Self::run`] for a given pod.
    pub fn run_pod(world: &World, cri: &mut Cri, pod: Pod, app: &str) -> Result<Self> {
        world.pod(&pod, app, None)?;
        let id = cri.run(&pod).with_context(|| format!("run pod {}", pod.name))?;
        let peer = Self::of(cri, pod, id)?;
        world.pod(&peer.pod, app, Some(peer.address))?;
        Ok(peer)
    }

    /// A pod that has been run.
    pub fn of(cri: &mut Cri, pod: Pod, id: String) -> Result<Self> {
        let address = cri.address(&id)?;
        let (_, netns) = cri.pause(&id)?;
        Ok(Self { pod, id, address, netns })
    }

    /// Stops and removes it; the world forgets it.
    pub fn delete(self, world: &World, cri: &mut Cri) -> Result<()> {
        cri.delete(&self.id)?;
        world.remove_pod(&self.pod)
    }
}

/// Waits for a container's end and returns its exit code.
pub fn exit_code(cri: &mut Cri, container: &str) -> Result<i32> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if let ContainerState::Exited(code) = cri.container(container)? {
            return Ok(code);
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("wait for container {container}: it still runs")
}
