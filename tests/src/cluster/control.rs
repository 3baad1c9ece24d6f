//! The control plane: etcd, API server, controllers, scheduler, on a node of their own without a runtime.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podgate_testkit::wait::until;

use super::api::Admin;
use super::certs::Authority;
use super::network::{self, CONTROL, SERVICES};
use super::programs;
use crate::runtime::Node;
use crate::runtime::holder::HOME;
use crate::runtime::program::Daemon;

/// Longest that a busy machine needs until the API server answers.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// What runs beside the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controllers {
    /// Those that make a cluster live: pods get scheduled, services get endpoints.
    Run,
    /// None: objects stay as they were written.
    Absent,
}

/// The running control plane.
#[derive(Debug)]
pub struct Control {
    /// Its node.
    pub node: Node,
    authority: Authority,
    controllers: Controllers,
    api: Option<Daemon>,
    // in the order in which they should end
    _others: Vec<Daemon>,
}

impl Control {
    /// Starts it and does not wait: see [`Self::await_api`].
    pub fn start(controllers: Controllers) -> Result<Self> {
        let node = Node::bare()?;
        network::control(&node)?;
        let authority = Authority::new()?;
        write_keys(&node, &authority)?;
        let data = format!("--data-dir={HOME}/etcd");
        let etcd = programs::command(
            &node,
            "etcd",
            &[
                &data,
                "--unsafe-no-fsync",
                "--log-level=warn",
                "--listen-peer-urls=http://127.0.0.1:2380",
            ],
        )?;
        let mut others = vec![node.start_daemon("etcd", etcd)?];
        let mut control = Self { node, authority, controllers, api: None, _others: Vec::new() };
        control.start_api()?;
        if controllers == Controllers::Run {
            others.extend(control.start_controllers()?);
        }
        control._others = others;
        Ok(control)
    }

    /// Who signs certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Starts the API server, for the first time or again, and does not wait.
    pub fn start_api(&mut self) -> Result<()> {
        let home = |name: &str| format!("{HOME}/{name}");
        let arguments = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--secure-port=6443".into(),
            "--bind-address=::".into(),
            "--advertise-address=172.30.0.1".into(),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--cert-dir={}", home("api")),
            format!("--tls-cert-file={}", home("api.crt")),
            format!("--tls-private-key-file={}", home("api.key")),
            format!("--client-ca-file={}", home("ca.crt")),
            format!("--kubelet-client-certificate={}", home("api.crt")),
            format!("--kubelet-client-key={}", home("api.key")),
            // names of nodes lead nowhere
            "--kubelet-preferred-address-types=InternalIP".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", home("accounts.pub")),
            format!("--service-account-signing-key-file={}", home("accounts.key")),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-priority-and-fairness=false".into(),
            "--allow-privileged=true".into(),
            "--profiling=false".into(),
            // a test that kills it does not wait for watches to end
            "--shutdown-delay-duration=0s".into(),
        ];
        let mut arguments = arguments.to_vec();
        if self.controllers == Controllers::Absent {
            // no controller creates the service accounts that it needs
            arguments.push("--disable-admission-plugins=ServiceAccount".into());
        }
        let command = programs::command(&self.node, "kube-apiserver", &arguments)?;
        self.api = Some(self.node.start_daemon("kube-apiserver", command)?);
        Ok(())
    }

    /// SIGKILL: connections break, watches end.
    pub fn kill_api(&mut self) -> Result<()> {
        self.api.take().context("kill the API server: it does not run")?.kill()?;
        // the kernel may still be taking its sockets down, and the next one wants the port
        let free = || self.node.inside(|| TcpListener::bind("[::]:6443").is_ok()).unwrap_or(false);
        ensure!(until(START_TIMEOUT, free), "kill the API server: its port is not free");
        Ok(())
    }

    /// The API server's process id, for a measurement.
    pub fn api_pid(&self) -> Option<i32> {
        self.api.as_ref().map(|api| api.pid().as_raw())
    }

    /// Waits until it is ready.
    pub fn await_api(&mut self) -> Result<()> {
        let mut said = String::new();
        let admin = Admin::of(&self.node);
        let ready = until(START_TIMEOUT, || match admin.raw("/readyz") {
            Ok(_) => true,
            Err(error) => {
                said = format!("{error:#}");
                thread::sleep(Duration::from_millis(90));
                !self.api.as_mut().is_some_and(Daemon::is_running)
            }
        });
        let Some(api) = &mut self.api else {
            bail!("wait for the API server: it was not started");
        };
        if !ready || !api.is_running() {
            bail!("wait for the API server: {said}\n{}", tail(&api.log()));
        }
        Ok(())
    }

    fn start_controllers(&self) -> Result<[Daemon; 2]> {
        let own = |program: &str| {
            let config = self.authority.kubeconfig(
                &self.node,
                program,
                &format!("system:{program}"),
                "system:controllers",
            )?;
            Ok::<_, anyhow::Error>(config.display().to_string())
        };
        let config = own("kube-controller-manager")?;
        let manager = programs::command(
            &self.node,
            "kube-controller-manager",
            &[
                format!("--kubeconfig={config}"),
                // their own HTTP servers do not authenticate: else they exit if the API server's roles do not exist yet
                "--authentication-skip-lookup=true".into(),
                format!("--service-account-private-key-file={HOME}/accounts.key"),
                format!("--root-ca-file={HOME}/ca.crt"),
                "--use-service-account-credentials=true".into(),
                "--leader-elect=false".into(),
                format!("--controllers={}", CONTROLLERS.join(",")),
                "--kube-api-qps=500".into(),
                "--kube-api-burst=500".into(),
                format!("--cert-dir={HOME}/manager"),
                // a node that is away for a test's minute stays a node
                "--node-monitor-grace-period=600s".into(),
            ],
        )?;
        let config = own("kube-scheduler")?;
        let scheduler = programs::command(
            &self.node,
            "kube-scheduler",
            &[
                format!("--kubeconfig={config}"),
                // their own HTTP servers do not authenticate: else they exit if the API server's roles do not exist yet
                "--authentication-skip-lookup=true".into(),
                "--leader-elect=false".into(),
                "--kube-api-qps=500".into(),
                "--kube-api-burst=500".into(),
                format!("--cert-dir={HOME}/scheduler"),
            ],
        )?;
        Ok([
            self.node.start_daemon("kube-controller-manager", manager)?,
            self.node.start_daemon("kube-scheduler", scheduler)?,
        ])
    }
}

/// What the tests' objects need, and no more: each costs watches and time to start.
const CONTROLLERS: [&str; 12] = [
    "daemonset-controller",
    "deployment-controller",
    "endpointslice-controller",
    "endpoints-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
];

fn write_keys(node: &Node, authority: &Authority) -> Result<()> {
    let addresses: Vec<_> = CONTROL.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let api = authority.identity("kube-apiserver", "system:masters", &addresses)?;
    let accounts = rcgen::KeyPair::generate().context("make the key of service accounts")?;
    node.write("ca.crt", authority.pem().as_bytes())?;
    node.write("api.crt", api.certificate.as_bytes())?;
    node.write("api.key", api.key.as_bytes())?;
    node.write("accounts.key", accounts.serialize_pem().as_bytes())?;
    node.write("accounts.pub", accounts.public_key_pem().as_bytes())?;
    authority.kubeconfig(node, "admin", "admin", "system:masters")?;
    Ok(())
}

/// The end of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
