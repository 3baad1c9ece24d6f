//! `GET /v1/endpoints` and `/v1/endpoints/{namespace}/{pod}`.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{Path, State};
use podgate_bpf::abi::{PolicyKey, Share};
use podgate_contract::api::{
    Allowed, Endpoint, EndpointDetail, EndpointState, EntryVerdict, Isolation, PeerSet,
};
use podgate_policy::model::Direction;
use podgate_policy::tables::{Class, Effect, Entry, RuleId, RuleOrigin, Table};

use super::policies::policy_name;
use super::{Api, Refusal};
use crate::encode;
use crate::shares;
use crate::snapshot::{self, EndpointSnapshot, NodeState, Snapshot};
use crate::writer::QueryContext;

/// Members of a class that are named.
const NAMED: usize = 100;

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Endpoint>>, Refusal> {
    let snapshot = api.shared.snapshot();
    let shared = api.shared.clone();
    // shares and gates are read from the kernel
    let described = move || {
        let shares = shared.datapath.maps.flow_table().shares()?;
        let describe = |endpoint| describe(&shared, endpoint, &shares);
        Ok(snapshot.endpoints.values().map(describe).collect())
    };
    match tokio::task::spawn_blocking(described).await {
        Ok(Ok(endpoints)) => Ok(Json(endpoints)),
        Ok(Err(error)) => Err(Refusal::internal(podgate_bpf::Error::to_string(&error))),
        Err(error) => Err(Refusal::internal(format!("list endpoints: {error}"))),
    }
}

pub(super) async fn get(
    State(api): State<Api>,
    Path((namespace, pod)): Path<(String, String)>,
) -> Result<Json<Vec<EndpointDetail>>, Refusal> {
    let snapshot = api.shared.snapshot();
    let shared = api.shared.clone();
    let wanted = format!("{namespace}/{pod}");
    let classes = classes(snapshot.endpoints.values().filter(|endpoint| endpoint.name() == wanted));
    let members = api.writer.query(move |answers| members(answers, &classes)).await?;
    // hit counters are read from the kernel
    let details = tokio::task::spawn_blocking(move || {
        let shares = shared.datapath.maps.flow_table().shares()?;
        let of = snapshot.endpoints.values().filter(|endpoint| endpoint.name() == wanted);
        let details = of.map(|endpoint| {
            let allowed = match &endpoint.table {
                Some(table) => allowed(&shared, &snapshot, endpoint, table, &members)?,
                None => Vec::new(),
            };
            Ok(EndpointDetail { endpoint: describe(&shared, endpoint, &shares), allowed })
        });
        details.collect::<podgate_bpf::Result<Vec<_>>>()
    });
    match details.await {
        Ok(Ok(details)) if details.is_empty() => Err(Refusal::not_found(format!(
            "find endpoint {namespace}/{pod}: the pod has no gated interface on this node"
        ))),
        Ok(Ok(details)) => Ok(Json(details)),
        Ok(Err(error)) => Err(Refusal::internal(error.to_string())),
        Err(error) => Err(Refusal::internal(format!("read endpoint {namespace}/{pod}: {error}"))),
    }
}

fn describe(
    shared: &NodeState,
    endpoint: &EndpointSnapshot,
    shares: &BTreeMap<u32, Share>,
) -> Endpoint {
    let table = endpoint.table.as_deref();
    let registration = &endpoint.registration;
    let pod = registration.pod.as_ref();
    let isolation = |direction| {
        let policies = table.map(|table| table.isolating(direction)).unwrap_or_default();
        let policies: Vec<String> = policies.iter().map(ToString::to_string).collect();
        let restricted = table.is_some_and(|table| restricts(table, direction));
        Isolation { isolated: !policies.is_empty(), restricted, policies }
    };
    Endpoint {
        namespace: pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
        name: pod.map(|pod| pod.name.clone()).unwrap_or_default(),
        uid: pod.map(|pod| pod.uid.clone()).unwrap_or_default(),
        ifindex: registration.ifindex,
        host_interface: registration.host_interface.clone(),
        gate: shared
            .datapath
            .verify(registration.ifindex)
            .map_or_else(|_| String::new(), |attached| attached.to_string()),
        interface: registration.interface.clone(),
        container_id: registration.container_id.clone(),
        addresses: registration.addresses.clone(),
        state: match endpoint.state {
            snapshot::EndpointState::Enforced => EndpointState::Enforced,
            snapshot::EndpointState::Pending(_) => EndpointState::Pending,
            snapshot::EndpointState::Degraded(_) => EndpointState::Degraded,
        },
        reason: endpoint.state.reason().unwrap_or_default().to_owned(),
        startup: registration.startup.name().to_owned(),
        ingress: isolation(Direction::Ingress),
        egress: isolation(Direction::Egress),
        rules: endpoint.rules,
        share: shares::of(shares, endpoint),
    }
}

/// Whether an entry of a table denies something, which those of NetworkPolicies alone never do.
fn restricts(table: &Table, direction: Direction) -> bool {
    let mut entries = table.entries.iter().filter(|(entry, _)| entry.direction == direction);
    table.ranked && entries.any(|(_, decision)| !decision.effect.passes())
}

/// The classes of peers that their tables speak of.
pub(super) fn classes<'a>(
    endpoints: impl Iterator<Item = &'a EndpointSnapshot>,
) -> BTreeSet<Class> {
    let tables = endpoints.filter_map(|endpoint| endpoint.table.as_ref());
    tables.flat_map(|table| table.entries.keys()).map(|entry| entry.class).collect()
}

/// Everything that an endpoint's table allows, with the hits that the kernel counted.
pub(super) fn allowed(
    shared: &NodeState,
    snapshot: &Snapshot,
    endpoint: &EndpointSnapshot,
    table: &Table,
    members: &Members,
) -> podgate_bpf::Result<Vec<Allowed>> {
    let registration = &endpoint.registration;
    let hits: BTreeMap<PolicyKey, u64> =
        match shared.datapath.maps.policy_map(registration.ifindex)? {
            Some(map) => map.entries()?.into_iter().map(|(key, value)| (key, value.hits)).collect(),
            None => BTreeMap::new(),
        };
    let allowed = table.entries.iter().map(|(entry, decision)| {
        let keys = encode::keys(registration.owner, entry);
        let origin = snapshot.origins.get(decision.rule);
        Allowed {
            direction: entry.direction,
            peers: peers(entry, members),
            ports: entry.ports.to_string(),
            verdict: verdict(decision.effect),
            rule: rule_name(origin.as_deref(), decision.rule),
            policy: match origin.as_deref() {
                Some(RuleOrigin::Policy { policy, .. }) => Some(policy_name(policy)),
                _ => None,
            },
            hits: keys.iter().filter_map(|key| hits.get(key)).sum(),
        }
    });
    Ok(allowed.collect())
}

fn verdict(effect: Effect) -> EntryVerdict {
    match effect {
        Effect::Allow => EntryVerdict::Allow,
        Effect::Audit => EntryVerdict::Audit,
        Effect::Deny => EntryVerdict::Deny,
        Effect::Reject => EntryVerdict::Reject,
    }
}

fn rule_name(origin: Option<&RuleOrigin>, rule: RuleId) -> String {
    origin.map_or_else(|| format!("rule {}", rule.0), ToString::to_string)
}

/// Who is in a class, for people: the first of them, and how many there are.
pub(super) type Members = BTreeMap<Class, (Vec<String>, usize)>;

pub(super) fn members(answers: &QueryContext<'_>, of: &BTreeSet<Class>) -> Members {
    let mut members = Members::new();
    let mut add = |class: Class, name: &dyn Fn() -> String| {
        if !of.contains(&class) {
            return;
        }
        let (named, count) = members.entry(class).or_default();
        *count += 1;
        if *count <= NAMED {
            named.push(name());
        }
    };
    for (address, class) in &answers.compiled().hosts {
        add(*class, &|| match answers.index.owner_of(*address) {
            Some(pod) => format!("{} ({address})", pod.key),
            None => address.to_string(),
        });
    }
    for (prefix, class) in &answers.compiled().nets {
        add(*class, &|| prefix.to_string());
    }
    members
}

fn peers(entry: &Entry, members: &Members) -> PeerSet {
    if entry.class == Class::ANY {
        return PeerSet::Any;
    }
    let (members, count) = members.get(&entry.class).cloned().unwrap_or_default();
    PeerSet::Of { class: entry.class.0, members, count }
}
