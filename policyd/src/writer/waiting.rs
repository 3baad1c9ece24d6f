//! ADDs that wait for their policy.

use podgate_bpf::handshake::{EndpointRef, Response};
use tokio::sync::oneshot;

/// Plugins that wait. Each is answered once.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    adds: Vec<Add>,
}

#[derive(Debug)]
struct Add {
    endpoints: Vec<EndpointRef>,
    reply: oneshot::Sender<Response>,
}

/// How an endpoint stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its policy is in force.
    InForce,
    /// It may come to be.
    NotYet,
    /// It will not, for this reason.
    Failed(String),
}

impl Waiting {
    pub(super) fn push(&mut self, endpoints: Vec<EndpointRef>, reply: oneshot::Sender<Response>) {
        self.adds.push(Add { endpoints, reply });
    }

    /// Answers those whose endpoints all stand somewhere, and forgets those that nobody waits for.
    pub(super) fn answer(&mut self, standing: impl Fn(&EndpointRef) -> Standing) {
        for add in std::mem::take(&mut self.adds) {
            if add.reply.is_closed() {
                continue;
            }
            let mut response = Some(Response::Ok);
            for endpoint in &add.endpoints {
                match standing(endpoint) {
                    Standing::InForce => {}
                    Standing::NotYet => response = None,
                    Standing::Failed(message) => {
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
