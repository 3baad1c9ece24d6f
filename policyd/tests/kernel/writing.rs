//! The real writer in the test's own process, which gets its messages from the test.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::ThreadId;

use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, PinRoot};
use podgate_manifests::manifest;
use podgate_policy::object::Object;
use podgate_policy::tables::EndpointId;
use policyd::snapshot::{EndpointState, NodeState};
use policyd::sources::{Rank, Update};
use policyd::sync::services::ServiceMode;
use policyd::writer::{Message, QueryContext, Writer};

use crate::node::Node;

/// The writer of a node, with one source.
pub(crate) struct Writing {
    pub(crate) shared: Arc<NodeState>,
    pub(crate) writer: Writer,
    pub(crate) root: PinRoot,
    runtime: tokio::runtime::Runtime,
}

impl Writing {
    pub(crate) fn on(node: &Node) -> Self {
        Self::with(node, ServiceMode::default())
    }

    pub(crate) fn with(node: &Node, services: ServiceMode) -> Self {
        let root = node.root.clone();
        let datapath = Arc::new(Datapath::open(&root).unwrap());
        let shared = Arc::new(NodeState::new(
            datapath,
            "n1".into(),
            services,
            "/nowhere/install.json".into(),
        ));
        let writer = Writer::start(shared.clone(), ["test".to_owned()], |_| {}).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { shared, writer, root, runtime }
    }

    pub(crate) fn send(&self, update: Update) {
        self.writer.handle().send(Message::Source(Rank(0), update)).unwrap();
    }

    /// Waits until what was sent is in force, as far as it can be.
    pub(crate) fn settle(&self) {
        self.runtime.block_on(self.writer.handle().settled()).unwrap();
    }

    /// The writer's thread.
    pub(crate) fn thread(&self) -> ThreadId {
        let asked = self.writer.handle();
        self.runtime.block_on(asked.query(|_| std::thread::current().id())).unwrap()
    }

    /// These are all objects there are; waits until that is in force.
    pub(crate) fn replace(&self, objects: Vec<Object>) {
        self.send(Update::Replace(objects));
        self.settle();
        assert_eq!(self.shared.snapshot().problems(), Vec::<String>::new());
    }

    pub(crate) fn set(&self, object: Object) {
        self.send(Update::Change { set: vec![object], gone: Vec::new() });
    }

    /// Keeps the writer busy until the answer is dropped: what it has published stays, what is sent to it waits.
    pub(crate) fn hold_up(&self) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel();
        let busy = move |_: &QueryContext<'_>| {
            let _ = held.recv();
        };
        self.writer.handle().send(Message::Query(Box::new(busy))).unwrap();
        release
    }

    pub(crate) fn enforced(&self, endpoint: &Registration) -> usize {
        let snapshot = self.shared.snapshot();
        let of = &snapshot.endpoints[&EndpointId(endpoint.ifindex)];
        assert_eq!(of.state, EndpointState::Enforced);
        of.rules
    }
}

/// The objects of a manifest.
pub(crate) fn objects(text: &str) -> Vec<Object> {
    let read = manifest::read_text(Path::new("test.yaml"), text);
    assert_eq!(read.errors, []);
    read.objects
}
