//! What the rules in force ask of peers, and which shapes of pods answer.
//!
//! An *ask* is the `from` or `to` of a rule, for an egress named port together with the name. Rules that ask the
//! same share it. Its pod peers are *terms*, filed by their namespaces (a *scope* for each namespaceSelector,
//! held against each namespace once) and by the labels they require: a shape finds the terms that match it,
//! and a term its shapes, without asking all.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::blocks::Blocks;
use crate::index::{Index, Likeness, ShapeId};
use crate::model::{NamespaceScope, Peer, Protocol};
use crate::selector::Selector;
use crate::selector_index::SelectorIndex;

/// Names an ask. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AskId(pub(crate) u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct TermId(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ScopeId(u32);

/// What a rule asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ask {
    /// Any of these.
    pub(crate) peers: Arc<[Peer]>,
    /// That have a port of this name, whose number is theirs to say.
    pub(crate) port: Option<(Protocol, Arc<str>)>,
}

#[derive(Debug)]
struct Asked {
    ask: Ask,
    /// By how many rules of policies in force.
    by: usize,
}

#[derive(Debug)]
struct Term {
    selector: Selector,
    /// Sorted.
    asks: Vec<AskId>,
    shapes: BTreeSet<ShapeId>,
}

/// A namespaceSelector.
#[derive(Debug)]
struct Scope {
    selector: Selector,
    terms: SelectorIndex<TermId>,
    namespaces: BTreeSet<Arc<str>>,
}

/// All asks, and their answers.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    ids: HashMap<Ask, AskId>,
    asked: HashMap<AskId, Asked>,
    term_ids: HashMap<(NamespaceScope, Selector), TermId>,
    terms: HashMap<TermId, Term>,
    /// Terms of a policy's own namespace.
    own: HashMap<Arc<str>, SelectorIndex<TermId>>,
    scope_ids: HashMap<Selector, ScopeId>,
    scopes: HashMap<ScopeId, Scope>,
    by_namespace_label: SelectorIndex<ScopeId>,
    /// The scopes of every namespace that has an object or pods.
    scopes_of: HashMap<Arc<str>, BTreeSet<ScopeId>>,
    /// Sorted; shapes that no term matches are not here.
    terms_of: HashMap<ShapeId, Vec<TermId>>,
    next: u32,
    pub(crate) blocks: Blocks,
    /// Shapes that are asked something else than before, since somebody took them.
    dirty: BTreeSet<ShapeId>,
    /// Perhaps nobody asks them any more.
    idle: BTreeSet<AskId>,
    /// Asks for named ports that have been forgotten since [`Asks::take_dirty`].
    forgotten_names: BTreeSet<AskId>,
}

impl Asks {
    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// One more rule asks this.
    pub(crate) fn acquire(&mut self, ask: Ask, index: &Index) -> AskId {
        if let Some(id) = self.ids.get(&ask).copied() {
            if let Some(asked) = self.asked.get_mut(&id) {
                asked.by += 1;
            }
            return id;
        }
        let id = AskId(self.number());
        for peer in ask.peers.iter() {
            match peer {
                Peer::Block(block) => self.blocks.add(id, block),
                Peer::Pods { namespaces, pods } => {
                    let term = self.term(namespaces, pods, index);
                    if let Some(term) = self.terms.get_mut(&term) {
                        // ids grow, so it stays sorted
                        term.asks.push(id);
                        self.dirty.extend(&term.shapes);
                    }
                }
            }
        }
        self.ids.insert(ask.clone(), id);
        self.asked.insert(id, Asked { ask, by: 1 });
        id
    }

    /// One rule less asks this. Nothing happens before [`Asks::settle`].
    pub(crate) fn release(&mut self, id: AskId) {
        if let Some(asked) = self.asked.get_mut(&id) {
            asked.by -= 1;
            if asked.by == 0 {
                self.idle.insert(id);
            }
        }
    }

    /// Forgets what nobody asks any more.
    pub(crate) fn settle(&mut self) {
        for id in std::mem::take(&mut self.idle) {
            if self.asked.get(&id).is_none_or(|asked| asked.by > 0) {
                continue;
            }
            let Some(Asked { ask, .. }) = self.asked.remove(&id) else { continue };
            for peer in ask.peers.iter() {
                match peer {
                    Peer::Block(block) => self.blocks.remove(id, block),
                    Peer::Pods { namespaces, pods } => self.forget_term(id, namespaces, pods),
                }
            }
            if ask.port.is_some() {
                self.forgotten_names.insert(id);
            }
            self.ids.remove(&ask);
        }
    }

    fn term(&mut self, scope: &NamespaceScope, selector: &Selector, index: &Index) -> TermId {
        let key = (scope.clone(), selector.clone());
        if let Some(id) = self.term_ids.get(&key) {
            return *id;
        }
        let id = TermId(self.number());
        let mut shapes = BTreeSet::new();
        match scope {
            NamespaceScope::Own(namespace) => {
                self.own.entry(namespace.clone()).or_default().insert(selector, id);
                shapes.extend(index.shapes().matching(namespace, selector));
            }
            NamespaceScope::Matching(namespaces) => {
                let scope = self.scope(namespaces, index);
                if let Some(scope) = self.scopes.get_mut(&scope) {
                    scope.terms.insert(selector, id);
                    for namespace in &scope.namespaces {
                        shapes.extend(index.shapes().matching(namespace, selector));
                    }
                }
            }
        }
        for shape in &shapes {
            // ids grow, so they stay sorted
            self.terms_of.entry(*shape).or_default().push(id);
        }
        let term = Term { selector: selector.clone(), asks: Vec::new(), shapes };
        self.terms.insert(id, term);
        self.term_ids.insert(key, id);
        id
    }

    fn forget_term(&mut self, ask: AskId, scope: &NamespaceScope, selector: &Selector) {
        let key = (scope.clone(), selector.clone());
        let Some(id) = self.term_ids.get(&key).copied() else { return };
        let Some(term) = self.terms.get_mut(&id) else { return };
        term.asks.retain(|known| *known != ask);
        self.dirty.extend(&term.shapes);
        if !term.asks.is_empty() {
            return;
        }
        for shape in std::mem::take(&mut term.shapes) {
            if let Some(terms) = self.terms_of.get_mut(&shape) {
                terms.retain(|known| *known != id);
                if terms.is_empty() {
                    self.terms_of.remove(&shape);
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
            NamespaceScope::Matching(namespaces) => self.forget_in_scope(id, namespaces, selector),
        }
    }

    /// The scope of a namespaceSelector. The first time, it is held against every namespace.
    fn scope(&mut self, selector: &Selector, index: &Index) -> ScopeId {
        if let Some(id) = self.scope_ids.get(selector) {
            return *id;
        }
        let id = ScopeId(self.number());
        self.by_namespace_label.insert(selector, id);
        let mut scope = Scope {
            selector: selector.clone(),
            terms: SelectorIndex::default(),
            namespaces: BTreeSet::new(),
        };
        let objects = index.namespaces().map(|namespace| &namespace.name);
        let names: BTreeSet<&Arc<str>> = objects.chain(index.shapes().namespaces()).collect();
        for name in names {
            if selector.matches(&index.namespace_labels(name)) {
                self.scopes_of.entry(name.clone()).or_default().insert(id);
                scope.namespaces.insert(name.clone());
            }
        }
        self.scopes.insert(id, scope);
        self.scope_ids.insert(selector.clone(), id);
        id
    }

    fn forget_in_scope(&mut self, term: TermId, namespaces: &Selector, selector: &Selector) {
        let Some(id) = self.scope_ids.get(namespaces).copied() else { return };
        let Some(scope) = self.scopes.get_mut(&id) else { return };
        scope.terms.remove(selector, &term);
        if !scope.terms.is_empty() {
            return;
        }
        for namespace in std::mem::take(&mut scope.namespaces) {
            if let Some(scopes) = self.scopes_of.get_mut(&namespace) {
                scopes.remove(&id);
                if scopes.is_empty() {
                    self.scopes_of.remove(&namespace);
                }
            }
        }
        self.by_namespace_label.remove(namespaces, &id);
        self.scopes.remove(&id);
        self.scope_ids.remove(namespaces);
    }

    /// A namespace is new, relabelled or gone.
    pub(crate) fn follow_namespace(&mut self, name: &Arc<str>, index: &Index) {
        let exists = index.namespace(name).is_some() || index.shapes().of(name).next().is_some();
        let mut now = BTreeSet::new();
        if exists {
            let labels = index.namespace_labels(name);
            let candidates = self.by_namespace_label.candidates(&labels);
            let scopes = &self.scopes;
            let matches = |id: &&ScopeId| {
                scopes.get(*id).is_some_and(|scope| scope.selector.matches(&labels))
            };
            now = candidates.filter(matches).copied().collect();
        }
        let before = self.scopes_of.remove(name).unwrap_or_default();
        for id in before.difference(&now) {
            if let Some(scope) = self.scopes.get_mut(id) {
                scope.namespaces.remove(name);
            }
        }
        for id in now.difference(&before) {
            if let Some(scope) = self.scopes.get_mut(id) {
                scope.namespaces.insert(name.clone());
            }
        }
        let same = now == before;
        if !now.is_empty() {
            self.scopes_of.insert(name.clone(), now);
        }
        if !same {
            for shape in index.shapes().of(name).collect::<Vec<_>>() {
                self.follow_shape(shape, index);
            }
        }
    }

    /// A shape is new or gone, or its namespace has other scopes.
    pub(crate) fn follow_shape(&mut self, id: ShapeId, index: &Index) {
        let now = match index.shapes().get(id) {
            Some(shape) => self.matching(&shape.likeness),
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
                term.shapes.remove(&id);
            }
        }
        for term in &now {
            if let Some(term) = self.terms.get_mut(term) {
                term.shapes.insert(id);
            }
        }
        self.dirty.insert(id);
        if !now.is_empty() {
            self.terms_of.insert(id, now);
        }
    }

    fn matching(&self, likeness: &Likeness) -> Vec<TermId> {
        let own = self.own.get(&likeness.namespace).into_iter();
        let scopes = self.scopes_of.get(&likeness.namespace).into_iter().flatten();
        let scoped = scopes.filter_map(|id| self.scopes.get(id)).map(|scope| &scope.terms);
        let candidates = own.chain(scoped).flat_map(|terms| terms.candidates(&likeness.labels));
        let mut matching: Vec<TermId> = candidates
            .filter(|id| {
                let term = self.terms.get(id);
                term.is_some_and(|term| term.selector.matches(&likeness.labels))
            })
            .copied()
            .collect();
        matching.sort_unstable();
        matching
    }

    /// Whether some term matches a shape.
    pub(crate) fn concern(&self, shape: ShapeId) -> bool {
        self.terms_of.contains_key(&shape)
    }

    /// The asks whose terms match a shape. Not sorted; one may come several times.
    pub(crate) fn of_shape(&self, shape: ShapeId) -> impl Iterator<Item = AskId> {
        let terms = self.terms_of.get(&shape).into_iter().flatten();
        terms.filter_map(|term| self.terms.get(term)).flat_map(|term| &term.asks).copied()
    }

    /// Whose shapes changed what they are asked, since the last time.
    pub(crate) fn take_dirty(&mut self) -> BTreeSet<ShapeId> {
        self.forgotten_names.clear();
        std::mem::take(&mut self.dirty)
    }

    /// Whether an ask, or one that has just been forgotten, names a port.
    pub(crate) fn names_port(&self, id: AskId) -> bool {
        self.port(id).is_some() || self.forgotten_names.contains(&id)
    }

    /// The port that an ask names.
    pub(crate) fn port(&self, id: AskId) -> Option<&(Protocol, Arc<str>)> {
        self.asked.get(&id)?.ask.port.as_ref()
    }

    /// Whether an ask is about peers alone.
    pub(crate) fn is_plain(&self, id: AskId) -> bool {
        self.asked.get(&id).is_some_and(|asked| asked.ask.port.is_none())
    }

    /// What stands behind a number, for comparisons between engines.
    pub(crate) fn get(&self, id: AskId) -> Option<&Ask> {
        self.asked.get(&id).map(|asked| &asked.ask)
    }
}
