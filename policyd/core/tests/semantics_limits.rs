//! Section 18 (limits) of docs/semantics.md: precedence against a naive evaluator, and limits that are followed against limits that are worked out anew.

// helpers are tests too, which clippy cannot see
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use podgate_contract::api::LimitValue;
use podgate_policy::convert;
use podgate_policy::index::{Changes, Index};
use podgate_policy::limits::EndpointLimits;
use podgate_policy::model::{Direction, ObjectKey};
use podgate_policy::object::{Event, Kind};
use podgate_policy::tables::{Endpoint, EndpointId};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

const NAMESPACES: [&str; 2] = ["shop", "ops"];
const PODS: [&str; 3] = ["a", "b", "c"];
const LABELS: [&str; 2] = ["web", "db"];

/// What one object states: of a few values, each by its name in a policy.
type Stated = BTreeMap<&'static str, u64>;

#[derive(Clone, Debug)]
struct Policy {
    namespace: &'static str,
    name: &'static str,
    source: &'static str,
    order: Option<u64>,
    selects: Option<&'static str>,
    states: Stated,
    rules: usize,
}

#[derive(Clone, Debug)]
struct Pod {
    label: &'static str,
    host_network: bool,
    calico: Stated,
    kubernetes: Stated,
    accounting: Option<bool>,
}

/// A cluster: pods by namespace and name, policies, and whether the namespaces' pods are accounted.
#[derive(Clone, Debug)]
struct World {
    pods: BTreeMap<(&'static str, &'static str), Pod>,
    policies: Vec<Policy>,
    namespaces: BTreeMap<&'static str, Option<bool>>,
}

const VALUES: [&str; 8] = ["in", "out", "packets", "max", "new", "dscp", "priority", "accounting"];

fn stated(names: &'static [&'static str]) -> impl Strategy<Value = Stated> {
    proptest::collection::btree_map(select(names), 1..15_u64, 0..=names.len())
}

fn policy() -> impl Strategy<Value = Policy> {
    let id =
        (select(&NAMESPACES[..]), select(&["p", "q", "r"][..]), select(&["dir", "kubernetes"][..]));
    let order = of(select(&[0, 1, 1000, 2000][..]));
    (id, order, of(select(&LABELS[..])), stated(&VALUES), 0..3_usize).prop_map(
        |((namespace, name, source), order, selects, states, rules)| Policy {
            namespace,
            name,
            source,
            order,
            selects,
            states,
            rules,
        },
    )
}

fn pod() -> impl Strategy<Value = Pod> {
    let calico = stated(&["in", "out", "packets", "max", "dscp"]);
    (
        select(&LABELS[..]),
        prop::bool::weighted(0.1),
        calico,
        stated(&["in", "out"]),
        of(any::<bool>()),
    )
        .prop_map(|(label, host_network, calico, kubernetes, accounting)| Pod {
            label,
            host_network,
            calico,
            kubernetes,
            accounting,
        })
}

fn worlds() -> impl Strategy<Value = World> {
    let names: Vec<_> = NAMESPACES.iter().flat_map(|of| PODS.map(|pod| (*of, pod))).collect();
    let pods = proptest::collection::btree_map(select(names), pod(), 0..6);
    let accounting =
        proptest::collection::btree_map(select(&NAMESPACES[..]), of(any::<bool>()), 0..2);
    (pods, vec(policy(), 0..6), accounting).prop_map(|(pods, mut policies, namespaces)| {
        let mut seen = BTreeSet::new();
        policies.retain(|of| seen.insert((of.namespace, of.name, of.source)));
        World { pods, policies, namespaces }
    })
}

impl Policy {
    fn event(&self) -> Event {
        let Self { namespace, name, source, order, selects, states, rules } = self;
        let mut spec = json!({"podSelector": {}});
        if let Some(label) = selects {
            spec["podSelector"] = json!({"matchLabels": {"app": label}});
        }
        if let Some(order) = order {
            spec["order"] = json!(order);
        }
        for (value, number) in states {
            let number = *number;
            match *value {
                "in" => spec["bandwidth"]["ingress"] = json!({"rate": number * 1_000_000}),
                "out" => spec["bandwidth"]["egress"] = json!({"rate": format!("{number}M")}),
                "packets" => spec["packets"]["ingress"] = json!({"rate": number}),
                "max" => spec["connections"]["ingress"]["max"] = json!(number),
                "new" => spec["connections"]["egress"]["newPerSecond"] = json!(number),
                "accounting" => spec["accounting"] = json!(number % 2 == 1),
                other => spec[other] = json!(number),
            }
        }
        let rules =
            (0..*rules).map(|nth| json!({"name": format!("{name}{nth}"), "direction": "Egress"}));
        spec["rules"] = rules.collect();
        let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
        let object = serde_json::from_value(object).unwrap();
        Event::from(convert::pod_traffic_policy(*source, &object).unwrap())
    }

    fn rank(&self) -> (u64, &str, &str) {
        (self.order.unwrap_or(1000), self.name, self.source)
    }
}

impl Pod {
    fn event(&self, (namespace, name): (&str, &str)) -> Event {
        let mut annotations = json!({});
        for (value, number) in &self.calico {
            let (name, text) = match *value {
                "in" => ("ingressBandwidth", format!("{number}M")),
                "out" => ("egressBandwidth", format!("{number}M")),
                "packets" => ("ingressPacketRate", number.to_string()),
                "max" => ("ingressMaxConnections", number.to_string()),
                _ => ("dscp", number.to_string()),
            };
            annotations[format!("qos.projectcalico.org/{name}")] = json!(text);
        }
        for (value, number) in &self.kubernetes {
            let direction = if *value == "in" { "ingress" } else { "egress" };
            annotations[format!("kubernetes.io/{direction}-bandwidth")] =
                json!(format!("{number}M"));
        }
        if let Some(accounting) = self.accounting {
            annotations["podgate.io/accounting"] = json!(accounting.to_string());
        }
        let object = json!({
            "metadata": {
                "namespace": namespace, "name": name, "labels": {"app": self.label}, "annotations": annotations,
            },
            "spec": {"hostNetwork": self.host_network, "containers": []},
        });
        Event::from(convert::pod(&serde_json::from_value(object).unwrap()).unwrap())
    }
}

fn namespace(name: &str, accounting: Option<bool>) -> Event {
    let annotations = accounting.map(|of| json!({"podgate.io/accounting": of.to_string()}));
    let object = json!({"metadata": {"name": name, "annotations": annotations}});
    let object = serde_json::from_value(object).unwrap();
    Event::from(convert::namespace("kubernetes", &object).unwrap())
}

impl World {
    fn events(&self) -> Vec<Event> {
        let pods = self.pods.iter().map(|(name, pod)| pod.event(*name));
        let namespaces = self.namespaces.iter().map(|(name, of)| namespace(name, *of));
        pods.chain(namespaces).chain(self.policies.iter().map(Policy::event)).collect()
    }

    fn index(&self) -> Index {
        let mut index = Index::new();
        for event in self.events() {
            index.apply(event);
        }
        index
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let ids =
            NAMESPACES.iter().flat_map(|of| PODS.map(|pod| ObjectKey::new(*of, pod))).zip(1..);
        let endpoint = |(pod, id)| Endpoint {
            id: EndpointId(id),
            pod: Some(pod),
            uid: "".into(),
            addresses: Vec::new(),
        };
        ids.map(endpoint).collect()
    }

    /// What each value of a pod is and which object states it, worked out value by value over a list of everything that is said.
    fn naive(&self, name: (&str, &str)) -> BTreeMap<&'static str, (u64, String)> {
        let Some(pod) = self.pods.get(&name).filter(|pod| !pod.host_network) else {
            return BTreeMap::new();
        };
        let (namespace, _) = name;
        let selects = |of: &&Policy| {
            of.namespace == namespace && of.selects.is_none_or(|label| label == pod.label)
        };
        let mut policies: Vec<&Policy> = self.policies.iter().filter(selects).collect();
        policies.sort_by_key(|of| of.rank());
        let mut said: Vec<(String, Stated)> = Vec::new();
        for policy in policies {
            let name = format!("podtrafficpolicy {namespace}/{} of {}", policy.name, policy.source);
            said.push((name, policy.states.clone()));
        }
        let own = format!("pod {namespace}/{}", name.1);
        said.push((format!("{own} by Calico"), pod.calico.clone()));
        let of = |on: bool| Stated::from([("accounting", u64::from(on))]);
        said.push((own.clone(), pod.accounting.map(of).unwrap_or_default()));
        said.push((format!("{own} by Kubernetes"), pod.kubernetes.clone()));
        let of_namespace = self.namespaces.get(namespace).copied().flatten();
        said.push((format!("namespace {namespace}"), of_namespace.map(of).unwrap_or_default()));
        let first = |value: &'static str| {
            let mut of = said.iter().filter_map(|(who, said)| Some((who, said.get(value)?)));
            of.next().map(|(who, number)| {
                let number = if value == "accounting" { number % 2 } else { *number };
                (value, (number, who.clone()))
            })
        };
        VALUES.into_iter().filter_map(first).collect()
    }
}

/// The same, of the index.
fn effective(
    index: &Index,
    (namespace, name): (&str, &str),
) -> BTreeMap<&'static str, (u64, String)> {
    let Some(pod) = index.pod(&ObjectKey::new(namespace, name)) else { return BTreeMap::new() };
    let effective = index.effective_limits(pod);
    let values = effective.limits.values().into_iter().map(|(direction, value, origin)| {
        let mut who = origin.object.to_string();
        if let podgate_policy::limits::OriginObject::PodTrafficPolicy(id) = &origin.object {
            who += &format!(" of {}", id.source);
        } else if origin.field.contains("qos.projectcalico.org/") {
            who += " by Calico";
        } else if origin.field.contains("kubernetes.io/") {
            who += " by Kubernetes";
        }
        let (value, number) = match (direction, value) {
            (Some(Direction::Ingress), LimitValue::Bandwidth { rate, .. }) => {
                ("in", rate / 1_000_000)
            }
            (_, LimitValue::Bandwidth { rate, .. }) => ("out", rate / 1_000_000),
            (_, LimitValue::Packets { rate, .. }) => ("packets", rate),
            (_, LimitValue::NewConnections { rate, .. }) => ("new", rate),
            (_, LimitValue::OpenConnections { max }) => ("max", u64::from(max)),
            (_, LimitValue::Dscp { dscp }) => ("dscp", u64::from(dscp)),
            (_, LimitValue::Priority { priority }) => ("priority", u64::from(priority)),
            (_, LimitValue::Accounting { enabled }) => ("accounting", u64::from(enabled)),
            (_, other) => panic!("{other:?} is not stated"),
        };
        (value, (number, who))
    });
    values.collect()
}

fn fresh(world: &World) -> EndpointLimits {
    let mut limits = EndpointLimits::default();
    limits.set_endpoints(world.endpoints());
    limits.update(&world.index(), &Changes::default());
    limits
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Of each single value the first that states it holds; the others are told, in order, and each is said once.
    #[test]
    fn s18_1_the_first_that_states_a_value_decides(world in worlds()) {
        let index = world.index();
        for name in world.pods.keys() {
            prop_assert_eq!(effective(&index, *name), world.naive(*name), "{:?}", name);
            let pod = index.pod(&ObjectKey::new(name.0, name.1)).unwrap();
            let effective = index.effective_limits(pod);
            let held = effective.limits.values();
            for of in &effective.overridden {
                let same = held.iter().filter(|(direction, value, _)| of.is_of(*direction, value));
                let same: Vec<_> = same.collect();
                prop_assert_eq!(same.len(), 1);
                prop_assert_ne!(same[0].2, &of.origin);
            }
            let selecting = index.pod_traffic_policies_selecting(pod);
            let stated: usize = selecting.iter().map(|policy| policy.limits.values().len()).sum();
            let annotated = pod.annotated_limits.as_deref().cloned().unwrap_or_default();
            let annotated = annotated.calico.values().len() + annotated.kubernetes.values().len();
            let of_namespace = world.namespaces.get(name.0).copied().flatten().is_some();
            if !pod.host_network {
                let said = stated + annotated + usize::from(of_namespace);
                prop_assert_eq!(held.len() + effective.overridden.len(), said);
            }
            let rules = selecting.iter().flat_map(|policy| policy.limits.rules.clone());
            prop_assert_eq!(&effective.limits.rules, &rules.collect::<Vec<_>>());
        }
    }

    /// Whatever changes, the limits of every endpoint are those of an index that never held anything else, and exactly those
    /// endpoints are named whose limits are others than before.
    #[test]
    fn limits_that_are_followed_are_those_worked_out_anew(walk in vec(worlds(), 1..5)) {
        let mut index = Index::new();
        index.take_changes();
        let mut limits = EndpointLimits::default();
        for (nth, world) in walk.iter().enumerate() {
            let there = world.index();
            for id in ids(&index) {
                if there.object(&id).is_none() {
                    index.apply(Event::Gone(id));
                }
            }
            for event in world.events() {
                index.apply(event);
            }
            // at every second step half of the endpoints are gone
            let here = |of: &Endpoint| nth % 2 == 0 || of.id.0.is_multiple_of(2);
            let before = snapshot(&limits);
            limits.set_endpoints(world.endpoints().into_iter().filter(here));
            let changes = index.take_changes();
            let changed = limits.update(&index, &changes);
            let after = snapshot(&limits);
            let mut expected = snapshot(&fresh(world));
            expected.retain(|id, _| nth % 2 == 0 || id.0.is_multiple_of(2));
            prop_assert_eq!(&after, &expected);
            let ids: BTreeSet<_> = before.keys().chain(after.keys()).copied().collect();
            let of = |of: &Snapshot, id| of.get(&id).cloned().flatten();
            let differ = ids.into_iter().filter(|id| {
                of(&before, *id) != of(&after, *id) || before.contains_key(id) && !after.contains_key(id)
            });
            prop_assert_eq!(changed, differ.collect::<BTreeSet<_>>());
        }
    }
}

type Snapshot = BTreeMap<EndpointId, Option<podgate_policy::limits::Limits>>;

fn snapshot(limits: &EndpointLimits) -> Snapshot {
    limits.all().map(|(id, limits)| (id, limits.map(|of| (**of).clone()))).collect()
}

fn ids(index: &Index) -> Vec<podgate_policy::object::ObjectId> {
    let pods = index.pods().map(|pod| Kind::Pod.id("", Some(&pod.key.namespace), &pod.key.name));
    let policies = index.pod_traffic_policies().map(|policy| {
        let key = &policy.id.key;
        Kind::PodTrafficPolicy.id(&policy.id.source, Some(&key.namespace), &key.name)
    });
    let namespaces = index.namespaces().map(|of| Kind::Namespace.id("", None, &of.name));
    pods.chain(policies).chain(namespaces).map(Option::unwrap).collect()
}

#[test]
fn s18_3_more_rules_than_have_numbers_are_left_out() {
    let mut index = Index::new();
    index.apply(plain_pod().event(("shop", "a")));
    for nth in 0..5_usize {
        let rules = (0..60).map(|of| json!({"name": format!("r{of}"), "direction": "Ingress"}));
        let spec = json!({"podSelector": {}, "rules": rules.collect::<Value>()});
        let object =
            json!({"metadata": {"namespace": "shop", "name": format!("p{nth}")}, "spec": spec});
        let object = serde_json::from_value(object).unwrap();
        index.apply(Event::from(convert::pod_traffic_policy("dir", &object).unwrap()));
    }
    let pod = index.pod(&ObjectKey::new("shop", "a")).unwrap();
    let effective = index.effective_limits(pod);
    assert_eq!((effective.limits.rules.len(), effective.left_out), (254, 46));
    let last = effective.limits.rules.last().unwrap();
    assert_eq!(last.origin.to_string(), "podtrafficpolicy shop/p4: spec.rules[13]");
    let told = index.pod_limits(pod).problems;
    assert_eq!(told, ["pod shop/a: has more than 254 traffic rules; the last 46 are left out"]);
}

#[test]
fn s18_2_what_cannot_be_read_states_nothing_and_is_told() {
    let mut index = Index::of_node("n1");
    let pod = |name: &str, node: &str, peak: &str| {
        let annotations = json!({
            "qos.projectcalico.org/ingressPeakrate": peak,
            "qos.projectcalico.org/ingressBandwidth": "fast",
            "kubernetes.io/ingress-bandwidth": "8M",
        });
        let metadata = json!({"namespace": "shop", "name": name, "annotations": annotations});
        let object = json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}});
        Event::from(convert::pod(&serde_json::from_value(object).unwrap()).unwrap())
    };
    index.apply(pod("a", "n1", "1G"));
    index.apply(pod("b", "n2", "1G"));
    let spec = json!({"podSelector": {}, "dscp": 99, "priority": 3});
    let object = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
    let object = serde_json::from_value(object).unwrap();
    index.apply(Event::from(convert::pod_traffic_policy("kubernetes", &object).unwrap()));
    let limits = index.pod_limits(index.pod(&ObjectKey::new("shop", "a")).unwrap());
    let held: Vec<_> =
        limits.limits.iter().map(|of| (of.value.name(), of.origin.field.as_str())).collect();
    let by_kubernetes = "metadata.annotations[kubernetes.io/ingress-bandwidth]";
    assert_eq!(held, [("bandwidth", by_kubernetes), ("priority", "spec.priority")]);
    let annotation = "pod shop/a: metadata.annotations[qos.projectcalico.org/ingress";
    assert_eq!(
        limits.problems,
        [
            "podtrafficpolicy shop/p: spec.dscp: must be a number from 0 to 63, is 99; it has no effect".to_owned(),
            format!("{annotation}Bandwidth]: must be a quantity from 1k to 1P, is \"fast\"; it has no effect"),
            format!("{annotation}Peakrate]: is not supported and has no effect"),
        ]
    );
    // each node tells of its own pods
    let mut told: Vec<_> = index.problems().iter().map(ToString::to_string).collect();
    told.sort();
    let mut expected = limits.problems;
    expected.sort();
    assert_eq!(told, expected);
    let namespace = |value: &str| {
        let metadata = json!({"name": "shop", "annotations": {"podgate.io/accounting": value}});
        convert::namespace(
            "kubernetes",
            &serde_json::from_value(json!({"metadata": metadata})).unwrap(),
        )
    };
    let odd = namespace("yes").unwrap();
    assert!(odd.accounting.is_none() && odd.settings.problems.len() == 1, "{odd:?}");
    assert!(namespace("true").unwrap().accounting.is_some_and(|of| of.value));
}

fn stated_of(pod: &Pod, policy: &str) -> usize {
    let mut index = Index::new();
    index.apply(pod.event(("shop", "a")));
    let spec = json!({"podSelector": {}, "dscp": 1});
    let object = json!({"metadata": {"namespace": policy, "name": "p"}, "spec": spec});
    let object = serde_json::from_value(object).unwrap();
    index.apply(Event::from(convert::pod_traffic_policy("dir", &object).unwrap()));
    let pod = index.pod(&ObjectKey::new("shop", "a")).unwrap();
    index.effective_limits(pod).limits.values().len()
}

fn plain_pod() -> Pod {
    Pod {
        label: "web",
        host_network: false,
        calico: Stated::from([("packets", 5)]),
        kubernetes: Stated::new(),
        accounting: None,
    }
}

#[test]
fn s18_4_nothing_holds_for_a_pod_that_is_its_node() {
    assert_eq!(stated_of(&plain_pod(), "shop"), 2);
    assert_eq!(stated_of(&Pod { host_network: true, ..plain_pod() }, "shop"), 0);
}

#[test]
fn s18_5_a_policy_selects_pods_of_its_own_namespace() {
    assert_eq!(stated_of(&plain_pod(), "ops"), 1);
}
