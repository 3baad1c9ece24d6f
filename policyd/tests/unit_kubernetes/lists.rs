//! The first list and later ones.

use std::time::Duration;

use podgate_policy::object::Kind;
use policyd::sources::kubernetes::{Connection, Pacing};
use serde_json::json;

use crate::server::Answer::{self, Page, Refused, Silence, Status, Watch};
use crate::server::{Of, Then, event, status};
use crate::world::{World, pod, policy};

/// The pods `a` and `b`; the rest of the list is at `more`.
fn first_half() -> Answer {
    let items = vec![pod("a", "x", "3"), pod("b", "x", "4")];
    Page { items, version: "9", next: Some("more") }
}

/// The pod `c`.
fn second_half() -> Answer {
    Page { items: vec![pod("c", "x", "5")], version: "9", next: None }
}

#[tokio::test(start_paused = true)]
async fn every_kind_is_listed_in_pages_and_then_watched_from_there() {
    let world = World::start(|server| {
        server.script(Of::Pods, [first_half(), second_half()]);
        let namespace =
            json!({"metadata": {"name": "shop", "resourceVersion": "2", "labels": {"team": "s"}}});
        server.script(Of::Namespaces, [Page { items: vec![namespace], version: "8", next: None }]);
        server.script(
            Of::Policies,
            [Page { items: vec![policy("p", "10.0.0.0/8", "1")], version: "7", next: None }],
        );
    });
    world.watching().await;
    assert!(world.state().synced);
    assert_eq!(world.pods(), ["a", "b", "c"]);
    assert_eq!(world.policy("p").unwrap().ingress.unwrap().len(), 1);
    let labels = world.namespace_labels("shop").unwrap();
    assert_eq!(labels, ["kubernetes.io/metadata.name=shop", "team=s"]);
    assert_eq!(world.problems(), "");

    let lists = world.server.lists(Of::Pods);
    assert_eq!(lists[0].query["limit"], "2");
    assert_eq!(lists[1].query["continue"], "more");
    for (of, version) in [(Of::Pods, "9"), (Of::Namespaces, "8"), (Of::Policies, "7")] {
        let watches = world.server.watches(of);
        assert_eq!(watches.len(), 1);
        assert_eq!(watches[0].query["resourceVersion"], version);
        assert_eq!(watches[0].query["allowWatchBookmarks"], "true");
        let metadata_only = watches[0].accept.contains("as=PartialObjectMetadata");
        assert_eq!(metadata_only, of == Of::Namespaces, "{of:?}");
    }
    assert_eq!(world.watch(Kind::Pod).connection, Connection::Up);
    assert_eq!(world.watch(Kind::Pod).lists, 1);
}

#[tokio::test(start_paused = true)]
async fn services_and_their_slices_are_known() {
    let world = World::start(|server| {
        let service = json!({
            "metadata": {"name": "api", "namespace": "shop", "resourceVersion": "1"},
            "spec": {
                "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "type": "ClusterIP",
                "selector": {"app": "api"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}],
            },
            "status": {"loadBalancer": {}},
        });
        let slice = json!({
            "metadata": {
                "name": "api-x", "namespace": "shop", "resourceVersion": "2",
                "labels": {"kubernetes.io/service-name": "api"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": true}, "hostname": "h"}],
        });
        let empty = json!({
            "metadata": {"name": "none", "namespace": "shop", "resourceVersion": "3"},
            "addressType": "IPv6", "ports": null, "endpoints": null,
        });
        server.script(Of::Services, [Page { items: vec![service], version: "9", next: None }]);
        server.script(Of::Slices, [Page { items: vec![slice, empty], version: "9", next: None }]);
    });
    world.watching().await;
    assert_eq!(world.problems(), "");
    assert_eq!(world.state().objects, 3);
    // kube-proxy's own, and of services all: what it leaves to another proxy is no plain address
    let headless = "%21service.kubernetes.io%2Fheadless".to_owned();
    for (of, selector) in [(Of::Services, None), (Of::Slices, Some(&headless))] {
        for asked in world.server.asked(of) {
            assert_eq!(asked.query.get("labelSelector"), selector, "{of:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_synced_before_the_last_kind_whichever_that_is() {
    for last in Of::ALL {
        let world = World::start(|server| server.script(last, [Status(403, "Forbidden"), Silence]));
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(!world.state().synced, "{last:?}");
        assert!(
            world.problems().contains("list: the API server says 403 Forbidden"),
            "{}",
            world.problems()
        );
        world.synced().await;
        world.until("nothing is wrong any more", |world| world.problems().is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_page_is_asked_for_again_and_the_list_goes_on() {
    let world = World::start(|server| {
        let refused = Status(429, "TooManyRequests");
        server.script(Of::Pods, [first_half(), refused, Refused, second_half()]);
    });
    world.watching().await;
    assert_eq!(world.pods(), ["a", "b", "c"]);
    let lists = world.server.lists(Of::Pods);
    let tokens: Vec<_> =
        lists.iter().map(|asked| asked.query.get("continue").map(String::as_str)).collect();
    assert_eq!(tokens, [None, Some("more"), Some("more"), Some("more")]);
    assert_eq!(world.watch(Kind::Pod).errors, 2);
    assert_eq!(world.watch(Kind::Pod).lists, 1);
    assert_eq!(world.problems(), "");
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_rest_has_expired_begins_anew_and_finds_what_is_gone() {
    let world = World::start(|server| {
        let anew = Page {
            items: vec![pod("b", "y", "12"), pod("c", "x", "5")],
            version: "20",
            next: None,
        };
        server.script(Of::Pods, [first_half(), Status(410, "Expired"), anew]);
    });
    world.synced().await;
    // "a" was in the first attempt alone
    assert_eq!(world.pods(), ["b", "c"]);
    assert_eq!(world.app("b"), "y");
    assert_eq!(world.watch(Kind::Pod).lists, 2);
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_token_is_rejected_begins_anew_and_finds_what_is_gone() {
    let world = World::start(|server| {
        let anew = Page {
            items: vec![pod("b", "y", "5"), pod("c", "x", "6")],
            version: "7",
            next: Some("other"),
        };
        let rest = Page { items: vec![pod("d", "x", "2")], version: "7", next: None };
        server.script(Of::Pods, [first_half(), Status(400, "BadRequest"), anew, rest]);
    });
    world.watching().await;
    // "a" was in the first attempt alone
    assert_eq!(world.pods(), ["b", "c", "d"]);
    assert_eq!(world.app("b"), "y");
    assert_eq!(tokens(&world), ["", "more", "", "other"]);
    assert_eq!(world.watch(Kind::Pod).lists, 2);
    assert_eq!(world.watch(Kind::Pod).errors, 1);
    assert_eq!(world.server.watches(Of::Pods)[0].query["resourceVersion"], "7");
    assert_eq!(world.problems(), "");
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_rest_fails_eight_times_in_a_row_begins_anew() {
    let world = World::start(|server| {
        let page = |name, next| Page { items: vec![pod(name, "x", "3")], version: "9", next };
        let fails = |times, code, reason| (0..times).map(move |_| Status(code, reason));
        server.script(Of::Pods, [page("a", Some("second"))]);
        // what went wrong before a page that came does not count
        server.script(Of::Pods, fails(7, 504, "Timeout"));
        server.script(Of::Pods, [page("b", Some("third"))]);
        // nor does what goes wrong without a token
        server.script(Of::Pods, fails(8 + 9, 500, "InternalError"));
        server.script(Of::Pods, [page("b", Some("last")), Status(500, "InternalError")]);
        server.script(Of::Pods, [page("c", None)]);
    });
    world.watching().await;
    assert_eq!(world.pods(), ["b", "c"]);
    let asked = [("", 1), ("second", 7 + 1), ("third", 8), ("", 9 + 1), ("last", 2)];
    let asked: Vec<_> =
        asked.into_iter().flat_map(|(token, times)| vec![token.to_owned(); times]).collect();
    assert_eq!(tokens(&world), asked);
    assert_eq!(world.watch(Kind::Pod).lists, 2);
    // the backoffs are random and may take minutes, in which a watch of another kind that hears nothing is opened again
    world.until("no problem is left", |world| world.problems().is_empty()).await;
}

/// The continue token of each list request for pods; none for a first page.
fn tokens(world: &World) -> Vec<String> {
    let lists = world.server.lists(Of::Pods);
    lists.iter().map(|asked| asked.query.get("continue").cloned().unwrap_or_default()).collect()
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_in_the_gap_is_found_by_the_next_whole_list_and_not_before() {
    let world = World::start(|server| {
        let both =
            Page { items: vec![pod("a", "x", "3"), pod("b", "x", "4")], version: "9", next: None };
        let gone = Watch(vec![event("ERROR", &status(410, "Expired"))], Then::StayOpen);
        let half = Page { items: vec![pod("c", "x", "30")], version: "40", next: Some("more") };
        let rest = Page { items: vec![pod("d", "x", "31")], version: "40", next: None };
        server.script(Of::Pods, [both, gone, half, Refused, Silence, rest]);
    });
    world.until("a page of the second list", |world| world.pod("c").is_some()).await;
    assert_eq!(world.pods(), ["a", "b", "c"], "half a list says nothing of who is gone");
    assert!(world.state().synced, "and what was read stays in force");
    world.until("the whole second list", |world| world.pod("d").is_some()).await;
    world.until("the whole second list", |world| world.pod("a").is_none()).await;
    assert_eq!(world.pods(), ["c", "d"]);
    assert_eq!(world.watch(Kind::Pod).lists, 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_is_asked_ever_more_seldom_and_found_again() {
    let world = World::start(|server| server.script(Of::Pods, (0..40).map(|_| Refused)));
    world.synced().await;
    let asked = world.server.lists(Of::Pods);
    assert_eq!(asked.len(), 41);
    let gaps: Vec<f64> =
        asked.windows(2).map(|pair| (pair[1].after - pair[0].after).as_secs_f64()).collect();
    assert!(gaps[0] <= 0.6, "{gaps:?}");
    assert!(gaps[10..].iter().all(|gap| (14.0..=31.0).contains(gap)), "{gaps:?}");
    assert_eq!(world.watch(Kind::Pod).errors, 40);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_never_answered_is_given_up() {
    let world = World::start(|server| {
        let page = Page { items: vec![pod("a", "x", "3")], version: "9", next: None };
        server.script(Of::Pods, [Silence, page]);
    });
    world
        .until("it is given up", |world| world.problems().contains("nothing heard for 60 s"))
        .await;
    world.synced().await;
    assert_eq!(world.pods(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_waits_a_random_time_before_it_lists() {
    let pacing = Pacing { page_size: 2, jitter: Duration::from_secs(1000) };
    let mut waits = Vec::new();
    for _ in 0..8 {
        let world = World::start_with(pacing, |_| {});
        world.synced().await;
        waits.push(world.server.lists(Of::Pods)[0].after);
    }
    assert!(waits.iter().all(|wait| *wait <= pacing.jitter), "{waits:?}");
    waits.sort();
    assert!(waits[7] - waits[0] > Duration::from_secs(10), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn wake_ends_the_backoff() {
    let world = World::start(|server| server.script(Of::Pods, (0..14).map(|_| Refused)));
    // far into the long waits
    world.until("it waits long", |world| world.server.lists(Of::Pods).len() == 14).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = tokio::time::Instant::now();
    world.health.wake();
    world.synced().await;
    assert!(before.elapsed() < Duration::from_secs(1));
}
