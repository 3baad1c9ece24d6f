use http::{Request, Response, StatusCode};
use kube::client::Body;
use podgate_policy::convert::{self, FieldError};
use podgate_policy::model::ClusterPolicyId;
use podgate_policy::object::Event;
use tower_test::mock;

use super::*;
use crate::sources::kubernetes::Fallback;

const VERSION: &str = ClusterPolicy::API.version;

type Server = mock::Handle<Request<Body>, Response<Body>>;

fn id(name: &str) -> ObjectId {
    ObjectId::ClusterPolicy(ClusterPolicyId { name: name.into(), source: "kubernetes".into() })
}

fn observed(uid: &str, generation: i64, accepted: Option<Condition>) -> Observed {
    Observed { uid: uid.into(), generation, accepted }
}

fn accepting() -> (Accepting, Server) {
    let (service, server) = mock::pair();
    (
        Accepting { spread: Duration::ZERO, ..Accepting::new(Client::new(service, "default")) },
        server,
    )
}

fn understood(generation: i64) -> Wanted {
    Wanted {
        status: "True",
        reason: "Understood",
        message: "podgate understands every rule".into(),
        generation,
    }
}

/// Answers the next request with this code, and returns it.
fn serve(mut server: Server, code: u16) -> tokio::task::JoinHandle<(String, Value, Server)> {
    tokio::spawn(async move {
        let (request, respond) = server.next_request().await.unwrap();
        let path = format!("{} {}", request.method(), request.uri());
        let body = request.into_body().collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let answer = match code {
            200 => body.clone(),
            _ => {
                json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "x", "code": code})
            }
        };
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        respond.send_response(response);
        (path, body, server)
    })
}

#[test]
fn it_says_what_every_node_would_say() {
    let mut index = Index::new();
    for (name, priority, action) in
        [("good", 5, "Deny"), ("equal", 5, "Deny"), ("partly", 6, "Log")]
    {
        let object = json!({"metadata": {"name": name}, "spec": {
            "tier": "Admin", "priority": priority, "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"namespaces": {}}]}],
        }});
        let object = serde_json::from_value(object).unwrap();
        index.apply(Event::from(convert::cluster_policy("kubernetes", &object).unwrap()));
    }
    let rejected = |fallback| Rejected {
        id: Some(id("bad")),
        uid: "u".into(),
        field: FieldError::new("spec.priority", "must be given"),
        fallback,
    };
    let all = ["good", "equal", "partly", "bad", "new"];
    let present: ObservedMap = all.map(|name| (id(name), observed("u", 3, None))).into();
    let said = |fallback| wanted(&present, &index, &[rejected(fallback)]);
    let of = said(Fallback::LeftOut);
    assert_eq!(of[&id("good")], understood(3));
    assert_eq!(of[&id("equal")], understood(3), "an Event says that its name decides");
    assert_eq!((of[&id("partly")].status, of[&id("partly")].reason), ("False", "PartlyUnderstood"));
    assert!(of[&id("partly")].message.starts_with("spec.ingress[0].action: must be"));
    assert_eq!((of[&id("bad")].status, of[&id("bad")].reason), ("False", "NotUnderstood"));
    assert_eq!(of[&id("bad")].message, "spec.priority: must be given");
    assert!(!of.contains_key(&id("new")), "the writer does not have it yet");
    assert_eq!(of, said(Fallback::LastGood), "what stays differs from node to node");
}

#[tokio::test(start_paused = true)]
async fn it_is_written_once_and_only_if_no_other_node_has() {
    let (mut accepting, server) = accepting();
    let wanted = |generation| BTreeMap::from([(id("p"), understood(generation))]);
    let present = |accepted| ObservedMap::from([(id("p"), observed("u-1", 7, accepted))]);
    accepting.write(VERSION, &present(None), wanted(7)).await;
    tokio::time::advance(MIN_DELAY).await;
    let served = serve(server, 200);
    accepting.write(VERSION, &present(None), wanted(7)).await;
    let (path, body, server) = served.await.unwrap();
    assert_eq!(
        path,
        "PATCH /apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies/p/status?&force=true&fieldManager=podgate"
    );
    assert_eq!(body["metadata"], json!({"name": "p", "uid": "u-1"}));
    let mut condition = body["status"]["conditions"][0].clone();
    let since = condition.as_object_mut().unwrap().remove("lastTransitionTime").unwrap();
    assert!(since.as_str().unwrap().ends_with('Z'), "{since}");
    assert_eq!(
        condition,
        json!({"type": "Accepted", "status": "True", "reason": "Understood",
               "message": "podgate understands every rule", "observedGeneration": 7})
    );
    // not again, whatever becomes of it; a request would wait for ever
    tokio::time::advance(RETRY * 10).await;
    accepting.write(VERSION, &present(None), wanted(7)).await;

    // another generation, which another node has written meanwhile
    let condition = |generation| Condition {
        status: "True".into(),
        reason: "Understood".into(),
        message: "podgate understands every rule".into(),
        generation,
        since: "2026-01-01T00:00:00Z".into(),
    };
    accepting.write(VERSION, &present(Some(condition(7))), wanted(8)).await;
    accepting.write(VERSION, &present(Some(condition(8))), wanted(8)).await;
    tokio::time::advance(MIN_DELAY).await;
    accepting.write(VERSION, &present(Some(condition(8))), wanted(8)).await;

    // one that no other has: its time is that of the last change of status
    accepting.write(VERSION, &present(Some(condition(8))), wanted(9)).await;
    tokio::time::advance(MIN_DELAY).await;
    let served = serve(server, 200);
    accepting.write(VERSION, &present(Some(condition(8))), wanted(9)).await;
    let (_, body, _) = served.await.unwrap();
    let condition = &body["status"]["conditions"][0];
    assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_is_asked_again_and_one_that_refuses_is_not() {
    let (mut accepting, server) = accepting();
    let wanted = || BTreeMap::from([(id("p"), understood(1))]);
    let present = ObservedMap::from([(id("p"), observed("u", 1, None))]);
    accepting.write(VERSION, &present, wanted()).await;
    tokio::time::advance(MIN_DELAY).await;
    let served = serve(server, 500);
    accepting.write(VERSION, &present, wanted()).await;
    let (_, _, server) = served.await.unwrap();
    accepting.write(VERSION, &present, wanted()).await;
    tokio::time::advance(RETRY * 2).await;
    let served = serve(server, 403);
    accepting.write(VERSION, &present, wanted()).await;
    let (_, _, _server) = served.await.unwrap();
    tokio::time::advance(RETRY * 10).await;
    accepting.write(VERSION, &present, wanted()).await;
    assert!(accepting.policies[&id("p")].due.is_none());
    accepting.write(VERSION, &ObservedMap::new(), BTreeMap::new()).await;
    assert!(accepting.policies.is_empty());
}
