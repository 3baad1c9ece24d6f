//! `GET` and `DELETE /v1/audit`: what would have been denied.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use podgate_contract::api::{Audit, AuditQuery, AuditedFlows};
use podgate_policy::model::Labels;

use super::{Api, Refusal, enforcement::enforcement};
use crate::audit::{Peer, Row};
use crate::events::{lost, now};

pub(super) async fn get(
    State(api): State<Api>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<Audit>, Refusal> {
    let Query(query) =
        query.map_err(|error| Refusal::malformed(format!("read query: {}", error.body_text())))?;
    Ok(Json(listing(&api, &query)?))
}

/// Forgets what was seen, so that what follows is what a changed policy would deny.
pub(super) async fn delete(State(api): State<Api>) -> Result<Json<Audit>, Refusal> {
    api.shared.audit.begin(now(), lost_now(&api)?);
    Ok(Json(listing(&api, &AuditQuery::default())?))
}

fn lost_now(api: &Api) -> Result<u64, Refusal> {
    lost(&api.shared).map_err(|error| Refusal::internal(error.to_string()))
}

fn listing(api: &Api, query: &AuditQuery) -> Result<Audit, Refusal> {
    let listing = api.shared.audit.listing();
    let mut flows: Vec<_> =
        listing.rows.into_iter().map(row).filter(|row| is_wanted(row, query)).collect();
    flows.sort_by_key(|row| std::cmp::Reverse(row.flows));
    Ok(Audit {
        mode: enforcement(api.shared.datapath.maps.control().mode()),
        since: listing.since,
        lost: lost_now(api)?.saturating_sub(listing.lost_before),
        unlisted: listing.unlisted,
        flows,
    })
}

fn row(row: Row) -> AuditedFlows {
    let Row { named, first, last, flows } = row;
    let pair = named.pair;
    AuditedFlows {
        allowable: pair.is_allowable(),
        pod: pair.pod,
        pod_labels: labels(&named.pod_labels),
        direction: pair.direction,
        peer: match pair.peer {
            Peer::Pod(name) => Some(name),
            Peer::Address(_) => None,
        },
        peer_labels: labels(&named.peer_labels),
        peer_address: named.peer_address,
        protocol: pair.protocol,
        port: pair.port,
        reason: pair.reason.to_owned(),
        rule: pair.rule.map(|rule| rule.to_string()),
        policies: pair.policies.iter().map(ToString::to_string).collect(),
        first,
        last,
        flows,
    }
}

fn labels(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn is_wanted(row: &AuditedFlows, query: &AuditQuery) -> bool {
    let AuditQuery { policy, namespace, pod } = query;
    let of_namespace =
        |wanted: &String| row.pod.split_once('/').is_some_and(|(namespace, _)| namespace == wanted);
    policy.as_ref().is_none_or(|policy| row.policies.contains(policy))
        && namespace.as_ref().is_none_or(of_namespace)
        && pod.as_ref().is_none_or(|pod| row.pod == *pod || row.peer.as_ref() == Some(pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_contract::api::Direction;

    #[test]
    fn a_query_asks_for_policy_namespace_and_either_end() {
        let row = AuditedFlows {
            pod: "shop/db".into(),
            pod_labels: BTreeMap::new(),
            direction: Direction::Ingress,
            peer: Some("web/front".into()),
            peer_labels: BTreeMap::new(),
            peer_address: "10.0.0.2".parse().unwrap(),
            protocol: "TCP".into(),
            port: 5432,
            reason: "policy".into(),
            rule: None,
            policies: vec!["shop/deny".into(), "base".into()],
            allowable: true,
            first: 1.0,
            last: 2.0,
            flows: 3,
        };
        let query = |policy: &str, namespace: &str, pod: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            AuditQuery { policy: some(policy), namespace: some(namespace), pod: some(pod) }
        };
        for (policy, namespace, pod, wanted) in [
            ("", "", "", true),
            ("shop/deny", "", "", true),
            ("base", "shop", "web/front", true),
            ("deny", "", "", false),
            ("", "web", "", false),
            ("", "", "shop/db", true),
            ("", "", "shop/d", false),
            ("base", "shop", "web/other", false),
        ] {
            assert_eq!(is_wanted(&row, &query(policy, namespace, pod)), wanted, "{policy} {pod}");
        }
    }
}
