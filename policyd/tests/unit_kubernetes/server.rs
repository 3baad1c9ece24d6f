//! A fake API server with a script of responses, request by request.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::body::Body as Answered;
use futures::StreamExt;
use futures::channel::mpsc;
use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

/// A collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    Pods,
    Namespaces,
    Policies,
    Services,
    Slices,
    Nodes,
    ClusterPolicies,
    TrafficPolicies,
    /// In the version that is asked for only where the server does not have the first.
    LaterClusterPolicies,
}

impl Of {
    /// Those that a server has unless a test says otherwise.
    pub(crate) const ALL: [Self; 8] = [
        Self::Pods,
        Self::Namespaces,
        Self::Policies,
        Self::Services,
        Self::Slices,
        Self::Nodes,
        Self::ClusterPolicies,
        Self::TrafficPolicies,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Pods => "/api/v1/pods",
            Self::Namespaces => "/api/v1/namespaces",
            Self::Policies => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::Services => "/api/v1/services",
            Self::Slices => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::Nodes => "/api/v1/nodes",
            Self::ClusterPolicies => {
                "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
            }
            Self::TrafficPolicies => "/apis/podgate.io/v1alpha1/podtrafficpolicies",
            Self::LaterClusterPolicies => {
                "/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies"
            }
        }
    }
}

/// An answer to one request.
pub(crate) enum Answer {
    /// A page of a list: its items, its version, and how to ask for the next one.
    Page { items: Vec<Value>, version: &'static str, next: Option<&'static str> },
    /// No.
    Status(u16, &'static str),
    /// The connection fails.
    Refused,
    /// Nothing at all, for ever.
    Silence,
    /// A watch with these events, which then stays open for more, or ends.
    Watch(Vec<Value>, Then),
}

/// What a watch does after the events it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    StayOpen,
    End,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) of: Of,
    pub(crate) watch: bool,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) accept: String,
    /// Since the test began, on tokio's clock.
    pub(crate) after: std::time::Duration,
}

#[derive(Default)]
struct State {
    answers: BTreeMap<Of, VecDeque<Answer>>,
    asked: Vec<Asked>,
    open: BTreeMap<Of, mpsc::UnboundedSender<Result<String, std::io::Error>>>,
    /// Requests that are never answered.
    silenced: Vec<mock::SendResponse<Response<Answered>>>,
}

/// The server. What is not scripted is answered as by an empty cluster in which nothing happens.
#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
}

impl Server {
    /// A server and its client.
    pub(crate) fn start() -> (Self, Client) {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Answered>>();
        let server = Self { state: Arc::default() };
        let (answering, began) = (server.clone(), tokio::time::Instant::now());
        tokio::spawn(async move {
            while let Some((request, respond)) = handle.next_request().await {
                answering.answer(&request, respond, began);
            }
        });
        (server, Client::new(service, "default"))
    }

    /// The next requests for this collection get these answers.
    pub(crate) fn script(&self, of: Of, answers: impl IntoIterator<Item = Answer>) {
        self.state.lock().unwrap().answers.entry(of).or_default().extend(answers);
    }

    /// Forgets the answers that are left.
    pub(crate) fn clear(&self, of: Of) {
        self.state.lock().unwrap().answers.remove(&of);
    }

    /// Says something in the watch that is open.
    pub(crate) fn say(&self, of: Of, event: &Value) {
        let state = self.state.lock().unwrap();
        let open = state.open.get(&of).expect("no watch is open");
        open.unbounded_send(Ok(format!("{event}\n"))).expect("the watch was left");
    }

    /// Ends the open watch, by a failure of the connection.
    pub(crate) fn cut(&self, of: Of) {
        let open = self.state.lock().unwrap().open.remove(&of).expect("no watch is open");
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        open.unbounded_send(Err(error)).expect("the watch was left");
    }

    /// Every request so far for this collection.
    pub(crate) fn asked(&self, of: Of) -> Vec<Asked> {
        self.state.lock().unwrap().asked.iter().filter(|asked| asked.of == of).cloned().collect()
    }

    /// Its lists.
    pub(crate) fn lists(&self, of: Of) -> Vec<Asked> {
        self.asked(of).into_iter().filter(|asked| !asked.watch).collect()
    }

    /// Its watches.
    pub(crate) fn watches(&self, of: Of) -> Vec<Asked> {
        self.asked(of).into_iter().filter(|asked| asked.watch).collect()
    }

    fn answer(
        &self,
        request: &Request<Body>,
        respond: mock::SendResponse<Response<Answered>>,
        began: tokio::time::Instant,
    ) {
        let mut state = self.state.lock().unwrap();
        let path = request.uri().path();
        let of = Of::ALL
            .into_iter()
            .chain([Of::LaterClusterPolicies])
            .find(|of| of.path() == path)
            .unwrap_or_else(|| panic!("asked for {path}"));
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let watch = query.contains_key("watch");
        let accept = request.headers().get("accept").map_or("", |accept| accept.to_str().unwrap());
        state.asked.push(Asked {
            of,
            watch,
            query,
            accept: accept.to_owned(),
            after: began.elapsed(),
        });
        let scripted = state.answers.entry(of).or_default().pop_front();
        let absent = || Answer::Status(404, "NotFound");
        let answer = scripted.unwrap_or(match watch {
            _ if of == Of::LaterClusterPolicies => absent(),
            true => Answer::Watch(vec![], Then::StayOpen),
            false => Answer::Page { items: vec![], version: "1", next: None },
        });
        match answer {
            Answer::Page { items, version, next } => {
                assert!(!watch, "a page for a watch of {of:?}");
                let list = json!({
                    "apiVersion": "v1", "kind": "List",
                    "metadata": {"resourceVersion": version, "continue": next.unwrap_or_default()},
                    "items": items,
                });
                respond.send_response(Response::new(list.to_string().into()));
            }
            Answer::Status(code, reason) => {
                let status = status(code, reason).to_string();
                let mut response = Response::new(status.into());
                *response.status_mut() = StatusCode::from_u16(code).unwrap();
                respond.send_response(response);
            }
            Answer::Refused => {
                respond.send_error(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
            }
            Answer::Silence => state.silenced.push(respond),
            Answer::Watch(events, then) => {
                assert!(watch, "a watch for a list of {of:?}");
                let (send, receive) = mpsc::unbounded();
                for event in events {
                    send.unbounded_send(Ok(format!("{event}\n"))).unwrap();
                }
                match then {
                    Then::StayOpen => drop(state.open.insert(of, send)),
                    Then::End => drop(state.open.remove(&of)),
                }
                respond.send_response(Response::new(Answered::from_stream(receive.boxed())));
            }
        }
    }
}

/// A `Status` object.
pub(crate) fn status(code: u16, reason: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {},
        "status": "Failure", "message": format!("{reason}, says the test"), "reason": reason, "code": code,
    })
}

/// A watch event.
pub(crate) fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// A bookmark.
pub(crate) fn bookmark(version: &str) -> Value {
    event(
        "BOOKMARK",
        &json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version}}),
    )
}
