//! Watches: what they tell, how they end, and how they go on.

use std::sync::Arc;
use std::time::Duration;

use podgate_policy::object::Kind;
use policyd::sources::Update;
use policyd::sources::kubernetes::{Connection, Health, KubernetesSource, Pacing};
use serde_json::json;

use crate::server::Answer::{Page, Refused, Silence, Status, Watch};
use crate::server::{Of, Server, Then, bookmark, event, status};
use crate::world::{World, pod, policy};

#[tokio::test(start_paused = true)]
async fn what_a_watch_tells_is_in_the_index() {
    let world = World::start(|_| {});
    world.watching().await;
    world.server.say(Of::Pods, &event("ADDED", &pod("a", "x", "10")));
    world.until("it is there", |world| world.pod("a").is_some()).await;
    world.server.say(Of::Pods, &event("MODIFIED", &pod("a", "y", "11")));
    world.until("it is changed", |world| world.app("a") == "y").await;
    world.server.say(Of::Pods, &event("DELETED", &pod("a", "y", "12")));
    world.until("it is gone", |world| world.pod("a").is_none()).await;

    let namespace =
        json!({"metadata": {"name": "shop", "resourceVersion": "13", "labels": {"team": "s"}}});
    world.server.say(Of::Namespaces, &event("ADDED", &namespace));
    world.until("its namespace", |world| world.namespace_labels("shop").is_some()).await;
    world.server.say(Of::Policies, &event("ADDED", &policy("p", "10.0.0.0/8", "14")));
    world.until("its policy", |world| world.policy("p").is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_where_it_was_without_a_list() {
    let world = World::start(|server| {
        let list = Page { items: vec![], version: "9", next: None };
        let first = Watch(vec![event("ADDED", &pod("a", "x", "10")), bookmark("15")], Then::End);
        let refused = [Refused, Status(500, "InternalError")];
        let second = Watch(vec![event("ADDED", &pod("b", "x", "16"))], Then::StayOpen);
        server.script(Of::Pods, [list, first].into_iter().chain(refused).chain([second]));
    });
    world.until("the second watch", |world| world.pod("b").is_some()).await;
    let versions: Vec<_> = world
        .server
        .watches(Of::Pods)
        .iter()
        .map(|asked| asked.query["resourceVersion"].clone())
        .collect();
    assert_eq!(versions, ["9", "15", "15", "15"]);
    assert_eq!(world.server.lists(Of::Pods).len(), 1);
    assert_eq!(world.pods(), ["a", "b"]);

    world.server.cut(Of::Pods);
    world.until("a third one", |world| world.server.watches(Of::Pods).len() == 5).await;
    assert_eq!(world.server.watches(Of::Pods)[4].query["resourceVersion"], "16");
}

#[tokio::test(start_paused = true)]
async fn an_expired_watch_lists_again_however_the_server_says_so() {
    let in_stream = || Watch(vec![event("ERROR", &status(410, "Expired"))], Then::End);
    let plain = || Status(410, "Gone");
    for expired in [in_stream(), plain()] {
        let world = World::start(|server| {
            let first = Page { items: vec![pod("a", "x", "3")], version: "9", next: None };
            let second = Page { items: vec![pod("b", "x", "20")], version: "30", next: None };
            server.script(Of::Pods, [first, expired, second]);
        });
        world.until("the second list", |world| world.pods() == ["b"]).await;
        world.until("its watch", |world| world.server.watches(Of::Pods).len() == 2).await;
        assert_eq!(world.server.watches(Of::Pods)[1].query["resourceVersion"], "30");
        assert_eq!(world.problems(), "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_at_once_is_not_asked_at_full_speed() {
    let world = World::start(|server| {
        // after eight failures a list is requested
        let round = || {
            let list = Page { items: vec![], version: "9", next: None };
            [list].into_iter().chain((0..8).map(|_| Watch(vec![], Then::End)))
        };
        server.script(Of::Pods, (0..50).flat_map(|_| round()));
    });
    world.synced().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = world.server.asked(Of::Pods).len();
    assert!((20..60).contains(&asked), "{asked} requests in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_no_watch_can_be_had_for_is_given_up_for_a_list() {
    let world = World::start(|server| {
        let first = Page { items: vec![pod("a", "x", "3")], version: "9", next: None };
        // as after etcd was restored from a backup: the server has not come to that version yet
        let ahead = (0..8).map(|_| Watch(vec![event("ERROR", &status(504, "Timeout"))], Then::End));
        let second = Page { items: vec![pod("b", "x", "5")], version: "6", next: None };
        server.script(Of::Pods, [first].into_iter().chain(ahead).chain([second]));
    });
    world.until("the second list", |world| world.pods() == ["b"]).await;
    assert_eq!(world.watch(Kind::Pod).errors, 8);
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_is_noticed_and_a_quiet_one_is_not_mistaken_for_it() {
    let world = World::start(|_| {});
    world.watching().await;
    for minute in 0..5 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        for of in Of::ALL {
            world.server.say(of, &bookmark(&format!("{}", 100 + minute)));
        }
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.server.watches(Of::Pods).len(), 1, "bookmarks keep it");
    world.server.script(Of::Pods, [Silence]);
    world
        .until("it is noticed", |world| {
            matches!(world.watch(Kind::Pod).connection, Connection::Lost { .. })
        })
        .await;
    assert!(world.problems().contains("watch pods: watch: "), "{}", world.problems());
    assert!(world.state().synced, "what was read stays in force");
    world
        .until("another one is open", |world| world.watch(Kind::Pod).connection == Connection::Up)
        .await;
    let watches = world.server.watches(Of::Pods);
    assert_eq!(watches.last().unwrap().query["resourceVersion"], "104");
    assert_eq!(world.server.lists(Of::Pods).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_kind_that_fails_holds_up_no_other() {
    let world = World::start(|server| {
        let list = Page { items: vec![], version: "9", next: None };
        server.script(Of::Policies, [list].into_iter().chain((0..30).map(|_| Refused)));
    });
    world.until("policies fail", |world| world.problems().contains("watch policies")).await;
    world.watching().await;
    world.server.say(Of::Pods, &event("ADDED", &pod("a", "x", "10")));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(world.pods(), ["a"]);
    assert_eq!(world.watch(Kind::Pod).connection, Connection::Up);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_no_json_does_not_wedge_the_watch() {
    let world = World::start(|_| {});
    world.watching().await;
    world.server.say(Of::Pods, &json!("not an event"));
    world.until("another watch", |world| world.server.watches(Of::Pods).len() == 2).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    world.server.say(Of::Pods, &event("ADDED", &pod("a", "x", "10")));
    world.until("it works", |world| world.pod("a").is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_panics_is_told() {
    let (_server, client) = Server::start();
    let pacing = Pacing { page_size: 2, jitter: Duration::ZERO };
    let health = Arc::new(Health::new("kubernetes".into()));
    let sink = Arc::new(|update| {
        if matches!(update, Update::Listed { kind: Kind::Service, .. }) {
            panic!("the test says so");
        }
    });
    let source = KubernetesSource::start(client, pacing, health, sink);
    let why = source.ended().await;
    assert!(why.contains("the test says so"), "{why}");
}
