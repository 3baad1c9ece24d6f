//! The local rules over a restart.

use std::fs;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use podgate_contract::api::{DefaultMode, Defaults, NewRule};
use podgate_policy::model::ObjectKey;
use serde_json::json;

use super::state::{RULES_OF_A_POD, RULES_OF_THE_NODE};
use super::{FILE, LocalRuleBook, LocalRulesError, LocalUpdate};
use crate::sources::local::Was;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn open(
    dir: &std::path::Path,
    now: u64,
) -> Result<(LocalRuleBook, Receiver<LocalUpdate>), LocalRulesError> {
    let (sender, updates) = mpsc::channel();
    let book = LocalRuleBook::open(dir, at(now), move |update| sender.send(update).unwrap())?;
    Ok((book, updates))
}

fn web() -> ObjectKey {
    ObjectKey::new("shop", "web")
}

fn rule(port: u16, more: serde_json::Value) -> NewRule {
    let mut rule = json!({
        "direction": "ingress", "action": "allow", "protocol": "TCP", "ports": port.to_string(),
    });
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(rule).unwrap()
}

/// The rules of `shop/web` in the last update.
fn last(updates: &Receiver<LocalUpdate>) -> Vec<u32> {
    let pods = updates.try_iter().filter_map(|update| match update {
        LocalUpdate::Pod(rules) => Some(rules.rules.iter().map(|rule| rule.id).collect()),
        LocalUpdate::Node(_) => None,
    });
    pods.last().unwrap_or_default()
}

fn field(error: LocalRulesError) -> String {
    match error {
        LocalRulesError::Invalid { field, .. } => field.path,
        other => panic!("{other}"),
    }
}

#[test]
fn what_was_said_is_there_after_a_restart_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (book, updates) = open(dir.path(), 0).unwrap();
        assert_eq!(updates.try_iter().count(), 1, "the node's modes");
        book.add(&web(), rule(80, json!({"comment": "shop"})), at(0)).unwrap();
        book.add(&web(), rule(81, json!({"peer": "shop/api"})), at(0)).unwrap();
        book.add(&web(), rule(82, json!({"before": 2, "lifetime": 60})), at(0)).unwrap();
        assert_eq!(last(&updates), [1, 3, 2]);
        let modes = Defaults { ingress: Some(DefaultMode::Deny), egress: None };
        let all = book.set_defaults(&web(), modes).unwrap();
        assert_eq!(all.egress, Some(DefaultMode::Unset));
        book.set_node_defaults(Defaults { egress: Some(DefaultMode::Reject), ..modes }).unwrap();
    }
    let (book, updates) = open(dir.path(), 1).unwrap();
    assert_eq!(last(&updates), [1, 3, 2]);
    let said = book.of(&web());
    assert_eq!(said.rules[0].comment.as_deref(), Some("shop"));
    assert_eq!(
        (said.rules[1].expires, said.rules[1].spec.ports.as_deref()),
        (Some(60), Some("82"))
    );
    assert_eq!(said.rules[2].spec.peer.as_deref(), Some("shop/api"));
    assert_eq!(said.defaults.ingress, Some(DefaultMode::Deny));
    assert_eq!(book.node_defaults().egress, Some(DefaultMode::Reject));
    assert_eq!(book.remove(&web(), Some(3)).unwrap(), [3]);
    assert_eq!(book.remove(&web(), Some(3)).unwrap(), [0; 0]);
    assert_eq!(book.remove(&web(), None).unwrap(), [1, 2]);
    assert_eq!(book.all().len(), 1, "its mode is still said");
    book.set_defaults(&web(), Defaults { ingress: Some(DefaultMode::Unset), egress: None })
        .unwrap();
    assert!(book.all().is_empty());
    let (added, _) = book.add(&web(), rule(80, json!({})), at(0)).unwrap();
    assert_eq!(added.id, 4, "no number is given twice");
}

#[test]
fn s16_8_a_rule_whose_lifetime_is_over_is_gone_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (book, updates) = open(dir.path(), 100).unwrap();
        book.add(&web(), rule(80, json!({"lifetime": 10})), at(100)).unwrap();
        book.add(&web(), rule(81, json!({"lifetime": 20})), at(100)).unwrap();
        book.add(&web(), rule(82, json!({"lifetime": 30})), at(100)).unwrap();
        book.expire(at(109));
        assert_eq!(last(&updates), [1, 2, 3]);
        book.expire(at(110));
        assert_eq!(last(&updates), [2, 3]);
    }
    // nobody was there at 120
    let (book, updates) = open(dir.path(), 125).unwrap();
    assert_eq!(last(&updates), [3]);
    // the clock was wrong: what is gone stays gone
    book.expire(at(0));
    assert_eq!(book.of(&web()).rules.len(), 1);
}

#[test]
fn the_same_rule_again_renews_its_lifetime() {
    let dir = tempfile::tempdir().unwrap();
    let (book, updates) = open(dir.path(), 0).unwrap();
    let add = |rule| book.add(&web(), rule, at(0)).unwrap();
    add(rule(80, json!({"lifetime": 10})));
    add(rule(81, json!({})));
    let (again, was) =
        add(rule(80, json!({"ports": "80-80", "lifetime": 60, "comment": "longer"})));
    assert_eq!((again.id, again.expires, was), (1, Some(60), Was::Present));
    assert_eq!(last(&updates), [1, 2]);
    let (last_one, _) = add(rule(81, json!({"before": 1})));
    assert_eq!((last_one.id, last(&updates)), (2, vec![2, 1]));
}

#[test]
fn what_cannot_be_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (book, updates) = open(dir.path(), 0).unwrap();
    let refused = |pod: &ObjectKey, rule| field(book.add(pod, rule, at(0)).unwrap_err());
    assert_eq!(refused(&web(), rule(80, json!({"peer": "nobody"}))), "peer");
    assert_eq!(refused(&web(), rule(80, json!({"before": 9}))), "before");
    assert_eq!(refused(&ObjectKey::new("shop", "we b"), rule(80, json!({}))), "pod");
    assert_eq!(updates.try_iter().count(), 1);
    assert!(!dir.path().join(FILE).exists());
}

#[test]
fn there_is_room_for_so_many_rules_only() {
    let mut state = super::State::default();
    let pod = |n: usize| ObjectKey::new("shop", format!("pod-{n}"));
    let mut add = |n: usize, port: usize| {
        let rule = rule(u16::try_from(port + 1).unwrap(), json!({}));
        state.add(&pod(n), rule, at(0)).map(|_| ()).map_err(|field| field.cause)
    };
    for port in 0..RULES_OF_A_POD {
        add(0, port).unwrap();
    }
    assert!(add(0, RULES_OF_A_POD).unwrap_err().contains("256 rules already"));
    add(0, 3).unwrap();
    for n in 1..RULES_OF_THE_NODE / RULES_OF_A_POD {
        (0..RULES_OF_A_POD).for_each(|port| add(n, port).unwrap());
    }
    assert!(add(99, 0).unwrap_err().contains("4096 rules already"));
}

#[test]
fn a_file_that_cannot_be_read_is_no_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let pod = |rule: serde_json::Value| {
        let modes = json!({"ingress": "unset", "egress": "unset"});
        let rules = [json!({"id": 1, "rule": rule})];
        let pods = [json!({"namespace": "shop", "name": "web", "defaults": modes, "rules": rules})];
        json!({"version": 1, "next": 1, "node": modes, "pods": pods}).to_string()
    };
    let deny = json!({"direction": "ingress", "action": "deny"});
    for (text, says) in [
        ("{\"version\": 1, \"next\":".to_owned(), "EOF"),
        ("[]".to_owned(), "invalid"),
        (json!({"version": 2, "rules": {}}).to_string(), "version is 2"),
        (pod(json!({"direction": "ingress", "action": "maybe"})), "maybe"),
        (pod(json!({"direction": "ingress", "action": "deny", "peers": "x/y"})), "peers"),
        (
            pod(json!({"direction": "ingress", "action": "deny", "peer": "x"})),
            "rule 1 of shop/web: peer",
        ),
    ] {
        fs::write(dir.path().join(FILE), text).unwrap();
        let error = open(dir.path(), 0).err().unwrap().to_string();
        assert!(
            error.contains(FILE) && error.contains("mend the file") && error.contains(says),
            "{error}"
        );
    }
    fs::write(dir.path().join(FILE), pod(deny)).unwrap();
    let (book, _updates) = open(dir.path(), 0).unwrap();
    let (added, _) = book.add(&web(), rule(80, json!({})), at(0)).unwrap();
    assert_eq!(added.id, 2, "whatever the file says of the next number");
}

#[tokio::test]
async fn a_lifetime_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (book, updates) = open(dir.path(), 0).unwrap();
    let book = std::sync::Arc::new(book);
    let ending = tokio::spawn({
        let book = book.clone();
        async move { book.end_in_time().await }
    });
    book.add(&web(), rule(80, json!({})), SystemTime::now()).unwrap();
    book.add(&web(), rule(81, json!({"lifetime": 1})), SystemTime::now()).unwrap();
    assert_eq!(last(&updates), [1, 2]);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while book.of(&web()).rules.len() > 1 {
        assert!(tokio::time::Instant::now() < deadline, "the rule is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(last(&updates), [1]);
    ending.abort();
}
