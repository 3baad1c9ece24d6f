//! Objects that cannot be read.

use podgate_policy::object::Kind;
use serde_json::{Value, json};

use crate::server::Answer::{Page, Watch};
use crate::server::{Of, Then, event, status};
use crate::world::{World, pod, policy};

/// A pod that no pod's type fits.
fn broken_pod(name: &str, version: &str) -> Value {
    let mut pod = pod(name, "x", version);
    pod["spec"]["containers"] = json!("none");
    pod
}

#[tokio::test(start_paused = true)]
async fn one_bad_object_in_a_list_costs_no_other() {
    let world = World::start(|server| {
        let items = vec![pod("a", "x", "1"), broken_pod("bad", "2")];
        let rest = vec![json!({"metadata": 7}), pod("c", "x", "3")];
        server.script(
            Of::Pods,
            [
                Page { items, version: "9", next: Some("more") },
                Page { items: rest, version: "9", next: None },
            ],
        );
    });
    world.watching().await;
    assert!(world.state().synced);
    assert_eq!(world.pods(), ["a", "c"]);
    let problems = world.problems();
    assert!(problems.contains("read pod shop/bad: spec.containers: "), "{problems}");
    assert_eq!(world.watch(Kind::Pod).rejected.len(), 1, "{problems}");

    world.server.say(Of::Pods, &event("MODIFIED", &pod("bad", "x", "10")));
    world.until("it is mended", |world| world.pod("bad").is_some()).await;
    assert_eq!(world.problems(), "");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_turns_bad_keeps_its_last_good_version_until_it_is_deleted() {
    let world = World::start(|_| {});
    world.watching().await;
    let good = policy("p", "10.0.0.0/8", "10");
    let mut bad = policy("p", "10.0.0.0/8", "11");
    bad["spec"]["ingress"][0]["from"][0]["ipBlock"]["cidr"] = json!("10.0.0.0/99");
    world.server.say(Of::Policies, &event("ADDED", &good));
    world.until("it is there", |world| world.policy("p").is_some()).await;
    let before = world.policy("p");
    world.server.say(Of::Policies, &event("MODIFIED", &bad));
    world
        .until("it is reported", |world| {
            world.problems().contains("read policy shop/p: spec.ingress[0].from[0].ipBlock.cidr: ")
        })
        .await;
    assert!(world.problems().contains("what was read of it before stays"), "{}", world.problems());
    assert_eq!(world.policy("p"), before);

    // and a list in which it is still bad does not take it away either
    let relist = Page { items: vec![bad.clone()], version: "40", next: None };
    world.server.script(Of::Policies, [relist]);
    world.server.say(Of::Policies, &event("ERROR", &status(410, "Expired")));
    world.until("the relist", |world| world.server.watches(Of::Policies).len() == 2).await;
    assert_eq!(world.policy("p"), before);
    assert!(!world.problems().is_empty());

    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    world.server.say(Of::Policies, &event("DELETED", &bad));
    world.until("it is gone", |world| world.policy("p").is_none()).await;
    assert_eq!(world.problems(), "");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_never_could_be_read_isolates_and_allows_nothing() {
    let mut bad = policy("p", "nonsense", "3");
    let world = World::start(|server| {
        server.script(Of::Policies, [Page { items: vec![bad.clone()], version: "9", next: None }]);
    });
    world.watching().await;
    let closed = world.policy("p").expect("something stands in for it");
    assert_eq!((closed.ingress, closed.egress), (Some(vec![]), None));
    assert!(
        world.problems().contains("isolates its pods and allows nothing"),
        "{}",
        world.problems()
    );

    // a new policy of the same name is another object: it does not inherit the last good state
    world.server.say(Of::Policies, &event("MODIFIED", &policy("p", "10.0.0.0/8", "10")));
    world.until("it is mended", |world| world.problems().is_empty()).await;
    bad["metadata"]["uid"] = json!("another");
    world.server.say(Of::Policies, &event("MODIFIED", &bad));
    world.until("it is closed again", |world| !world.problems().is_empty()).await;
    assert_eq!(world.policy("p").unwrap().ingress, Some(vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_field_of_a_later_kubernetes_makes_a_policy_unreadable_but_no_pod() {
    let world = World::start(|server| {
        let mut pod = pod("a", "x", "1");
        pod["spec"]["fromTheFuture"] = json!(true);
        pod["metadata"]["fromTheFuture"] = json!(true);
        let mut policy = policy("p", "10.0.0.0/8", "2");
        policy["metadata"]["fromTheFuture"] = json!(true);
        let mut strange = policy.clone();
        strange["metadata"]["name"] = json!("strange");
        strange["spec"]["ingress"][0]["from"][0]["unless"] = json!({});
        server.script(Of::Pods, [Page { items: vec![pod], version: "9", next: None }]);
        let open = Watch(vec![], Then::StayOpen);
        server.script(
            Of::Policies,
            [Page { items: vec![policy, strange], version: "9", next: None }, open],
        );
    });
    world.watching().await;
    assert_eq!(world.pods(), ["a"]);
    assert_eq!(world.policy("p").unwrap().ingress.unwrap().len(), 1);
    let problems = world.problems();
    assert!(
        problems.contains("read policy shop/strange: spec.ingress[0].from[0].unless"),
        "{problems}"
    );
    assert_eq!(world.policy("strange").unwrap().ingress, Some(vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_bad_objects_do_not_fill_the_status() {
    let world = World::start(|server| {
        let items = (0..1000).map(|n| broken_pod(&format!("p{n:03}"), "1")).collect();
        server.script(Of::Pods, [Page { items, version: "9", next: None }]);
    });
    world.watching().await;
    let problems = world.state().problems;
    assert_eq!(problems.len(), 21);
    assert!(problems[19].contains("read pod shop/p019: "), "{problems:#?}");
    assert_eq!(problems[20], "read 980 more pods: see the log");
    assert_eq!(world.watch(Kind::Pod).rejected.len(), 1000);
}
