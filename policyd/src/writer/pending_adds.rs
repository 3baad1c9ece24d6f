//! CNI ADDs that wait until the policy of their interfaces is in force.

use podgate_contract::handshake::{EndpointRef, Response};
use tokio::sync::oneshot;

/// The pending ADDs. Each is answered once.
#[derive(Debug, Default)]
pub(super) struct PendingAdds {
    adds: Vec<Add>,
}

#[derive(Debug)]
struct Add {
    endpoints: Vec<EndpointRef>,
    reply: oneshot::Sender<Response>,
}

/// Whether the policy of an endpoint is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProgramState {
    /// It is.
    InForce,
    /// Not yet: the ADD keeps waiting.
    Pending,
    /// It cannot be programmed, for this reason.
    Failed(String),
}

impl PendingAdds {
    pub(super) fn push(&mut self, endpoints: Vec<EndpointRef>, reply: oneshot::Sender<Response>) {
        self.adds.push(Add { endpoints, reply });
    }

    /// Answers the ADDs of which every endpoint is in force or one has failed, and drops those whose plugin has hung up.
    pub(super) fn answer(&mut self, state: impl Fn(&EndpointRef) -> ProgramState) {
        for add in std::mem::take(&mut self.adds) {
            if add.reply.is_closed() {
                continue;
            }
            let mut response = Some(Response::Ok);
            for endpoint in &add.endpoints {
                match state(endpoint) {
                    ProgramState::InForce => {}
                    ProgramState::Pending => response = None,
                    ProgramState::Failed(message) => {
                        response = Some(Response::Error { message });
                        break;
                    }
                }
            }
            match response {
                // the receiver may just have timed out
                Some(response) => drop(add.reply.send(response)),
                None => self.adds.push(add),
            }
        }
    }
}
