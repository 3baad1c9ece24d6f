//! The peers that the rules in force name, and which label identities each of them matches.
//!
//! A *peer set* is the `from` or `to` of a rule; for the named port of an egress rule the name belongs to it. Rules
//! with equal peers share one set, which is reference counted. Each pod peer of a set is a *pod term*. Pod terms are
//! filed under their namespace, or under the *namespace term* (a namespaceSelector) that they are combined with, and by
//! the labels that they require. So the terms that match an identity, and the identities that match a term, are found
//! without evaluating every selector; a namespaceSelector is evaluated once per namespace.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::cidr_index::CidrIndex;
use super::ids::PeerSetId;
use super::node_terms::NodeTerms;
use crate::index::{Claim, IdentityId, IdentityKey, Index};
use crate::model::{NamespaceScope, ObjectKey, Peer, Protocol};
use crate::selector::Selector;
use crate::selector_index::SelectorIndex;

/// The number of a [`PodTerm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PodTermId(u32);

/// The number of a [`NamespaceTerm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct NamespaceTermId(u32);

/// The `from` or `to` of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerSet {
    /// An address is in the set if any of these matches it.
    pub(crate) peers: Arc<[Peer]>,
    /// For an egress named port: only pods with a port of this name and protocol. Its number differs from pod to pod.
    pub(crate) port: Option<(Protocol, Arc<str>)>,
}

/// A peer set in use.
#[derive(Debug)]
struct Counted {
    peer_set: PeerSet,
    /// How many rules of policies in force use it.
    rules: usize,
}

/// A pod peer: the podSelector, for the namespaces that it is filed under.
#[derive(Debug)]
struct PodTerm {
    selector: Selector,
    /// The sets that contain it, sorted.
    peer_sets: Vec<PeerSetId>,
    identities: BTreeSet<IdentityId>,
}

/// A namespaceSelector, the namespaces that it matches, and the pod terms combined with it.
#[derive(Debug)]
struct NamespaceTerm {
    selector: Selector,
    terms: SelectorIndex<PodTermId>,
    namespaces: BTreeSet<Arc<str>>,
}

/// The peer sets in use, and the label identities that match each of their terms.
#[derive(Debug, Default)]
pub(crate) struct PeerSets {
    ids: HashMap<PeerSet, PeerSetId>,
    counted: HashMap<PeerSetId, Counted>,
    term_ids: HashMap<(NamespaceScope, Selector), PodTermId>,
    terms: HashMap<PodTermId, PodTerm>,
    /// Pod terms without a namespaceSelector, by the namespace of their policy.
    own: HashMap<Arc<str>, SelectorIndex<PodTermId>>,
    namespace_term_ids: HashMap<Selector, NamespaceTermId>,
    namespace_terms: HashMap<NamespaceTermId, NamespaceTerm>,
    by_namespace_label: SelectorIndex<NamespaceTermId>,
    /// The namespace terms that match each namespace, of those that have an object or pods.
    namespace_terms_of: HashMap<Arc<str>, BTreeSet<NamespaceTermId>>,
    /// The pod terms that match each identity, sorted. Identities that no term matches are left out.
    terms_of: HashMap<IdentityId, Vec<PodTermId>>,
    next: u32,
    nodes: NodeTerms,
    /// The sets that contain a pod by its name, sorted.
    by_pod: HashMap<ObjectKey, Vec<PeerSetId>>,
    pub(crate) cidrs: CidrIndex,
    /// Identities whose peer sets have changed since [`PeerSets::take_dirty`].
    dirty: BTreeSet<IdentityId>,
    /// Pods whose sets by name have changed since [`PeerSets::take_dirty_pods`].
    dirty_pods: BTreeSet<ObjectKey>,
    /// Sets that had no rule left at some moment since [`PeerSets::settle`].
    idle: BTreeSet<PeerSetId>,
    /// Sets with a named port that were dropped since [`PeerSets::take_dirty`].
    dropped_named: BTreeSet<PeerSetId>,
}

impl PeerSets {
    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// One more rule uses this set.
    pub(crate) fn acquire(&mut self, peer_set: PeerSet, index: &Index) -> PeerSetId {
        if let Some(id) = self.ids.get(&peer_set).copied() {
            if let Some(counted) = self.counted.get_mut(&id) {
                counted.rules += 1;
            }
            return id;
        }
        let id = PeerSetId(self.number());
        for peer in peer_set.peers.iter() {
            match peer {
                Peer::Block(block) => self.cidrs.add(id, block),
                Peer::Nodes(nodes) => self.nodes.add(id, nodes, index, &mut self.cidrs),
                Peer::Pod(pod) => {
                    // ids grow, so it stays sorted
                    self.by_pod.entry(pod.clone()).or_default().push(id);
                    self.dirty_pods.insert(pod.clone());
                }
                Peer::Pods { namespaces, pods } => {
                    let term = self.pod_term(namespaces, pods, index);
                    if let Some(term) = self.terms.get_mut(&term) {
                        // ids grow, so it stays sorted
                        term.peer_sets.push(id);
                        self.dirty.extend(&term.identities);
                    }
                }
            }
        }
        self.ids.insert(peer_set.clone(), id);
        self.counted.insert(id, Counted { peer_set, rules: 1 });
        id
    }

    /// One rule less uses this set. It is dropped by [`PeerSets::settle`], unless another rule acquires it first.
    pub(crate) fn release(&mut self, id: PeerSetId) {
        if let Some(counted) = self.counted.get_mut(&id) {
            counted.rules -= 1;
            if counted.rules == 0 {
                self.idle.insert(id);
            }
        }
    }

    /// Drops the sets that no rule uses any more.
    pub(crate) fn settle(&mut self) {
        for id in std::mem::take(&mut self.idle) {
            if self.counted.get(&id).is_none_or(|counted| counted.rules > 0) {
                continue;
            }
            let Some(Counted { peer_set, .. }) = self.counted.remove(&id) else { continue };
            for peer in peer_set.peers.iter() {
                match peer {
                    Peer::Block(block) => self.cidrs.remove(id, block),
                    Peer::Nodes(nodes) => self.nodes.remove(id, nodes, &mut self.cidrs),
                    Peer::Pod(pod) => self.drop_pod(id, pod),
                    Peer::Pods { namespaces, pods } => self.drop_pod_term(id, namespaces, pods),
                }
            }
            if peer_set.port.is_some() {
                self.dropped_named.insert(id);
            }
            self.ids.remove(&peer_set);
        }
    }

    fn drop_pod(&mut self, peer_set: PeerSetId, pod: &ObjectKey) {
        let Some(peer_sets) = self.by_pod.get_mut(pod) else { return };
        peer_sets.retain(|known| *known != peer_set);
        if peer_sets.is_empty() {
            self.by_pod.remove(pod);
        }
        self.dirty_pods.insert(pod.clone());
    }

    /// The term of a pod peer. A new one is evaluated against the identities of its namespaces.
    fn pod_term(
        &mut self,
        scope: &NamespaceScope,
        selector: &Selector,
        index: &Index,
    ) -> PodTermId {
        let key = (scope.clone(), selector.clone());
        if let Some(id) = self.term_ids.get(&key) {
            return *id;
        }
        let id = PodTermId(self.number());
        let mut identities = BTreeSet::new();
        match scope {
            NamespaceScope::Own(namespace) => {
                self.own.entry(namespace.clone()).or_default().insert(selector, id);
                identities.extend(index.identities().matching(namespace, selector));
            }
            NamespaceScope::Matching(namespaces) => {
                let outer = self.namespace_term(namespaces, index);
                if let Some(outer) = self.namespace_terms.get_mut(&outer) {
                    outer.terms.insert(selector, id);
                    for namespace in &outer.namespaces {
                        identities.extend(index.identities().matching(namespace, selector));
                    }
                }
            }
        }
        for identity in &identities {
            // ids grow, so they stay sorted
            self.terms_of.entry(*identity).or_default().push(id);
        }
        let term = PodTerm { selector: selector.clone(), peer_sets: Vec::new(), identities };
        self.terms.insert(id, term);
        self.term_ids.insert(key, id);
        id
    }

    fn drop_pod_term(&mut self, peer_set: PeerSetId, scope: &NamespaceScope, selector: &Selector) {
        let key = (scope.clone(), selector.clone());
        let Some(id) = self.term_ids.get(&key).copied() else { return };
        let Some(term) = self.terms.get_mut(&id) else { return };
        term.peer_sets.retain(|known| *known != peer_set);
        self.dirty.extend(&term.identities);
        if !term.peer_sets.is_empty() {
            return;
        }
        for identity in std::mem::take(&mut term.identities) {
            if let Some(terms) = self.terms_of.get_mut(&identity) {
                terms.retain(|known| *known != id);
                if terms.is_empty() {
                    self.terms_of.remove(&identity);
                }
            }
        }
        self.terms.remove(&id);
        self.term_ids.remove(&key);
        match scope {
            NamespaceScope::Own(namespace) => {
                if let Some(terms) = self.own.get_mut(namespace) {
                    terms.remove(selector, &id);
                    if terms.is_empty() {
                        self.own.remove(namespace);
                    }
                }
            }
            NamespaceScope::Matching(namespaces) => {
                self.drop_from_namespace_term(id, namespaces, selector)
            }
        }
    }

    /// The term of a namespaceSelector. A new one is evaluated against every namespace.
    fn namespace_term(&mut self, selector: &Selector, index: &Index) -> NamespaceTermId {
        if let Some(id) = self.namespace_term_ids.get(selector) {
            return *id;
        }
        let id = NamespaceTermId(self.number());
        self.by_namespace_label.insert(selector, id);
        let mut term = NamespaceTerm {
            selector: selector.clone(),
            terms: SelectorIndex::default(),
            namespaces: BTreeSet::new(),
        };
        let objects = index.namespaces().map(|namespace| &namespace.name);
        let names: BTreeSet<&Arc<str>> = objects.chain(index.identities().namespaces()).collect();
        for name in names {
            if selector.matches(&index.namespace_labels(name)) {
                self.namespace_terms_of.entry(name.clone()).or_default().insert(id);
                term.namespaces.insert(name.clone());
            }
        }
        self.namespace_terms.insert(id, term);
        self.namespace_term_ids.insert(selector.clone(), id);
        id
    }

    fn drop_from_namespace_term(
        &mut self,
        term: PodTermId,
        namespaces: &Selector,
        selector: &Selector,
    ) {
        let Some(id) = self.namespace_term_ids.get(namespaces).copied() else { return };
        let Some(outer) = self.namespace_terms.get_mut(&id) else { return };
        outer.terms.remove(selector, &term);
        if !outer.terms.is_empty() {
            return;
        }
        for namespace in std::mem::take(&mut outer.namespaces) {
            if let Some(terms) = self.namespace_terms_of.get_mut(&namespace) {
                terms.remove(&id);
                if terms.is_empty() {
                    self.namespace_terms_of.remove(&namespace);
                }
            }
        }
        self.by_namespace_label.remove(namespaces, &id);
        self.namespace_terms.remove(&id);
        self.namespace_term_ids.remove(namespaces);
    }

    /// A node is new, changed or gone.
    pub(crate) fn follow_node(&mut self, name: &Arc<str>, index: &Index) {
        self.nodes.follow_node(name, index, &mut self.cidrs);
    }

    /// A namespace is new, relabelled or gone.
    pub(crate) fn follow_namespace(&mut self, name: &Arc<str>, index: &Index) {
        let exists =
            index.namespace(name).is_some() || index.identities().of(name).next().is_some();
        let mut now = BTreeSet::new();
        if exists {
            let labels = index.namespace_labels(name);
            let candidates = self.by_namespace_label.candidates(&labels);
            let terms = &self.namespace_terms;
            let matches = |id: &&NamespaceTermId| {
                terms.get(*id).is_some_and(|term| term.selector.matches(&labels))
            };
            now = candidates.filter(matches).copied().collect();
        }
        let before = self.namespace_terms_of.remove(name).unwrap_or_default();
        for id in before.difference(&now) {
            if let Some(term) = self.namespace_terms.get_mut(id) {
                term.namespaces.remove(name);
            }
        }
        for id in now.difference(&before) {
            if let Some(term) = self.namespace_terms.get_mut(id) {
                term.namespaces.insert(name.clone());
            }
        }
        let same = now == before;
        if !now.is_empty() {
            self.namespace_terms_of.insert(name.clone(), now);
        }
        if !same {
            for identity in index.identities().of(name).collect::<Vec<_>>() {
                self.follow_identity(identity, index);
            }
        }
    }

    /// An identity is new or gone, or other namespace terms match its namespace.
    pub(crate) fn follow_identity(&mut self, id: IdentityId, index: &Index) {
        let now = match index.identities().get(id) {
            Some(identity) => self.matching(&identity.key),
            None => Vec::new(),
        };
        let before = self.terms_of.remove(&id).unwrap_or_default();
        if now == before {
            if !now.is_empty() {
                self.terms_of.insert(id, now);
            }
            return;
        }
        for term in &before {
            if let Some(term) = self.terms.get_mut(term) {
                term.identities.remove(&id);
            }
        }
        for term in &now {
            if let Some(term) = self.terms.get_mut(term) {
                term.identities.insert(id);
            }
        }
        self.dirty.insert(id);
        if !now.is_empty() {
            self.terms_of.insert(id, now);
        }
    }

    fn matching(&self, key: &IdentityKey) -> Vec<PodTermId> {
        let own = self.own.get(&key.namespace).into_iter();
        let outer = self.namespace_terms_of.get(&key.namespace).into_iter().flatten();
        let outer = outer.filter_map(|id| self.namespace_terms.get(id)).map(|term| &term.terms);
        let candidates = own.chain(outer).flat_map(|terms| terms.candidates(&key.labels));
        let mut matching: Vec<PodTermId> = candidates
            .filter(|id| {
                let term = self.terms.get(id);
                term.is_some_and(|term| term.selector.matches(&key.labels))
            })
            .copied()
            .collect();
        matching.sort_unstable();
        matching
    }

    /// Whether any pod term matches an identity, or any set names the pod.
    pub(crate) fn is_selected(&self, claim: &Claim) -> bool {
        self.terms_of.contains_key(&claim.identity) || self.by_pod.contains_key(&claim.pod.key)
    }

    /// The sets whose pod terms match a pod's identity, and those that name it. Not sorted, may contain duplicates.
    pub(crate) fn of_pod(&self, claim: &Claim) -> impl Iterator<Item = PeerSetId> {
        let terms = self.terms_of.get(&claim.identity).into_iter().flatten();
        let terms = terms.filter_map(|term| self.terms.get(term));
        let named = self.by_pod.get(&claim.pod.key).into_iter().flatten();
        terms.flat_map(|term| &term.peer_sets).chain(named).copied()
    }

    /// The pods whose sets by name have changed since the last call.
    pub(crate) fn take_dirty_pods(&mut self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.dirty_pods)
    }

    /// The identities whose peer sets have changed since the last call.
    pub(crate) fn take_dirty(&mut self) -> BTreeSet<IdentityId> {
        self.dropped_named.clear();
        std::mem::take(&mut self.dirty)
    }

    /// Whether a set has a named port. Also true for sets dropped in this update.
    pub(crate) fn has_named_port(&self, id: PeerSetId) -> bool {
        self.port(id).is_some() || self.dropped_named.contains(&id)
    }

    /// The named port of a set.
    pub(crate) fn port(&self, id: PeerSetId) -> Option<&(Protocol, Arc<str>)> {
        self.counted.get(&id)?.peer_set.port.as_ref()
    }

    /// Whether a set is in use and has no named port.
    pub(crate) fn has_no_named_port(&self, id: PeerSetId) -> bool {
        self.counted.get(&id).is_some_and(|counted| counted.peer_set.port.is_none())
    }

    /// The set of a number, for comparisons between engines.
    pub(crate) fn get(&self, id: PeerSetId) -> Option<&PeerSet> {
        self.counted.get(&id).map(|counted| &counted.peer_set)
    }
}
