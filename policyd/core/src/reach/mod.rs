//! Who reaches whom: allow, deny or mixed for a packet from one target to another, path by path, with the reasons.
//!
//! ```text
//!  Question --parties: who is meant, at which addresses--> routes: which endpoints a service leads to
//!                                                              |
//!                     Answer <--summary: one verdict-- paths: which gates each packet meets
//! ```
//!
//! The only implementation, for a node's daemon (`GET /v1/explain`) and for manifests (`podgatectl explain`, `check`,
//! `matrix` and the lab). They differ in what they know of nodes, which is their [`Topology`].

mod parties;
mod paths;
mod question;
mod routes;
mod summary;

use std::net::{IpAddr, SocketAddr};

use podgate_contract::api::{GateAnswer, Verdict};

use crate::compile::Engine;
use crate::index::{Index, NodeRef};
use crate::model::ObjectKey;
use crate::services::{Frontend, ServiceTable};
use crate::tables::Transport;

pub use parties::absence;
pub use question::{Family, Field, Question, Target, Unanswerable, transport};

/// What the caller knows of nodes.
pub trait Topology {
    /// The node that an address belongs to.
    fn node_at(&self, address: IpAddr) -> Option<NodeRef>;

    /// The addresses of a node, the preferred one of each family first; none if none is known.
    fn addresses_of_node(&self, node: &NodeRef) -> Vec<IpAddr>;

    /// Whether the gate of `pod` takes a packet that `node` sends from `source` for one of its own node, which it lets in
    /// whatever policy says.
    fn is_own_node(&self, pod: &ObjectKey, node: &NodeRef, source: IpAddr) -> bool;
}

/// What an answer is derived from. Pods with an endpoint in `engine` are judged by its tables; tables of other pods are
/// compiled from `index` for the occasion.
#[derive(Clone, Copy)]
pub struct Reach<'a> {
    /// The cluster.
    pub index: &'a Index,
    /// Where services lead, as the answering node sees it.
    pub services: &'a ServiceTable,
    /// The endpoints of the answering node, and their tables.
    pub engine: &'a Engine,
    /// Its knowledge of nodes.
    pub topology: &'a dyn Topology,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Allow if every path is allowed; of a service mixed if some endpoints are allowed and some are not; deny if all
    /// paths of a family are denied, or there is no path.
    pub verdict: Verdict,
    /// One line for people.
    pub why: String,
    /// Family by family; of a service, endpoint by endpoint.
    pub paths: Vec<Path>,
    /// Of a service that the sender's gate does not translate: what the gate does with packets to each of its addresses,
    /// whether or not there is an endpoint for them.
    pub untranslated: Vec<VipGate>,
}

/// One path that a packet may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where it starts.
    pub from: Location,
    /// Its source address.
    pub source: IpAddr,
    /// Where it ends.
    pub to: Location,
    /// Its destination address when it arrives.
    pub destination: IpAddr,
    /// What arrives there.
    pub transport: Transport,
    /// The service that it is sent to; `None`: it is sent to `destination` itself.
    pub service: Option<Via>,
    /// The gates that it meets, in order.
    pub gates: Vec<GateAnswer>,
    /// Allow or deny.
    pub verdict: Verdict,
    /// One line for people.
    pub why: String,
}

/// One end of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A pod with a network of its own.
    Pod(ObjectKey),
    /// The node that the pod at the other end runs on.
    OwnNode,
    /// Another node.
    Node,
    /// Neither a pod nor a node, as far as is known.
    External,
}

/// How a path leads through a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// The address and port that the packet is sent to.
    pub frontend: Frontend,
    /// Who selects the endpoint.
    pub translator: Translator,
}

/// Who selects the endpoint of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translator {
    /// The gate of the pod that sends: both gates then judge the endpoint.
    Gate,
    /// kube-proxy or another one on the node, after the packet has passed the sender's gate; or what listens at the
    /// service's address itself.
    Node,
}

/// What a pod's gate does with packets to a service's address that it does not translate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipGate {
    /// The address and port.
    pub frontend: Frontend,
    /// The pod that sends.
    pub from: ObjectKey,
    /// Its source address.
    pub source: IpAddr,
    /// Where the address itself is.
    pub to: Location,
    /// The gate's verdict.
    pub gate: GateAnswer,
}

impl Path {
    /// Where it ends, with the port if there is one.
    pub fn endpoint(&self) -> String {
        match self.transport {
            Transport::Port(_, port) => SocketAddr::new(self.destination, port).to_string(),
            Transport::Number(_) | Transport::Other => self.destination.to_string(),
        }
    }
}

impl Reach<'_> {
    /// Answers a question. Fails if a target cannot be meant: it is not known, has no address, or is no end of a packet.
    pub fn answer(&self, question: &Question) -> Result<Answer, Unanswerable> {
        let from = self.source(question)?;
        match self.routes(question, &from)? {
            Some(routes) => Ok(self.answer_service(question, &from, &routes)),
            None => {
                let to = self.destination(question)?;
                Ok(self.answer_party(question, &from, &to))
            }
        }
    }
}
