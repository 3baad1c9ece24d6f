//! Sends notices as Events.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use podgate_policy::model::{ClusterPolicy, PodTrafficPolicy};
use podgate_policy::object::Resource;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::ReportCounts;
use super::notice::{About, Dedupe, Notice, Severity};
use crate::backoff::Backoff;

/// The reporting controller; the API requires a qualified name.
const CONTROLLER: &str = "podgate.io/policyd";
/// Largest number of Events sent at once.
const BURST: u32 = 20;
/// Interval of further Events.
const EVENT_INTERVAL: Duration = Duration::from_millis(200);
/// How long the API server may take for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Delays after a request that failed.
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Largest length of a note, bytes; the API server accepts 1024.
const MAX_NOTE: usize = 1000;

pub(super) struct Publisher {
    client: Client,
    node: String,
    counts: Arc<ReportCounts>,
    rate_limit: RateLimit,
}

impl Publisher {
    pub(super) fn new(client: Client, node: String, counts: Arc<ReportCounts>) -> Self {
        Self { client, node, counts, rate_limit: RateLimit::new() }
    }

    /// Runs until all senders are gone.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Notice>) {
        while let Some(notice) = waiting.recv().await {
            self.publish(notice).await;
        }
    }

    /// Publishes one, and tries again until the API server has answered.
    async fn publish(&mut self, notice: Notice) {
        let event = event(&notice, &self.node, Timestamp::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let counts = self.counts.clone();
        let mut backoff = RETRY_BACKOFF;
        loop {
            self.rate_limit.wait().await;
            let outcome = match timeout(
                REQUEST_TIMEOUT,
                events.create(&PostParams::default(), &event),
            )
            .await
            {
                Ok(Ok(_)) => Some(&counts.sent),
                // another node, or an earlier policyd, has sent the same one
                Ok(Err(Error::Api(status))) if status.code == 409 => Some(&counts.sent),
                // e.g. its namespace is being deleted, or RBAC does not allow it
                Ok(Err(Error::Api(status))) if status.code / 100 == 4 && status.code != 429 => {
                    tracing::debug!(%status.message, ?notice, "the API server refuses an event");
                    Some(&counts.refused)
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "cannot send an event, trying again");
                    None
                }
                Err(_) => {
                    tracing::debug!("cannot send an event: no answer, trying again");
                    None
                }
            };
            if let Some(count) = outcome {
                count.fetch_add(1, Ordering::Relaxed);
                return;
            }
            sleep(backoff.next_jittered()).await;
        }
    }
}

/// The event of a notice.
fn event(notice: &Notice, node: &str, now: Timestamp) -> Event {
    let regarding = regarding(&notice.about, node);
    let name = regarding.name.as_deref().unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    (notice.reason, &notice.note, &regarding.uid).hash(&mut hasher);
    match notice.dedupe {
        Dedupe::Cluster(round) => round.hash(&mut hasher),
        Dedupe::Node(round) => (node, round).hash(&mut hasher),
        Dedupe::No => (node, now.as_nanosecond()).hash(&mut hasher),
    }
    let note = match notice.dedupe {
        Dedupe::Cluster(_) => notice.note.clone(),
        Dedupe::Node(_) | Dedupe::No => format!("{} (node {node})", notice.note),
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:016x}", truncate(name, 230), hasher.finish())),
            // events of objects without a namespace belong into "default"
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        action: Some("Enforce".to_owned()),
        reason: Some(notice.reason.to_owned()),
        note: Some(truncate(&note, MAX_NOTE).to_owned()),
        type_: Some(
            match notice.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .to_owned(),
        ),
        event_time: Some(MicroTime(now)),
        regarding: Some(regarding),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(truncate(node, 128).to_owned()),
        ..Event::default()
    }
}

fn regarding(about: &About, node: &str) -> ObjectReference {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    match about {
        About::Pod(pod) => ObjectReference {
            api_version: some("v1"),
            kind: some("Pod"),
            namespace: some(&pod.key.namespace),
            name: some(&pod.key.name),
            uid: some(&pod.uid),
            ..ObjectReference::default()
        },
        About::Policy { key, uid } => ObjectReference {
            api_version: some("networking.k8s.io/v1"),
            kind: some("NetworkPolicy"),
            namespace: some(&key.namespace),
            name: some(&key.name),
            uid: some(uid),
            ..ObjectReference::default()
        },
        About::ClusterPolicy { name, uid } => ObjectReference {
            api_version: some(ClusterPolicy::API.version),
            kind: some(ClusterPolicy::API.kind),
            name: some(name),
            uid: some(uid),
            ..ObjectReference::default()
        },
        About::PodTrafficPolicy { key, uid } => ObjectReference {
            api_version: some(PodTrafficPolicy::API.version),
            kind: some(PodTrafficPolicy::API.kind),
            namespace: some(&key.namespace),
            name: some(&key.name),
            uid: some(uid),
            ..ObjectReference::default()
        },
        About::Namespace(name) => ObjectReference {
            api_version: some("v1"),
            kind: some("Namespace"),
            name: some(name),
            ..ObjectReference::default()
        },
        // the kubelet's events have the node's name as uid, and kubectl describe looks for these
        About::Node => ObjectReference {
            api_version: some("v1"),
            kind: some("Node"),
            name: some(node),
            uid: some(node),
            ..ObjectReference::default()
        },
    }
}

/// The beginning of a text, at most `most` bytes.
pub(super) fn truncate(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Token bucket: [`BURST`] Events at once, then one per [`EVENT_INTERVAL`].
struct RateLimit {
    left: u32,
    filled: Instant,
}

impl RateLimit {
    fn new() -> Self {
        Self { left: BURST, filled: Instant::now() }
    }

    async fn wait(&mut self) {
        let earned = self.filled.elapsed().as_millis() / EVENT_INTERVAL.as_millis();
        let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
        if earned > 0 {
            self.left = (self.left + earned).min(BURST);
            self.filled = Instant::now();
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => {
                sleep(EVENT_INTERVAL).await;
                self.filled = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::{Request, Response, StatusCode};
    use kube::client::Body;
    use podgate_policy::model::ObjectKey;
    use serde_json::{Value, json};
    use tower_test::mock;

    use super::*;
    use crate::report::PodRef;

    type Server = mock::Handle<Request<Body>, Response<Body>>;

    /// A publisher at work on these, its server, and what it counts.
    fn publishing(notices: Vec<Notice>) -> (Server, Arc<ReportCounts>) {
        let (service, server) = mock::pair();
        let counts = Arc::new(ReportCounts::default());
        let client = Client::new(service, "default");
        let publisher = Publisher::new(client, "n1".into(), counts.clone());
        let (queue, waiting) = mpsc::channel(1000);
        for notice in notices {
            queue.try_send(notice).unwrap();
        }
        tokio::spawn(publisher.run(waiting));
        (server, counts)
    }

    async fn asked(server: &mut Server) -> (String, Value, mock::SendResponse<Response<Body>>) {
        let (request, respond) = server.next_request().await.unwrap();
        let path = format!("{} {}", request.method(), request.uri().path());
        let body = request.into_body().collect_bytes().await.unwrap();
        (path, serde_json::from_slice(&body).unwrap(), respond)
    }

    fn answer(respond: mock::SendResponse<Response<Body>>, code: u16, body: &Value) {
        let mut response = Response::new(Body::from(body.to_string().into_bytes()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        respond.send_response(response);
    }

    fn refuse(respond: mock::SendResponse<Response<Body>>, code: u16) {
        let status = json!({"status": "Failure", "message": "no", "reason": "x", "code": code});
        answer(respond, code, &status);
    }

    fn about_pod(name: &str) -> Notice {
        let key = ObjectKey::new("shop", name);
        Notice {
            about: About::Pod(PodRef { key, uid: "u1".into() }),
            severity: Severity::Normal,
            reason: "PolicyInForce",
            note: "in force".into(),
            dedupe: Dedupe::No,
        }
    }

    fn counted(counts: &ReportCounts) -> BTreeMap<&'static str, u64> {
        [("sent", &counts.sent), ("refused", &counts.refused), ("dropped", &counts.dropped)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
            .into()
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_names_its_object() {
        let node = Notice { about: About::Node, severity: Severity::Warning, ..about_pod("") };
        let (mut server, counts) = publishing(vec![about_pod("web"), node]);
        let (path, event, respond) = asked(&mut server).await;
        assert_eq!(path, "POST /apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(
            event["regarding"],
            json!({"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web", "uid": "u1"})
        );
        assert_eq!(event["type"], "Normal");
        assert_eq!(event["reason"], "PolicyInForce");
        assert_eq!(event["note"], "in force (node n1)");
        assert_eq!(event["reportingController"], "podgate.io/policyd");
        assert_eq!(event["reportingInstance"], "n1");
        assert!(event["eventTime"].is_string() && event["action"].is_string(), "{event}");
        assert!(event["metadata"]["name"].as_str().unwrap().starts_with("web."));
        answer(respond, 201, &event);

        let (path, event, respond) = asked(&mut server).await;
        assert_eq!(path, "POST /apis/events.k8s.io/v1/namespaces/default/events");
        assert_eq!(
            event["regarding"],
            json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"})
        );
        assert_eq!(event["type"], "Warning");
        answer(respond, 201, &event);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(counted(&counts)["sent"], 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_report_has_one_name() {
        let key = ObjectKey::new("shop", "p");
        let about = About::Policy { key, uid: "u".into() };
        let said = |round| Notice {
            about: about.clone(),
            dedupe: Dedupe::Cluster(round),
            ..about_pod("")
        };
        let name =
            |notice: &Notice, node: &str| event(notice, node, Timestamp::now()).metadata.name;
        assert_eq!(name(&said(1), "n1"), name(&said(1), "n2"));
        assert_ne!(name(&said(1), "n1"), name(&said(2), "n1"));
        assert_ne!(name(&about_pod("a"), "n1"), name(&about_pod("a"), "n2"));
        let lacks =
            |round| Notice { about: About::Node, dedupe: Dedupe::Node(round), ..about_pod("") };
        assert_eq!(name(&lacks(0), "n1"), name(&lacks(0), "n1"), "a policyd that starts again");
        assert_ne!(name(&lacks(0), "n1"), name(&lacks(0), "n2"));
        assert_ne!(name(&lacks(0), "n1"), name(&lacks(1), "n1"));
        let (mut server, counts) = publishing(vec![said(1)]);
        let (_, event, respond) = asked(&mut server).await;
        assert_eq!(event["note"], "in force", "it is true of all nodes");
        refuse(respond, 409);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(counted(&counts)["sent"], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_tried_again_and_one_that_refuses_is_not() {
        let (mut server, counts) = publishing(vec![about_pod("a"), about_pod("b")]);
        let (_, first, respond) = asked(&mut server).await;
        respond.send_error(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        let (_, again, respond) = asked(&mut server).await;
        assert_eq!(first, again);
        refuse(respond, 503);
        let (_, again, respond) = asked(&mut server).await;
        assert_eq!(first, again);
        refuse(respond, 403);
        let (_, second, respond) = asked(&mut server).await;
        assert_eq!(second["regarding"]["name"], "b");
        answer(respond, 201, &second);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(counted(&counts), [("sent", 1), ("refused", 1), ("dropped", 0)].into());
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_paced() {
        let many = 100;
        let (mut server, _counts) = publishing((0..many).map(|_| about_pod("a")).collect());
        let began = Instant::now();
        for _ in 0..many {
            let (_, event, respond) = asked(&mut server).await;
            answer(respond, 201, &event);
        }
        let took = began.elapsed();
        assert!(took >= EVENT_INTERVAL * (many - BURST - 2), "{took:?}");
        assert!(took <= EVENT_INTERVAL * many, "{took:?}");
    }

    #[test]
    fn long_texts_are_truncated() {
        let long = Notice { note: "ä".repeat(1000), ..about_pod(&"n".repeat(253)) };
        let event = event(&long, "n1", Timestamp::now());
        assert!(event.note.unwrap().len() <= 1024);
        assert!(event.metadata.name.unwrap().len() <= 253);
    }
}
