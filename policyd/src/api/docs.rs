//! Makes `docs/api.md` from the routes that are served and the types of the contract.

mod types;

use std::any::type_name;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use podgate_contract::api::{
    ApiError, Audit, AuditQuery, ClusterPolicy, ClusterPolicyChange, Counters, Defaults, Endpoint,
    EndpointDetail, EnforcementMode, EnforcementState, ExplainQuery, Explanation, FlowEvent,
    NewPolicyMode, NewRule, NodeRules, PodLimits, PodRules, PodTrafficPolicy, Policy, PolicyChange,
    RuleChange, RuleQuery, RulesRemoved, ServiceFrontend, Status, Usage, UsageQuery,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use types::{Types, link};

/// One route for people.
struct Route {
    method: &'static str,
    path: &'static str,
    what: &'static str,
    query: Option<Body>,
    request: Option<Body>,
    status: &'static str,
    answer: Body,
    /// Status and when; those that every route has are left out.
    errors: &'static [(u16, &'static str)],
}

/// What is sent or answered, and an example of it.
struct Body {
    text: String,
    types: Vec<String>,
    example: Value,
}

/// A type of the contract. The example is one: it is read and written again, and no field of it is lost.
fn of<T: Serialize + DeserializeOwned>(example: Value) -> Body {
    let read: T = serde_json::from_value(example.clone()).unwrap();
    let written = serde_json::to_value(&read).unwrap();
    assert!(holds(&written, &example), "{}: {example} becomes {written}", type_name::<T>());
    let full = type_name::<T>();
    let last = full.rsplit("::").next().unwrap().trim_end_matches('>').to_owned();
    let text = if full.contains("Vec<") { format!("list of {}", link(&last)) } else { link(&last) };
    Body { text, types: vec![last], example }
}

/// Whether `all` has every field and item of `part`.
fn holds(all: &Value, part: &Value) -> bool {
    match (all, part) {
        (Value::Object(all), Value::Object(part)) => {
            part.iter().all(|(key, value)| all.get(key).is_some_and(|all| holds(all, value)))
        }
        (Value::Array(all), Value::Array(part)) => {
            all.len() == part.len() && all.iter().zip(part).all(|(all, part)| holds(all, part))
        }
        _ => all == part,
    }
}

fn read(path: &'static str, what: &'static str, answer: Body) -> Route {
    let (query, request, status) = (None, None, "200");
    Route { method: "GET", path, what, query, request, status, answer, errors: &[] }
}

fn described() -> Vec<Route> {
    let web = json!({
        "namespace": "shop", "name": "web", "uid": "5f0c", "ifindex": 7, "host_interface": "veth1a2b",
        "gate": "tcx", "interface": "eth0", "container_id": "c0ffee", "addresses": ["10.88.0.5"],
        "state": "enforced", "startup": "hold", "rules": 2,
        "ingress": {"isolated": true, "policies": ["shop/web"]},
        "egress": {"isolated": false, "policies": []},
        "share": {"ipv4_flows": 12, "ipv6_flows": 0, "flows_evicted": 0, "events_held": 0},
    });
    let allowed = json!({
        "direction": "ingress", "ports": "TCP 8080", "verdict": "allow", "rule": "shop/web ingress[0]", "hits": 42,
        "peers": {"of": {"class": 3, "members": ["shop/api (10.88.0.2)"], "count": 1}},
        "policy": {"source": "kubernetes", "namespace": "shop", "name": "web"},
    });
    let with = |base: &Value, more: Value| {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let local = json!({"source": "local", "namespace": "shop", "name": "web"});
    let changed =
        |change: &str| of::<PolicyChange>(with(&local, json!({"change": change, "problems": []})));
    let cluster_changed = |change: &str| {
        of::<ClusterPolicyChange>(json!({
            "source": "local", "name": "isolate-tenants", "change": change, "problems": [],
        }))
    };
    let gate = json!({
        "pod": "shop/web", "local": true, "direction": "ingress", "peer": "10.88.0.2", "verdict": "allow",
        "rule": "shop/web ingress[0]", "isolating": ["shop/web"],
        "why": "allowed by shop/web ingress[0]",
    });
    let path = json!({
        "family": 4, "source": "10.88.0.2", "destination": "10.88.0.5", "port": 8080, "verdict": "allow",
        "why": "ingress at shop/web: allowed by shop/web ingress[0]", "gates": [gate],
    });
    let audited = json!({
        "pod": "shop/web", "pod_labels": {"app": "web"}, "direction": "ingress", "peer": "shop/cron-29",
        "peer_labels": {"app": "cron"}, "peer_address": "10.88.0.9", "protocol": "TCP", "port": 8080,
        "reason": "policy", "rule": "shop/web isolates for ingress", "policies": ["shop/web"], "allowable": true,
        "first": 1_764_460_800.5, "last": 1_764_464_400.0, "flows": 17,
    });
    let audit = |flows| {
        of::<Audit>(json!({
            "mode": "enforce", "since": 1_764_460_000.0, "lost": 0, "unlisted": 0, "flows": flows,
        }))
    };
    let traffic_policy = |source| json!({"source": source, "namespace": "shop", "name": "uplink"});
    let mode = || of::<EnforcementMode>(json!({"mode": "audit"}));
    let new_rule = json!({
        "direction": "ingress", "action": "allow", "peer": "10.1.0.0/16", "protocol": "TCP", "ports": "443",
        "lifetime": 7200, "comment": "the vendor looks at it",
    });
    let rule = json!({
        "id": 3, "direction": "ingress", "action": "allow", "peer": "10.1.0.0/16", "protocol": "TCP", "ports": "443",
        "expires": 1_764_460_800, "comment": "the vendor looks at it", "new_flows": 0,
    });
    let defaults = || of::<Defaults>(json!({"ingress": "deny", "egress": "unset"}));
    let said = json!({
        "namespace": "shop", "name": "web", "here": true, "rules": [rule],
        "defaults": {"ingress": "deny", "egress": "unset"},
    });
    vec![
        read("/v1/status", "How the node is: sources, endpoints, maps, and everything that is not as it should be.", {
            of::<Status>(json!({
                "version": "0.1.0", "node": "worker", "kernel": "6.18.0", "kernel_lacks": [], "ready": true,
                "problems": [], "enforcement": "enforce", "epoch": 17, "uptime": 86400,
                "sources": [{"name": "kubernetes", "synced": true, "objects": 120, "problems": [],
                    "watches": [{"kind": "pods", "connected": true, "heard": 2, "lists": 1, "errors": 0}]}],
                "endpoints": {"enforced": 9, "pending": 0, "degraded": 0, "ungated": 0},
                "objects": {"pods": 80, "namespaces": 6, "policies": 12, "cluster_policies": 1},
                "services": {"frontends": 14, "endpoints": 30, "degraded": 0},
                "maps": {"peers": 75, "nets": 4, "rules": 31},
                "flows": {"ipv4": {"flows": 512, "size": 131072}, "ipv6": {"flows": 0, "size": 131072}},
                "commits": 40, "last_commit": 0.0012, "pending": [], "unenforced": [], "unenforced_kinds": [],
                "new_pods": {"gated": "yes", "files": ["/etc/cni/net.d/10-bridge.conflist"]},
            }))
        }),
        read("/v1/endpoints", "Every gated interface of the node.", of::<Vec<Endpoint>>(json!([web]))),
        Route {
            errors: &[(404, "the pod has no gated interface on this node")],
            ..read("/v1/endpoints/{namespace}/{pod}", "The interfaces of one pod, and everything that they allow.", {
                of::<Vec<EndpointDetail>>(json!([with(&web, json!({"allowed": [allowed]}))]))
            })
        },
        Route {
            errors: &[(404, "no source has the pod")],
            ..read(
                "/v1/endpoints/{namespace}/{pod}/limits",
                "What is said of what a pod may use: the values that hold, what says so, and what says something else.",
                of::<PodLimits>(json!({
                    "pod": "shop/web",
                    "limits": [{
                        "direction": "egress", "limit": "bandwidth", "rate": 100_000_000, "burst": 5_000_000,
                        "origin": {"object": "podtrafficpolicy shop/uplink", "field": "spec.bandwidth.egress"},
                        "overridden": [{
                            "limit": "bandwidth", "rate": 10_000_000, "burst": 1_048_576,
                            "origin": {"object": "pod shop/web", "field": "metadata.annotations[kubernetes.io/egress-bandwidth]"},
                        }],
                    }],
                    "rules": [{
                        "name": "backup", "direction": "egress",
                        "origin": {"object": "podtrafficpolicy shop/uplink", "field": "spec.rules[0]"},
                        "limits": [{"limit": "dscp", "dscp": 8}],
                    }],
                    "problems": [],
                    "used": [{
                        "interface": "veth3c1d", "direction": "egress", "open_connections": 12,
                        "packets": 70_411, "bytes": 90_126_080, "delayed": 0, "marked": 0,
                        "refused": {"bandwidth": 310, "packets": 0, "new_connections": 0, "open_connections": 0},
                    }],
                })),
            )
        },
        read(
            "/v1/endpoints/{namespace}/{pod}/rules",
            "What the operator of this node says of one pod, before every policy. Empty if that is nothing.",
            of::<PodRules>(said.clone()),
        ),
        Route {
            method: "PUT",
            request: Some(of::<NewRule>(new_rule)),
            status: "201 if it is new, 200 if the same rule was there",
            errors: &[
                (400, "the body is no JSON"),
                (422, "a field is wrong, or there are as many rules as may be; `field` names it"),
            ],
            ..read(
                "/v1/endpoints/{namespace}/{pod}/rules",
                "Adds one rule to a pod, which need not be here yet: rules are kept by namespace and name, and survive \
                 restarts. A pod may have 256, a node 4096. Answered once it is in force.",
                of::<RuleChange>(json!({"change": "created", "rule": rule, "here": true, "problems": []})),
            )
        },
        Route {
            method: "DELETE",
            query: Some(of::<RuleQuery>(json!({"id": 3}))),
            errors: &[(404, "the pod has no rule of this number")],
            ..read(
                "/v1/endpoints/{namespace}/{pod}/rules",
                "Removes one rule, or all of the pod. Answered once that is in force.",
                of::<RulesRemoved>(json!({"removed": [3], "problems": []})),
            )
        },
        Route {
            method: "PUT",
            request: Some(of::<Defaults>(json!({"ingress": "deny"}))),
            errors: &[(400, "the body is no JSON"), (422, "a field is wrong; `field` names it")],
            ..read(
                "/v1/endpoints/{namespace}/{pod}/defaults",
                "Says what becomes of a pod's traffic that no rule and no policy speaks of. Answered once it is in force.",
                defaults(),
            )
        },
        read("/v1/rules", "What the operator of this node says: of every pod of which that is anything, and of all others.", {
            of::<NodeRules>(json!({"pods": [said], "defaults": {"ingress": "deny", "egress": "unset"}}))
        }),
        read("/v1/defaults", "What becomes of traffic of pods of which nothing else is said.", defaults()),
        Route {
            method: "PUT",
            request: Some(of::<Defaults>(json!({"ingress": "deny"}))),
            errors: &[(400, "the body is no JSON"), (422, "a field is wrong; `field` names it")],
            ..read("/v1/defaults", "Changes that. Answered once it is in force.", defaults())
        },
        read("/v1/policies", "Every policy of every source.", {
            let name = json!({"source": "kubernetes", "namespace": "shop", "name": "web"});
            of::<Vec<Policy>>(json!([with(&name, json!({"isolates": ["ingress"], "pods": ["shop/web"], "mode": "enforce"}))]))
        }),
        Route {
            method: "PUT",
            request: Some(Body {
                text: "a `networking.k8s.io/v1` NetworkPolicy as JSON; its name and namespace are those of the path".to_owned(),
                types: Vec::new(),
                example: json!({"spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}}),
            }),
            status: "201 if it is new, 200 if it replaces one",
            errors: &[(400, "the body is no JSON"), (422, "a field of the policy is wrong; `field` names it")],
            ..read(
                "/v1/policies/{namespace}/{name}",
                "Gives this node a policy of its own (source `local`), which survives restarts. Answered once it is in \
                 force.",
                changed("created"),
            )
        },
        Route {
            method: "DELETE",
            errors: &[(404, "there is no local policy of this name")],
            ..read(
                "/v1/policies/{namespace}/{name}",
                "Removes such a policy. Answered once that is in force.",
                changed("deleted"),
            )
        },
        Route {
            method: "PUT",
            request: Some(of::<NewPolicyMode>(json!({"mode": "audit"}))),
            errors: &[
                (400, "the body cannot be read"),
                (404, "there is no local policy of this name"),
            ],
            ..read(
                "/v1/policies/{namespace}/{name}/mode",
                "Says whether such a policy is only audited, by its annotation `podgate.io/mode`. Answered once that is in \
                 force. Policies of other sources have theirs there.",
                changed("replaced"),
            )
        },
        read("/v1/cluster-policies", "Every ClusterNetworkPolicy of every source, in the order of evaluation.", {
            of::<Vec<ClusterPolicy>>(json!([{
                "source": "kubernetes", "name": "isolate-tenants", "tier": "Admin", "priority": 10,
                "directions": ["ingress"], "pods": ["shop/web"], "mode": "audit", "log": "tenants",
            }]))
        }),
        Route {
            method: "PUT",
            request: Some(Body {
                text: "a `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy as JSON; its name is that of the path".to_owned(),
                types: Vec::new(),
                example: json!({"spec": {"tier": "Baseline", "priority": 0, "subject": {"namespaces": {}},
                    "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}}),
            }),
            status: "201 if it is new, 200 if it replaces one",
            errors: &[(400, "the body is no JSON"), (422, "a field of the policy is wrong; `field` names it")],
            ..read(
                "/v1/cluster-policies/{name}",
                "Gives this node a cluster policy of its own (source `local`), which survives restarts. Answered once it \
                 is in force.",
                cluster_changed("created"),
            )
        },
        Route {
            method: "DELETE",
            errors: &[(404, "there is no local policy of this name")],
            ..read(
                "/v1/cluster-policies/{name}",
                "Removes such a policy. Answered once that is in force.",
                cluster_changed("deleted"),
            )
        },
        Route {
            method: "PUT",
            request: Some(of::<NewPolicyMode>(json!({"mode": "audit"}))),
            errors: &[
                (400, "the body cannot be read"),
                (404, "there is no local policy of this name"),
            ],
            ..read(
                "/v1/cluster-policies/{name}/mode",
                "Says whether such a policy is only audited, by its annotation `podgate.io/mode`. Answered once that is in \
                 force. Policies of other sources have theirs there.",
                cluster_changed("replaced"),
            )
        },
        read(
            "/v1/pod-traffic-policies",
            "Every PodTrafficPolicy of every source (docs/limits.md).",
            of::<Vec<PodTrafficPolicy>>(json!([with(&traffic_policy("kubernetes"), json!({"order": 1000, "pods": ["shop/web"]}))])),
        ),
        Route {
            method: "PUT",
            request: Some(Body {
                text: "a `podgate.io/v1alpha1` PodTrafficPolicy as JSON; its name and namespace are those of the path".to_owned(),
                types: Vec::new(),
                example: json!({"spec": {"podSelector": {}, "bandwidth": {"egress": {"rate": "100M"}}}}),
            }),
            status: "201 if it is new, 200 if it replaces one",
            errors: &[(400, "the body is no JSON"), (422, "a field of the policy is wrong; `field` names it")],
            ..read(
                "/v1/pod-traffic-policies/{namespace}/{name}",
                "Gives this node a traffic policy of its own (source `local`), which survives restarts.",
                of::<PolicyChange>(with(&traffic_policy("local"), json!({"change": "created", "problems": []}))),
            )
        },
        Route {
            method: "DELETE",
            errors: &[(404, "there is no local policy of this name")],
            ..read(
                "/v1/pod-traffic-policies/{namespace}/{name}",
                "Removes such a policy.",
                of::<PolicyChange>(with(&traffic_policy("local"), json!({"change": "deleted", "problems": []}))),
            )
        },
        read("/v1/services", "Every address and port of every service, and where it leads.", {
            of::<Vec<ServiceFrontend>>(json!([{
                "namespace": "shop", "name": "store", "port_name": "sql", "address": "10.96.0.7", "port": 5432,
                "protocol": "TCP", "state": "translated", "id": 4, "affinity_seconds": 0,
                "endpoints": [{"address": "10.88.0.3", "port": 5432, "pod": "shop/db", "state": "ready"}],
            }]))
        }),
        read("/v1/counters", "What the programs have counted, by verdict and by rule.", {
            let packets = json!({"direction": "ingress", "verdict": "allow", "reason": "flow", "packets": 9, "bytes": 840});
            let rule = with(&allowed, json!({"pod": "shop/web"}));
            of::<Counters>(json!({"packets": [packets], "rules": [rule]}))
        }),
        Route {
            query: Some(of::<ExplainQuery>(json!({"from": "shop/api", "to": "shop/web", "port": 8080, "protocol": "TCP"}))),
            errors: &[(400, "the query cannot be read"), (422, "an end, port or protocol is wrong or unknown; `field` names it")],
            ..read("/v1/explain", "Whether a packet would pass, and by which rule, from what this node knows.", {
                of::<Explanation>(json!({
                    "from": "shop/api", "to": "shop/web", "transport": "8080/TCP", "verdict": "allow",
                    "why": "ingress at shop/web: allowed by shop/web ingress[0]", "gates": [gate], "paths": [path],
                }))
            })
        },
        Route {
            errors: &[(503, "as many clients as there is room for follow verdicts already")],
            ..read(
                "/v1/flows",
                "Verdicts as they happen, one JSON object a line (`application/x-ndjson`), until the client closes the \
                 connection. A client that reads too slowly loses events. Allowed flows are among them while a \
                 client follows, and those of which a policy asks that they are logged.",
                of::<FlowEvent>(json!({
                    "time": 1_764_460_800.5, "verdict": "deny", "reason": "policy", "direction": "ingress",
                    "pod": "shop/db", "pod_address": "10.88.0.3", "pod_port": 5432, "peer": "shop/web",
                    "peer_address": "10.88.0.5", "peer_port": 40000, "protocol": "TCP", "length": 74,
                    "rule": "shop/db isolates for ingress", "log": "shop-audit",
                })),
            )
        },
        Route {
            query: Some(of::<UsageQuery>(json!({"top": 1}))),
            errors: &[(400, "the query cannot be read")],
            ..read(
                "/v1/usage",
                "What accounted pods of this node exchanged with whom (docs/limits.md).",
                of::<Usage>(json!({
                    "pods": [{"pod": "shop/web", "traffic": [
                        {"scope": "same-node", "direction": "egress", "packets": 312, "bytes": 41_200, "flows": 4},
                        {"scope": "external", "direction": "ingress", "packets": 90_211, "bytes": 126_295_400, "flows": 0},
                    ]}],
                    "other": {"pods": 1, "traffic": [
                        {"scope": "other-zone", "direction": "egress", "packets": 10, "bytes": 740, "flows": 1},
                    ]},
                })),
            )
        },
        Route {
            query: Some(of::<AuditQuery>(json!({"policy": "shop/web"}))),
            errors: &[(400, "the query cannot be read")],
            ..read(
                "/v1/audit",
                "What would have been denied, and passed because the node or the policy is in audit mode: who to whom, since \
                 when, how often. It is kept in memory (4,096 pairs) since policyd's start.",
                audit(json!([audited])),
            )
        },
        Route {
            method: "DELETE",
            ..read("/v1/audit", "Forgets that, so that it begins anew.", audit(json!([])))
        },
        read("/v1/enforcement", "What a denial does on this node, and which policies are only audited.", {
            of::<EnforcementState>(json!({
                "mode": "enforce", "namespaces": [], "policies": [local],
                "cluster_policies": [{"source": "kubernetes", "name": "isolate-tenants"}],
            }))
        }),
        Route {
            method: "PUT",
            request: Some(mode()),
            errors: &[(400, "the body is not this object")],
            ..read("/v1/enforcement", "Changes that, from the next packet on; it survives restarts.", mode())
        },
    ]
}

fn document(routes: &[Route], types: &Types) -> String {
    let mut text = String::from(
        "# API\n\n\
         What policyd answers on its socket (`/run/podgate/api.sock`, for root only): HTTP/1.1 with JSON. `podgatectl` is one\n\
         client of it, `curl --unix-socket` another. This page is made from the routes in `policyd/src/api` and the types in\n\
         `policyd/contract/src/api` by `PODGATE_WRITE_DOCS=1 scripts/cargo.sh test --workspace --lib docs_api`, and that test\n\
         fails if it is stale.\n\n\
         Fields are added without notice; none is removed or changes its meaning without a line in\n\
         CHANGELOG.md. Every answer that is not 2xx has an [ApiError](#apierror) as its body. Beside the errors\n\
         listed with a route, any route may answer 404 (no such route), 405 (not with this method), 500 (the kernel's maps cannot\n\
         be read) and 503 (policyd is ending, or too busy).\n\n",
    );
    let mut wanted: VecDeque<String> = VecDeque::new();
    for route in routes {
        let Route { method, path, what, query, request, status, answer, errors } = route;
        writeln!(text, "## {method} {path}\n\n{what}\n").unwrap();
        let bodies =
            [("Query", query.as_ref()), ("Request", request.as_ref()), ("Answer", Some(answer))];
        for (part, body) in bodies {
            let Some(body) = body else { continue };
            let status = if part == "Answer" { format!(" ({status})") } else { String::new() };
            writeln!(text, "- {part}{status}: {}", body.text).unwrap();
            wanted.extend(body.types.iter().cloned());
        }
        for (status, when) in *errors {
            writeln!(text, "- {status}: {when}").unwrap();
        }
        text.push('\n');
        let curl = match query {
            Some(query) => {
                let pairs = query.example.as_object().unwrap().iter();
                let pairs = pairs
                    .map(|(key, value)| format!("{key}={}", value.to_string().replace('"', "")));
                format!("?{}", pairs.collect::<Vec<_>>().join("&"))
            }
            None => String::new(),
        };
        writeln!(text, "```text\n{method} {path}{curl}").unwrap();
        if let Some(request) = request {
            writeln!(text, "{}", request.example).unwrap();
        }
        writeln!(text, "\n{}\n```\n", serde_json::to_string_pretty(&answer.example).unwrap())
            .unwrap();
    }
    text.push_str("## Types\n\nA field that may be absent is left out where it says nothing.\n\n");
    wanted.push_back(link_name::<ApiError>());
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop_front() {
        if seen.insert(name.clone()) {
            let (section, named) = types.section(&name);
            text.push_str(&section);
            wanted.extend(named);
        }
    }
    let unused: Vec<_> = types.names().filter(|name| !seen.contains(*name)).collect();
    assert!(unused.is_empty(), "no route of the document answers with these types: {unused:?}");
    text.trim_end().to_owned() + "\n"
}

fn link_name<T>() -> String {
    type_name::<T>().rsplit("::").next().unwrap().to_owned()
}

#[test]
fn docs_api_is_made_from_the_routes_and_types() {
    let routes = described();
    let served: Vec<_> =
        super::routes().into_iter().map(|(method, path, _)| (method, path)).collect();
    let of_document: Vec<_> = routes.iter().map(|route| (route.method, route.path)).collect();
    assert_eq!(of_document, served, "the document's routes are those that are served");
    crate::docs::compare("docs/api.md", &document(&routes, &Types::read()));
}

/// The fields that the document lists are those that serde writes: the examples have no other.
#[test]
fn docs_api_lists_the_fields_of_the_examples() {
    let types = Types::read();
    let mut sections: BTreeMap<String, String> = BTreeMap::new();
    for route in described() {
        for body in [Some(route.answer), route.query].into_iter().flatten() {
            let example = if let Value::Array(items) = body.example {
                items[0].clone()
            } else {
                body.example
            };
            for name in &body.types {
                let (mut section, named) = types.section(name);
                // fields of flattened types are this object's too
                for inner in named {
                    section += &sections
                        .entry(inner.clone())
                        .or_insert_with(|| types.section(&inner).0)
                        .clone();
                }
                for field in example.as_object().unwrap().keys() {
                    assert!(
                        section.contains(&format!("| `{field}` |")),
                        "{name} has no {field}:\n{section}"
                    );
                }
            }
        }
    }
}
