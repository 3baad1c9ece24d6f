//! Kinds of policies that are not enforced: counted, where the cluster has them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body as Answered;
use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use podgate_manifests::unenforced::{Unenforced, UnenforcedKind};
use policyd::sources::Update;
use policyd::sources::kubernetes::follow_unenforced;
use serde_json::{Value, json};
use tower_test::mock;

use crate::server::status;

/// A server with the response `answer` for each path; returns the reports and the requested paths.
struct Followed {
    told: Arc<Mutex<Vec<Unenforced>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn follow(answer: impl Fn(&str) -> Value + Send + 'static) -> Followed {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Answered>>();
    let followed = Followed { told: Arc::default(), asked: Arc::default() };
    let (told, asked) = (followed.told.clone(), followed.asked.clone());
    tokio::spawn(async move {
        while let Some((request, respond)) = handle.next_request().await {
            let path = request.uri().to_string();
            let body = answer(&path);
            asked.lock().unwrap().push(path);
            let code = body["code"].as_u64().unwrap_or(200) as u16;
            let mut response = Response::new(Answered::from(body.to_string()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            respond.send_response(response);
        }
    });
    let sink = Arc::new(move |update| match update {
        Update::Unenforced(counts) => told.lock().unwrap().push(counts),
        other => panic!("{other:?}"),
    });
    tokio::spawn(follow_unenforced(Client::new(service, "default"), sink));
    followed
}

const GROUP: &str = "/apis/policy.networking.k8s.io";

fn group(versions: &[&str]) -> Value {
    let version = |version: &&str| json!({"groupVersion": format!("policy.networking.k8s.io/{version}"), "version": version});
    let versions: Vec<_> = versions.iter().map(version).collect();
    json!({"kind": "APIGroup", "name": "policy.networking.k8s.io", "versions": versions})
}

fn resources(names: &[&str]) -> Value {
    let resource = |name: &&str| json!({"name": name, "singularName": "", "namespaced": false, "kind": "K", "verbs": ["list"]});
    let resources: Vec<_> = names.iter().map(resource).collect();
    json!({"kind": "APIResourceList", "groupVersion": "g/v", "resources": resources})
}

fn list(items: usize, remaining: Option<usize>) -> Value {
    let items: Vec<_> = (0..items).map(|_| json!({"metadata": {"name": "x"}})).collect();
    json!({"metadata": {"resourceVersion": "5", "remainingItemCount": remaining}, "items": items})
}

/// As a cluster with the CRDs of both versions has it; a list is refused.
fn cluster(path: &str) -> Value {
    match path.strip_prefix(GROUP).unwrap() {
        "" => group(&["v1alpha2", "v1alpha1"]),
        "/v1alpha2" => resources(&["clusternetworkpolicies", "clusternetworkpolicies/status"]),
        "/v1alpha1" => resources(&["adminnetworkpolicies", "baselineadminnetworkpolicies"]),
        "/v1alpha1/adminnetworkpolicies?limit=1" => list(1, Some(2)),
        "/v1alpha1/baselineadminnetworkpolicies?limit=1" => status(403, "Forbidden"),
        other => panic!("asked for {other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn they_are_counted_once_and_told_when_the_number_changes() {
    let followed = follow(cluster);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let expected: Unenforced = [(UnenforcedKind::AdminNetworkPolicy, 3)].into();
    assert_eq!(*followed.told.lock().unwrap(), [expected]);
    let asked = followed.asked.lock().unwrap().len();
    assert!((5 * 20..=5 * 61).contains(&asked), "{asked} requests in an hour");
}

#[tokio::test(start_paused = true)]
async fn they_come_and_go() {
    let round = Mutex::new(0);
    let followed = follow(move |path| match path.strip_prefix(GROUP).unwrap() {
        "" => {
            let mut round = round.lock().unwrap();
            *round += 1;
            match *round {
                1 | 4 => status(404, "NotFound"),
                3 => status(500, "InternalError"),
                _ => group(&["v1"]),
            }
        }
        // a version that is not enforced, and without the one that is
        "/v1" => resources(&["clusternetworkpolicies"]),
        "/v1/clusternetworkpolicies?limit=1" => list(1, None),
        other => panic!("asked for {other}"),
    });
    let told = || followed.told.lock().unwrap().clone();
    for _ in 0..3600 {
        if told().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let one: Unenforced = [(UnenforcedKind::ClusterNetworkPolicy, 1)].into();
    // nothing is reported when the request fails
    assert_eq!(told(), [one, Unenforced::new()]);
}
