//! Which atoms match an address: the peers that the policies in force name, evaluated once per distinct
//! (namespace, labels) and not once per pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::blocks::Blocks;
use crate::classes::{Atom, AtomId, NamedPeers, Numbering};
use crate::index::Index;
use crate::model::{Block, NamespaceScope, Peer, Peers, Pod, Policy, Port, Ports, Protocol, Rule};
use crate::selector::Selector;

/// The peers that a set of policies names. Sorted, so that numbers follow from the policies alone.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    peers: BTreeSet<Peer>,
    named: BTreeSet<NamedPeers>,
}

impl Wanted {
    /// Adds what a policy's rules name.
    pub(crate) fn add(&mut self, policy: &Policy) {
        for rule in policy.ingress.iter().flatten() {
            // An ingress rule's named ports are the selected pod's own numbers.
            self.add_peers(rule);
        }
        for rule in policy.egress.iter().flatten() {
            if rule.has_numbers() {
                self.add_peers(rule);
            }
            self.named.extend(rule.named_peers());
        }
    }

    fn add_peers(&mut self, rule: &Rule) {
        if let Peers::Of(peers) = &rule.peers {
            self.peers.extend(peers.iter().cloned());
        }
    }
}

impl Rule {
    /// Whether it allows anything beside named ports.
    fn has_numbers(&self) -> bool {
        match &self.ports {
            Ports::Any => true,
            Ports::Of(ports) => ports.iter().any(|port| !matches!(port, Port::Named(..))),
        }
    }

    /// Every (peer, named port) of the rule.
    pub(crate) fn named_peers(&self) -> impl Iterator<Item = NamedPeers> {
        let ports: &[Port] = match &self.ports {
            Ports::Any => &[],
            Ports::Of(ports) => ports,
        };
        let peers: Vec<Option<&Peer>> = match &self.peers {
            Peers::Any => vec![None],
            Peers::Of(peers) => peers.iter().map(Some).collect(),
        };
        ports
            .iter()
            .filter_map(|port| match port {
                Port::Named(protocol, name) => Some((*protocol, name)),
                Port::All(_) | Port::Numbers(..) => None,
            })
            .flat_map(move |(protocol, name)| {
                let named = |peer: &Option<&Peer>| NamedPeers {
                    peer: peer.cloned(),
                    protocol,
                    name: name.clone(),
                };
                peers.iter().map(named).collect::<Vec<_>>()
            })
    }
}

/// The peers of one compilation, ready to be asked about addresses.
pub(crate) struct PeerIndex<'a> {
    selectors: Selectors<'a>,
    /// The atom of each of `selectors`, unless only a named port mentions it.
    plain: Vec<Option<AtomId>>,
    /// Blocks by their atoms.
    blocks: Blocks,
    named: HashMap<(Protocol, Arc<str>), Vec<NamedQuery>>,
    /// Blocks of `named`, by their numbers in [`NamedOf::Block`].
    named_blocks: Blocks,
    /// The numbers that each named port turned out to have, in the atoms given so far.
    numbers: BTreeMap<NamedPeers, BTreeSet<u16>>,
}

/// One of the questions about a port name.
struct NamedQuery {
    of: NamedOf,
    peers: NamedPeers,
}

/// The peer of a [`NamedQuery`].
#[derive(Clone, Copy)]
enum NamedOf {
    EveryPod,
    Selected(usize),
    Block(u32),
}

impl<'a> PeerIndex<'a> {
    pub(crate) fn new(index: &'a Index, wanted: &'a Wanted, numbering: &mut Numbering) -> Self {
        let mut selectors = Selectors::new(index);
        let mut plain = Vec::new();
        let mut blocks: Vec<(u32, &Block)> = Vec::new();
        for peer in &wanted.peers {
            let atom = numbering.atom(Atom::Peer(peer.clone()));
            match peer {
                Peer::Block(block) => blocks.push((atom, block)),
                Peer::Pods { namespaces, pods } => {
                    selectors.add(namespaces, pods);
                    plain.push(Some(atom));
                }
            }
        }
        let mut named: HashMap<_, Vec<_>> = HashMap::new();
        let mut named_blocks: Vec<(u32, &Block)> = Vec::new();
        for query in &wanted.named {
            let of = match &query.peer {
                None => NamedOf::EveryPod,
                Some(Peer::Pods { namespaces, pods }) => {
                    plain.push(None);
                    NamedOf::Selected(selectors.add(namespaces, pods))
                }
                Some(Peer::Block(block)) => {
                    let number = named_blocks.len() as u32;
                    named_blocks.push((number, block));
                    NamedOf::Block(number)
                }
            };
            let port = (query.protocol, query.name.clone());
            named.entry(port).or_default().push(NamedQuery { of, peers: query.clone() });
        }
        Self {
            selectors,
            plain,
            blocks: Blocks::new(blocks),
            named,
            named_blocks: Blocks::new(named_blocks),
            numbers: BTreeMap::new(),
        }
    }

    /// The blocks, by their atoms.
    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The numbers that a named port has among the pods asked about so far.
    pub(crate) fn numbers(&self, named: &NamedPeers) -> impl Iterator<Item = u16> {
        self.numbers.get(named).into_iter().flatten().copied()
    }

    /// The atoms that match `address` because `pod` owns it. Those of blocks are not among them.
    pub(crate) fn atoms_of(
        &mut self,
        pod: &Pod,
        address: IpAddr,
        numbering: &mut Numbering,
    ) -> Vec<AtomId> {
        let selected = self.selectors.matching(pod);
        let mut atoms: Vec<AtomId> = selected.iter().filter_map(|peer| self.plain[*peer]).collect();
        if self.named.is_empty() {
            return atoms;
        }
        for port in pod.ports.iter() {
            let queries = self.named.get(&(port.protocol, port.name.clone()));
            for NamedQuery { of, peers } in queries.into_iter().flatten() {
                let is_peer = match of {
                    NamedOf::EveryPod => true,
                    NamedOf::Selected(peer) => selected.binary_search(peer).is_ok(),
                    NamedOf::Block(block) => {
                        let holding = self.named_blocks.holding(address);
                        holding.is_some_and(|blocks| blocks.contains(block))
                    }
                };
                if is_peer {
                    let atom = Atom::Named { of: peers.clone(), number: port.number };
                    atoms.push(numbering.atom(atom));
                    self.numbers.entry(peers.clone()).or_default().insert(port.number);
                }
            }
        }
        atoms
    }
}

/// Pod peers, and which of them match a pod.
struct Selectors<'a> {
    index: &'a Index,
    peers: Vec<(&'a NamespaceScope, &'a Selector)>,
    /// The label keys that some pod selector asks about: pods that differ in others only are alike.
    keys: BTreeSet<Arc<str>>,
    by_namespace: HashMap<Arc<str>, Rc<[usize]>>,
    by_shape: HashMap<Shape, Rc<[usize]>>,
}

/// A pod's namespace and those of its labels that matter.
type Shape = (Arc<str>, Vec<(Arc<str>, Arc<str>)>);

impl<'a> Selectors<'a> {
    fn new(index: &'a Index) -> Self {
        Self {
            index,
            peers: Vec::new(),
            keys: BTreeSet::new(),
            by_namespace: HashMap::new(),
            by_shape: HashMap::new(),
        }
    }

    fn add(&mut self, namespaces: &'a NamespaceScope, pods: &'a Selector) -> usize {
        self.keys.extend(pods.requirements().iter().map(|requirement| requirement.key.clone()));
        self.peers.push((namespaces, pods));
        self.peers.len() - 1
    }

    /// The peers that match a pod, by number, sorted.
    fn matching(&mut self, pod: &Pod) -> Rc<[usize]> {
        let labels = pod.labels.iter().filter(|(key, _)| self.keys.contains(*key));
        let labels = labels.map(|(key, value)| (key.clone(), value.clone())).collect();
        let shape = (pod.key.namespace.clone(), labels);
        if let Some(known) = self.by_shape.get(&shape) {
            return known.clone();
        }
        let in_namespace = self.of_namespace(&pod.key.namespace);
        let matching = in_namespace.iter().copied();
        let matching: Rc<[usize]> =
            matching.filter(|peer| self.peers[*peer].1.matches(&pod.labels)).collect();
        self.by_shape.insert(shape, matching.clone());
        matching
    }

    /// The peers whose namespaces include this one.
    fn of_namespace(&mut self, namespace: &Arc<str>) -> Rc<[usize]> {
        if let Some(known) = self.by_namespace.get(namespace) {
            return known.clone();
        }
        let labels = self.index.namespace_labels(namespace);
        let peers = self.peers.iter().enumerate();
        let peers: Rc<[usize]> = peers
            .filter(|(_, (scope, _))| match scope {
                NamespaceScope::Own(name) => name == namespace,
                NamespaceScope::Matching(selector) => selector.matches(&labels),
            })
            .map(|(peer, _)| peer)
            .collect();
        self.by_namespace.insert(namespace.clone(), peers.clone());
        peers
    }
}
