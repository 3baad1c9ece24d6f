//! The source `kubernetes` against a real API server: what it follows, what outages cost, and what it reports.
//!
//! No kubelet: pods are objects that a test writes, and interfaces that the real plugin gates.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use k8s_openapi::api::events::v1::Event;
use podgate_testkit::wait::until;
use podgate_tests::cluster::api::Admin;
use podgate_tests::cluster::control::{Control, Controllers};
use podgate_tests::cluster::kubectl;
use podgate_tests::runtime::cnitool::Cnitool;
use podgate_tests::runtime::{Conflist, Node, Pod, Policyd};
use serde_json::{Value, json};

const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(90);

/// A control plane whose node is also the one that enforces.
struct Site {
    control: Control,
    admin: Admin,
    source: String,
}

impl Site {
    fn start() -> Result<Self> {
        let mut control = Control::start(Controllers::Absent)?;
        let node = &control.node;
        let conflist = Conflist::default().with("policydTimeoutMs", 3000);
        node.write("conf/10-pods.conflist", conflist.json().to_string().as_bytes())?;
        let kubeconfig = control.authority().kubeconfig(node, "podgate", "policyd", "podgate")?;
        let source = format!("kubernetes:{}", kubeconfig.display());
        control.await_api()?;
        let admin = Admin::of(&control.node);
        let site = Self { control, admin, source };
        grant(site.node())?;
        site.apply(&[
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "shop"}}),
        ])?;
        Ok(site)
    }

    fn node(&self) -> &Node {
        &self.control.node
    }

    fn apply(&self, objects: &[Value]) -> Result<()> {
        kubectl::apply(self.node(), objects).map(drop)
    }

    fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let arguments = ["-n", "shop", "delete", kind, name, "--grace-period=0", "--force"];
        kubectl::run(self.node(), &arguments).map(drop)
    }

    /// Makes a pod's object; returns what the runtime would call it.
    fn pod(&self, name: &str) -> Result<Pod> {
        self.apply(&[json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
            "spec": {
                "nodeName": "node", "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "i"}],
            },
        })])?;
        let pods = self.admin.list::<PodObject>("shop")?;
        let pod = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
        let uid = pod.and_then(|pod| pod.metadata.uid.clone()).context("find the pod's uid")?;
        Ok(Pod { namespace: "shop".into(), uid, ..Pod::new(name) })
    }

    /// A policy that lets nobody in.
    fn deny(&self, name: &str, app: &str) -> Result<()> {
        self.apply(&[json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]},
        })])
    }

    /// Gates an interface for the pod, as its ADD does; the plugin says whether it waited in vain.
    fn add(&self, pod: &Pod) -> Result<()> {
        let attachment = Cnitool::new(self.node(), &pod.name, Conflist::NETWORK)?;
        attachment.for_pod(pod).call("add").map(drop)
    }

    /// Events of this reason on objects of this name.
    fn events(&self, namespace: &str, name: &str, reason: &str) -> Result<Vec<Event>> {
        let mut events = self.admin.list::<Event>(namespace)?;
        events.retain(|event| {
            let regarding = event.regarding.as_ref().and_then(|object| object.name.as_deref());
            regarding == Some(name) && event.reason.as_deref() == Some(reason)
        });
        Ok(events)
    }

    fn await_event(&self, namespace: &str, name: &str, reason: &str) -> Result<Event> {
        let mut found = Vec::new();
        let there = until(IN_FORCE_TIMEOUT, || {
            thread::sleep(Duration::from_millis(200));
            found = self.events(namespace, name, reason).unwrap_or_default();
            !found.is_empty()
        });
        ensure!(
            there,
            "no event {reason} on {namespace}/{name}: {:#?}",
            self.admin.list::<Event>(namespace)?
        );
        Ok(found.remove(0))
    }
}

/// What policyd may do, and no more: the role that users install, for the group of our certificate.
fn grant(node: &Node) -> Result<()> {
    const RBAC: &str = include_str!("../../deploy/kustomize/base/rbac.yaml");
    let role = RBAC.split("\n---\n").find(|document| document.contains("kind: ClusterRole\n"));
    let role = role.context("find the ClusterRole in deploy/kustomize/base/rbac.yaml")?;
    kubectl::stdin(node, &["apply", "-f", "-"], role)?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "test"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "podgate"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "podgate"}],
    });
    kubectl::apply(node, &[binding]).map(drop)
}

fn launch(site: &Site) -> Result<Policyd> {
    Policyd::launch_with(site.node(), &site.source)?.when_ready()
}

/// Waits until the pod stands so: its state and the policies that isolate it for ingress.
fn await_standing(policyd: &Policyd, pod: &str, state: &str, policies: &[&str]) -> Result<()> {
    let mut seen = Value::Null;
    let there = until(IN_FORCE_TIMEOUT, || {
        seen = policyd.get("/v1/endpoints").unwrap_or_default();
        let mut all = seen.as_array().into_iter().flatten();
        all.any(|endpoint| {
            endpoint["name"] == pod
                && endpoint["state"] == state
                && endpoint["ingress"]["policies"] == json!(policies)
        })
    });
    ensure!(
        there,
        "pod {pod} is not {state} with {policies:?}: {seen:#}\n{}",
        policyd.daemon.log()
    );
    Ok(())
}

/// Waits until every watch is connected, or none is.
fn await_link(policyd: &Policyd, connected: bool) -> Result<()> {
    let mut status = Value::Null;
    let there = until(IN_FORCE_TIMEOUT, || {
        status = policyd.get("/v1/status").unwrap_or_default();
        let watches = status["sources"][0]["watches"].as_array().cloned().unwrap_or_default();
        // a kind that this server does not have is asked for now and then
        let watches = watches.iter().filter(|watch| watch["absent"] != true).collect::<Vec<_>>();
        !watches.is_empty() && watches.iter().all(|watch| watch["connected"] == connected)
    });
    ensure!(
        there,
        "watches are not all connected = {connected}: {status:#}\n{}",
        policyd.daemon.log()
    );
    Ok(())
}

#[test]
fn objects_are_followed_and_their_pods_say_what_is_in_force() -> Result<()> {
    let site = Site::start()?;
    let web = site.pod("web")?;
    let policyd = launch(&site)?;
    site.add(&web)?;
    await_standing(&policyd, "web", "enforced", &[])?;
    site.deny("closed", "web")?;
    await_standing(&policyd, "web", "enforced", &["shop/closed"])?;

    let event = site.await_event("shop", "web", "PolicyInForce")?;
    let regarding = event.regarding.clone().context("an event on no object")?;
    ensure!(regarding.uid.as_deref() == Some(&*web.uid), "{event:#?}");
    let note = event.note.clone().unwrap_or_default();
    ensure!(note.contains("ingress is isolated by closed"), "{event:#?}");
    let described = kubectl::run(site.node(), &["-n", "shop", "describe", "pod", "web"])?;
    ensure!(described.contains("ingress is isolated by closed"), "not shown: {described}");
    site.await_event("default", "node", "PolicyInForce")?;

    // labels decide, of pods and of namespaces
    kubectl::run(site.node(), &["-n", "shop", "label", "pod", "web", "app=other", "--overwrite"])?;
    await_standing(&policyd, "web", "enforced", &[])?;
    site.await_event("shop", "web", "PolicyLifted")?;
    site.deny("others", "other")?;
    await_standing(&policyd, "web", "enforced", &["shop/others"])?;
    site.delete("networkpolicy", "others")?;
    await_standing(&policyd, "web", "enforced", &[])?;

    // the API server gave no right that was missing, and policyd asked for none
    let status = policyd.get("/v1/status")?;
    ensure!(status["problems"] == json!([]), "{status:#}");
    drop(policyd);
    let Site { control, .. } = site;
    control.node.finish()
}

#[test]
fn an_outage_costs_nothing_that_is_known_and_hides_nothing_afterwards() -> Result<()> {
    let mut site = Site::start()?;
    let (web, client) = (site.pod("web")?, site.pod("client")?);
    site.deny("closed", "web")?;
    site.deny("clients", "client")?;
    site.apply(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "vault"}}),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "all", "namespace": "vault"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        }),
    ])?;
    let policyd = launch(&site)?;
    site.add(&web)?;
    await_standing(&policyd, "web", "enforced", &["shop/closed"])?;
    await_link(&policyd, true)?;

    site.control.kill_api()?;
    await_link(&policyd, false)?;
    ensure!(policyd.is_ready(), "what was read stays in force, so it is ready");
    await_standing(&policyd, "web", "enforced", &["shop/closed"])?;
    // a pod that the API server told of before starts with its policies
    site.add(&client)?;
    await_standing(&policyd, "client", "enforced", &["shop/clients"])?;
    // one that it did not is held, and says why
    let stranger = Pod { namespace: "shop".into(), uid: "nobody".into(), ..Pod::new("stranger") };
    site.add(&stranger)?;
    await_standing(&policyd, "stranger", "pending", &[])?;
    // unless its labels do not matter: the policies of its namespace select every pod
    let kept = Pod { namespace: "vault".into(), uid: "mirrored".into(), ..Pod::new("kept") };
    site.add(&kept)?;
    await_standing(&policyd, "kept", "enforced", &["vault/all"])?;

    // policyd neither sees the server come back nor what is deleted then
    policyd.daemon.freeze()?;
    site.control.start_api()?;
    site.control.await_api()?;
    site.delete("networkpolicy", "closed")?;
    site.deny("later", "web")?;
    policyd.daemon.thaw()?;
    await_standing(&policyd, "web", "enforced", &["shop/later"])?;
    await_link(&policyd, true)?;

    // a restart while the server is away: what an earlier policyd put in force stays, and no more is claimed
    site.control.kill_api()?;
    policyd.daemon.kill()?;
    let policyd = Policyd::launch_with(site.node(), &site.source)?;
    await_link(&policyd, false)?;
    ensure!(!policyd.is_ready(), "it cannot know what should be in force");
    let datapath = site.node().datapath()?;
    let web_at = site.node().registration(&web)?.ifindex;
    let entries = datapath.maps.policy_map(web_at)?.context("the policy map is gone")?.entries()?;
    ensure!(!entries.is_empty(), "nothing is in force");
    site.control.start_api()?;
    site.control.await_api()?;
    await_standing(&policyd, "web", "enforced", &["shop/later"])?;
    ensure!(policyd.is_ready());
    drop(policyd);
    let Site { control, .. } = site;
    control.node.finish()
}
