//! `GET /v1/counters`: what the programs counted.

use axum::Json;
use axum::extract::State;
use podgate_bpf::abi::{Direction, Reason};
use podgate_bpf::maps::Counters as Counted;

use super::types::{Counters, PacketCount, RuleCount};
use super::{Api, Refusal, endpoints};
use crate::writer::Answers;

/// Every direction and reason with its packets and bytes, whether there were any or not.
pub(crate) fn packets(counted: &Counted) -> impl Iterator<Item = PacketCount> {
    let each =
        |direction: &'static Direction| Reason::ALL.iter().map(move |reason| (direction, reason));
    Direction::ALL.iter().flat_map(each).map(|(direction, reason)| {
        let count = counted.get(*direction, *reason);
        PacketCount {
            direction: direction.name().to_owned(),
            verdict: if reason.is_denial() { "deny" } else { "allow" }.to_owned(),
            reason: reason.name().to_owned(),
            packets: count.packets,
            bytes: count.bytes,
        }
    })
}

pub(super) async fn get(State(api): State<Api>) -> Result<Json<Counters>, Refusal> {
    let view = api.shared.view();
    let classes = endpoints::classes(view.endpoints.values());
    let of = move |answers: &Answers<'_>| endpoints::members(answers, &classes);
    let members = api.writer.ask(of).await?;
    let shared = api.shared.clone();
    let read = move || -> podgate_bpf::Result<Counters> {
        let packets = packets(&shared.gate.maps.counters()?).collect();
        let mut rules = Vec::new();
        for endpoint in view.endpoints.values() {
            let Some(table) = &endpoint.table else { continue };
            for allowed in endpoints::allowed(&shared, &view, endpoint, table, &members)? {
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
