//! The order in which one commit of the real writer writes the maps, read from the trace of their writes.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, OnceLock};
use std::thread::{self, ThreadId};

use podgate_bpf::abi::PolicyKey;
use podgate_contract::handshake::EndpointRef;
use podgate_policy::tables::Class;
use policyd::sources::Update;
use policyd::writer::Message;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use zerocopy::FromBytes;

use crate::node::{Node, on_a_node, pod};
use crate::writing::{Writing, objects};

/// One write of a map, as the trace tells it.
#[derive(Debug, Default)]
struct Write {
    map: String,
    what: String,
    key: Vec<u8>,
}

impl Visit for Write {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "map" => self.map = value.to_owned(),
            "what" => self.what = value.to_owned(),
            other => panic!("a field {other}"),
        }
    }

    fn record_bytes(&mut self, _: &Field, value: &[u8]) {
        self.key = value.to_vec();
    }

    fn record_debug(&mut self, field: &Field, _: &dyn std::fmt::Debug) {
        panic!("a field {}", field.name());
    }
}

impl Write {
    /// What it did, in words that do not depend on the numbers of classes, rules and services.
    fn words(&self) -> String {
        let Self { map, what, key } = self;
        let address = || Ipv4Addr::from(<[u8; 4]>::read_from_prefix(key).unwrap().0);
        match map.as_str() {
            "control" => what.clone(),
            "policy map" => {
                let key = PolicyKey::read_from_bytes(key).unwrap();
                let of = if Class(key.class).is_vip() { "a service address" } else { "a policy" };
                format!("{what} an entry of {of}")
            }
            "peers4" if address().octets()[1] == 96 => format!("{what} class of {}", address()),
            "peers4" | "nets4" => format!("{what} a peer's class"),
            "policies" => format!("{what} tables"),
            "services4" => format!("{what} service {}", address()),
            other => format!("{what} {other}"),
        }
    }
}

/// Keeps the writes of every thread: those of a test are found by its writer's thread.
struct Recorder;

static WRITES: Mutex<Option<HashMap<ThreadId, Vec<Write>>>> = Mutex::new(None);

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut write = Write::default();
        event.record(&mut write);
        let mut writes = WRITES.lock().unwrap();
        if let Some(of) = writes.as_mut().and_then(|all| all.get_mut(&thread::current().id())) {
            of.push(write);
        }
    }
}

const EPOCH: &str = "bump the epoch";

/// What the writer writes during `work`; of adjacent writes of one kind, but for the epoch's, one.
fn written(writing: &Writing, work: impl FnOnce()) -> Vec<String> {
    static RECORDING: OnceLock<()> = OnceLock::new();
    RECORDING.get_or_init(|| {
        let only = Targets::new().with_target("podgate_bpf::writes", tracing::Level::TRACE);
        let recorder = tracing_subscriber::registry().with(Recorder.with_filter(only));
        tracing::subscriber::set_global_default(recorder).unwrap();
    });
    let writer = writing.thread();
    WRITES.lock().unwrap().get_or_insert_default().insert(writer, Vec::new());
    work();
    let writes = WRITES.lock().unwrap().as_mut().unwrap().remove(&writer).unwrap();
    let mut words: Vec<String> = writes.iter().map(Write::words).collect();
    words.dedup_by(|next, last| next == last && next != EPOCH);
    words
}

/// A service at 10.96.0.`number`:80, whose endpoints are 10.1.0.x.
fn service(number: u8, endpoints: &[u8], labels: &str) -> String {
    let endpoint = |of: &u8| format!("{{addresses: [10.1.0.{of}]}}, ");
    let endpoints: String = endpoints.iter().map(endpoint).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: s{number}, labels: {{{labels}}}}}\n\
         spec: {{clusterIP: 10.96.0.{number}, ports: [{{port: 80, targetPort: 8080}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{namespace: shop, name: s{number}, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
         ports: [{{port: 8080}}]\nendpoints: [{endpoints}]\n---\n"
    )
}

/// Left alone by the gate.
const OTHERS: &str = "service.kubernetes.io/service-proxy-name: other";

/// `web` and `db` may reach these addresses alone.
fn egress(to: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: egress}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {to}}}}}]}}]}}\n---\n"
    )
}

fn pods() -> String {
    pod("shop/web", "app: web", "10.0.0.1") + &pod("shop/db", "app: db", "10.0.0.2")
}

fn before() -> String {
    let services =
        [service(1, &[1, 2], ""), service(2, &[1], ""), service(3, &[1], OTHERS)].concat();
    pods() + &egress("10.1.0.0/16") + &services
}

/// A node whose writer has committed [`before`], with what that wrote.
fn begun(node: &Node) -> (Writing, Vec<String>) {
    node.endpoint("shop/web", "10.0.0.1");
    let writing = Writing::on(node);
    let first = written(&writing, || writing.replace(objects(&before())));
    (writing, first)
}

#[test]
fn the_first_commit_of_a_node_writes_its_services_before_its_policies() {
    on_a_node(|node| {
        let (_writing, first) = begun(node);
        let order = [
            // the services
            "set backends",
            "set slots",
            "set service 10.96.0.1",
            "set backends",
            "set slots",
            "set service 10.96.0.2",
            // the addresses that are left alone, as no table is in force
            "set class of 10.96.0.3",
            // the policies
            "set a peer's class",
            "set an entry of a policy",
            "set an entry of a service address",
            "set tables",
            EPOCH,
            // of this process
            EPOCH,
        ];
        assert_eq!(first, order);
    });
}

/// In one commit a pod comes, what a policy allows is another prefix, an endpoint leaves a service and another enters it, a
/// service comes, one is not translated any more and one is from now on.
#[test]
fn one_commit_writes_policies_services_and_service_addresses_in_their_order() {
    on_a_node(|node| {
        let (writing, _) = begun(node);
        let services = [
            service(1, &[2, 3], ""),
            service(2, &[1], OTHERS),
            service(3, &[1], ""),
            service(4, &[3], ""),
        ];
        let set = objects(&[egress("10.1.0.2/31"), services.concat()].concat());
        let db = node.endpoint("shop/db", "10.0.0.2");
        let order = written(&writing, || {
            let held_up = writing.hold_up();
            let (reply, _added) = tokio::sync::oneshot::channel();
            let endpoints = vec![EndpointRef { ifindex: db.ifindex, owner: db.owner }];
            writing.writer.handle().send(Message::Added { endpoints, reply }).unwrap();
            writing.send(Update::Change { set, gone: Vec::new() });
            drop(held_up);
            writing.settle();
        });
        assert_eq!(writing.shared.snapshot().problems(), Vec::<String>::new());
        let expected = [
            // endpoints leave services
            "set slots",
            "set service 10.96.0.1",
            "remove backends",
            // policies: entries, classes, new tables, entries that no longer hold
            "set an entry of a policy",
            "set a peer's class",
            "remove a peer's class",
            "set an entry of a policy",
            "set an entry of a service address",
            "set tables",
            "remove an entry of a policy",
            EPOCH,
            // an address is left alone from now on, then it is not translated any more
            "set an entry of a service address",
            "set class of 10.96.0.2",
            "remove service 10.96.0.2",
            // endpoints and services enter
            "set backends",
            "set slots",
            "set service 10.96.0.1",
            "set backends",
            "set slots",
            "set service 10.96.0.3",
            "set backends",
            "set slots",
            "set service 10.96.0.4",
            // an address is translated from now on, then it is not left alone any more
            "remove class of 10.96.0.3",
            "remove an entry of a service address",
            EPOCH,
        ];
        assert_eq!(order, expected);
    });
}
