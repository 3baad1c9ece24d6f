//! `GET /v1/explain`: whether a packet passes, by [`podgate_policy::reach`].
//!
//! For pods of this node the answer is that of the tables in force. For pods of other nodes tables are compiled for the
//! occasion from what this node knows; those in force on their own node decide.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use podgate_bpf::maps::Net;
use podgate_contract::api::{ExplainQuery, Explanation};
use podgate_policy::convert::FieldError;
use podgate_policy::index::{Index, NodeRef};
use podgate_policy::model::ObjectKey;
use podgate_policy::reach::{self, Family, Field, Question, Reach, Target, Topology, Unanswerable};

use super::{Api, Refusal};
use crate::node_addresses::holds;
use crate::writer::QueryContext;

pub(super) async fn get(
    State(api): State<Api>,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Result<Json<Explanation>, Refusal> {
    let Query(query) =
        query.map_err(|error| Refusal::malformed(format!("read query: {}", error.body_text())))?;
    let question = question(&query).map_err(|field| refuse(&field))?;
    let node: Arc<str> = api.shared.node.as_str().into();
    let own = api.shared.snapshot().node_addresses.clone();
    let answer = api.writer.query(move |answers| explain(answers, node, &own, &question)).await?;
    answer.map(Json).map_err(|field| refuse(&field))
}

fn refuse(field: &FieldError) -> Refusal {
    Refusal::field(format!("explain: {field}"), field)
}

fn question(query: &ExplainQuery) -> Result<Question, FieldError> {
    let target = |field: &str, text: &str| {
        text.parse::<Target>().map_err(|cause| FieldError::new(field, cause))
    };
    let family = query.family.map(|number| {
        let family = Family::from_number(number.into());
        family.ok_or_else(|| FieldError::new("family", format!("must be 4 or 6, is {number}")))
    });
    Ok(Question {
        from: target("from", &query.from)?,
        to: target("to", &query.to)?,
        transport: reach::transport(query.protocol.as_deref().unwrap_or("TCP"), query.port)?,
        family: family.transpose()?,
    })
}

fn explain(
    answers: &QueryContext<'_>,
    node: Arc<str>,
    own: &BTreeSet<Net>,
    question: &Question,
) -> Result<Explanation, FieldError> {
    let topology = Nodes { answers, node, own };
    let reach = Reach {
        index: answers.index,
        services: answers.services.table(),
        engine: answers.engine,
        topology: &topology,
    };
    let answer = reach.answer(question).map_err(|Unanswerable { field, cause }| {
        let field = match field {
            Field::From => "from",
            Field::To => "to",
            Field::Port => "port",
            Field::Protocol => "protocol",
        };
        FieldError::new(field, cause)
    })?;
    Ok(answer.explanation(question))
}

/// What this node knows of nodes: its own addresses from the kernel, others' from their pods.
struct Nodes<'a> {
    answers: &'a QueryContext<'a>,
    node: Arc<str>,
    own: &'a BTreeSet<Net>,
}

impl Topology for Nodes<'_> {
    fn node_at(&self, address: IpAddr) -> Option<NodeRef> {
        match holds(self.own, address) {
            true => Some(NodeRef(Some(self.node.clone()))),
            false => self.index().node_at(address),
        }
    }

    fn addresses_of_node(&self, node: &NodeRef) -> Vec<IpAddr> {
        let Some(name) = &node.0 else { return Vec::new() };
        let known = self.index().addresses_of_node(name);
        if !known.is_empty() || *name != self.node {
            return known;
        }
        let hosts = self.own.iter().filter(|(net, length)| *length == host_length(*net));
        hosts.map(|(address, _)| *address).filter(|address| is_routed(*address)).collect()
    }

    /// The gates of this node know its addresses, not its name. What other nodes' gates know of theirs is not known
    /// here.
    fn is_own_node(&self, pod: &ObjectKey, node: &NodeRef, source: IpAddr) -> bool {
        if self.answers.engine.endpoints_of(pod).next().is_some() {
            return holds(self.own, source);
        }
        let of = self.index().pod(pod).and_then(|pod| pod.node.as_ref());
        of.is_some() && of == node.0.as_ref()
    }
}

impl Nodes<'_> {
    fn index(&self) -> &Index {
        self.answers.index
    }
}

fn host_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether packets to pods can have this source.
fn is_routed(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !is_link_local
}
