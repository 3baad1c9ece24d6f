//! `GET /v1/counters`: what the programs counted.

use axum::Json;
use axum::extract::State;
use podgate_bpf::abi::{Direction, Reason};
use podgate_bpf::maps::Counters as Counted;
use podgate_contract::api::{Counters, PacketCount, RuleCount, Verdict};

use super::{Api, Refusal, endpoints};
use crate::encode::direction_of;
use crate::writer::QueryContext;

/// Every direction and reason with its packets and bytes, whether there were any or not.
pub(crate) fn packets(counted: &Counted) -> impl Iterator<Item = PacketCount> {
    let each =
        |direction: &'static Direction| Reason::ALL.iter().map(move |reason| (direction, reason));
    Direction::ALL.iter().flat_map(each).map(|(direction, reason)| {
        let count = counted.get(*direction, *reason);
        PacketCount {
            direction: direction_of(*direction),
            verdict: if reason.is_denial() { Verdict::Deny } else { Verdict::Allow },
            reason: reason.name().to_owned(),
            packets: count.packets,
            bytes: count.bytes,
        }
    })
}

pub(super) async fn get(State(api): State<Api>) -> Result<Json<Counters>, Refusal> {
    let snapshot = api.shared.snapshot();
    let classes = endpoints::classes(snapshot.endpoints.values());
    let of = move |answers: &QueryContext<'_>| endpoints::members(answers, &classes);
    let members = api.writer.query(of).await?;
    let shared = api.shared.clone();
    let read = move || -> podgate_bpf::Result<Counters> {
        let packets = packets(&shared.datapath.maps.counters()?).collect();
        let mut rules = Vec::new();
        for endpoint in snapshot.endpoints.values() {
            let Some(table) = &endpoint.table else { continue };
            for allowed in endpoints::allowed(&shared, &snapshot, endpoint, table, &members)? {
                rules.push(RuleCount { pod: endpoint.name(), allowed });
            }
        }
        Ok(Counters { packets, rules })
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(counters)) => Ok(Json(counters)),
        Ok(Err(error)) => Err(Refusal::internal(error.to_string())),
        Err(error) => Err(Refusal::internal(format!("read the counters: {error}"))),
    }
}
