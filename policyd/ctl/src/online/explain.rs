//! The question of `explain`, for policyd.

use podgate_contract::api::Explanation;
use podgate_policy::reach::Question;
use podgate_policy::tables::Transport;

use super::client::{Client, Server};
use crate::Failure;

pub(crate) fn explanation(server: &Server, question: &Question) -> Result<Explanation, Failure> {
    let Question { from, to, transport, family } = question;
    let transport = match transport {
        Transport::Port(protocol, port) => format!("port={port}&protocol={protocol}"),
        Transport::Number(protocol) => format!("protocol={protocol}"),
        Transport::Other => "protocol=ICMP".into(),
    };
    let family = family.map(|family| format!("&family={}", family.number())).unwrap_or_default();
    // names of objects and addresses hold nothing that a query must escape
    Client::new(server)?.get(&format!("/v1/explain?from={from}&to={to}&{transport}{family}"))
}
