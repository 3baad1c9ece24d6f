//! The real writer in the test's own process, told what the test wants it to hear, and when.

use std::path::Path;
use std::sync::{Arc, mpsc};

use podgate_bpf::maps::Registration;
use podgate_bpf::{Gate, PinRoot};
use podgate_policy::compile::EndpointId;
use policyd::sources::{Object, Rank, Update, manifest};
use policyd::sync::services::ServiceMode;
use policyd::view::{EndpointState, Shared};
use policyd::writer::{Answers, Message, Writer};

use crate::node::Node;

/// The writer of a node, with one source.
pub(crate) struct Writing {
    pub(crate) shared: Arc<Shared>,
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
        let gate = Arc::new(Gate::open(&root).unwrap());
        let shared =
            Arc::new(Shared::new(gate, "n1".into(), services, "/nowhere/install.json".into()));
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

    /// These are all objects there are; waits until that is in force.
    pub(crate) fn replace(&self, objects: Vec<Object>) {
        self.send(Update::Replace(objects));
        self.settle();
        assert_eq!(self.shared.view().problems(), Vec::<String>::new());
    }

    pub(crate) fn set(&self, object: Object) {
        self.send(Update::Change { set: vec![object], gone: Vec::new() });
    }

    /// Keeps the writer busy until the answer is dropped: what it has published stays, what is sent to it waits.
    pub(crate) fn hold_up(&self) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel();
        let busy = move |_: &Answers<'_>| {
            let _ = held.recv();
        };
        self.writer.handle().send(Message::Ask(Box::new(busy))).unwrap();
        release
    }

    pub(crate) fn enforced(&self, endpoint: &Registration) -> usize {
        let view = self.shared.view();
        let of = &view.endpoints[&EndpointId(endpoint.ifindex)];
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
