//! What a document that cannot be read costs.

use podgate_manifests::manifest::Lost;

use super::{errors, objects, read};

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";

/// What stands in for the policies of a text: `s/p selector`, `everywhere`.
fn lost(text: &str) -> Vec<String> {
    let manifest = read(text);
    assert!(!manifest.errors.is_empty(), "{text}");
    let closed = manifest.closed.iter().map(|policy| {
        assert!(policy.ingress.as_ref().is_none_or(Vec::is_empty), "{policy:?}");
        assert!(policy.egress.as_ref().is_none_or(Vec::is_empty), "{policy:?}");
        let of = match (&policy.ingress, &policy.egress) {
            (Some(_), Some(_)) => "both",
            (Some(_), None) => "ingress",
            _ => "egress",
        };
        let pods = if policy.selector.is_everything() { "all" } else { "some" };
        format!("{} {of} of {pods}", policy.id)
    });
    let any = manifest.incomplete.then(|| "everywhere".to_owned());
    closed.chain(any).collect()
}

#[test]
fn the_other_documents_of_a_file_count() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    let manifest =
        read(&format!("{pod}---\nkind: [\n---\n{POLICY}metadata: {{name: p}}\nspec: {{}}\n"));
    assert_eq!(objects(&manifest), ["Pod default/a {}", "policy default/p"]);
    assert_eq!(errors(&manifest).len(), 1);
}

#[test]
fn a_policy_that_says_nonsense_isolates_whom_it_selects() {
    let spec =
        |text: &str| lost(&format!("{POLICY}metadata: {{name: p, namespace: s}}\nspec: {text}\n"));
    assert_eq!(spec("{podSelector: {matchLabels: {a: b}}, ingress: 7}"), ["s/p ingress of some"]);
    assert_eq!(spec("{podSelector: 7, policyTypes: [Egress]}"), ["s/p egress of all"]);
    assert_eq!(spec("{podSelector: {}, policyTypes: [Sideways]}"), ["s/p both of all"]);
    assert_eq!(spec("7"), ["s/p ingress of all"]);
    // a key given twice: which of the two is meant cannot be known
    assert_eq!(spec("{podSelector: {}, ingress: [], ingress: [{}]}"), ["s/p ingress of all"]);
}

#[test]
fn where_a_policy_belongs_may_be_unknown() {
    for (text, expected) in [
        // the namespace is known, the rest is not
        (format!("{POLICY}metadata: {{name: p, namespace: s}}\nspec: ["), "s/p both of all"),
        (format!("{POLICY}metadata: {{name: p}}\nspec: ["), "default/p both of all"),
        (
            format!("{POLICY}metadata: {{namespace: s}}\nspec: {{}}\n"),
            "s/(document 1 of f.yaml) ingress of all",
        ),
        ("metadata: {name: p, namespace: s}\nspec: [".to_owned(), "s/p both of all"),
        (
            "Kind: NetworkPolicy\nmetadata: {name: p, namespace: s}\nspec: {}\n".to_owned(),
            "s/p ingress of all",
        ),
        // it may be any
        (format!("{POLICY}metadata: {{name: p"), "everywhere"),
        (format!("{POLICY}spec: ["), "everywhere"),
        (format!("{POLICY}metadata: {{name: p, namespace: 7}}\nspec: {{}}\n"), "everywhere"),
        (format!("{POLICY}metadata: 7\nspec: {{}}\n"), "everywhere"),
        ("{{ if .Values.policy }}\n".to_owned() + POLICY, "everywhere"),
        ("apiVersion: v1\nkind: List\nitems: [".to_owned(), "everywhere"),
        ("apiVersion: v1\nitems: [".to_owned(), "everywhere"),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems: 7\n".to_owned(),
            "everywhere",
        ),
        (r#"{"kind": "NetworkPolicy", "metadata": {"name": "p""#.to_owned(), "everywhere"),
        (
            r#"{"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "s"}, "spec": "#
                .to_owned(),
            "s/p both of all",
        ),
    ] {
        assert_eq!(lost(&text), [expected], "{text}: {:?}", errors(&read(&text)));
    }
}

#[test]
fn what_is_no_policy_costs_itself() {
    for text in [
        "apiVersion: v1\nkind: Pod\nmetadata: {name: 7}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: [",
        "apiVersion: v1\nkind: Namespace\n",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: {{ .Values.name }}\n",
        "apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nspec: [",
        "apiVersion: v1\nkind: PodList\nitems: [",
        "apiVersion: v1\nmetadata: {name: a}\n",
    ] {
        let manifest = read(text);
        assert_eq!(lost(text), Vec::<String>::new(), "{text}");
        assert_eq!(manifest.errors[0].lost, Lost::Object, "{text}");
    }
}

/// Nothing can stand in for a cluster policy.
#[test]
fn a_cluster_policy_costs_itself() {
    let group = "apiVersion: policy.networking.k8s.io/v1alpha2\n";
    for text in [
        format!(
            "{group}kind: ClusterNetworkPolicy\nmetadata: {{name: a}}\nspec: {{tier: Admin}}\n"
        ),
        format!("{group}kind: ClusterNetworkPolicy\nmetadata: {{name: ["),
        format!("{group}kind: ClusterNetworkPolicyList\nitems: ["),
        format!("{group}metadata: {{name: a}}\nspec: {{tier: Admin}}\n"),
        format!("{group}metadata: {{name: ["),
    ] {
        let manifest = read(&text);
        assert_eq!(lost(&text), Vec::<String>::new(), "{text}");
        assert_eq!(manifest.errors[0].lost, Lost::ClusterPolicy, "{text}");
        assert!(!manifest.incomplete, "{text}");
    }
}

#[test]
fn cluster_policies_are_read_in_both_versions_and_in_lists() {
    let spec = "spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}";
    for (version, read_as) in [("v1alpha2", 1), ("v1beta1", 1), ("v1", 0), ("v1alpha1", 0)] {
        let version = format!("apiVersion: policy.networking.k8s.io/{version}\n");
        let one = format!("{version}kind: ClusterNetworkPolicy\nmetadata: {{name: a}}\n{spec}\n");
        let list = format!(
            "{version}kind: ClusterNetworkPolicyList\nitems: [{{metadata: {{name: a}}, {spec}}}]\n"
        );
        for text in [one, list] {
            let manifest = read(&text);
            assert_eq!(manifest.errors, [], "{text}");
            assert_eq!(manifest.objects.len(), read_as, "{text}");
            assert_eq!(manifest.unenforced.len(), 1 - read_as, "{text}");
        }
    }
}

#[test]
fn what_is_no_object_is_passed_over() {
    for text in [
        "replicas: 3\nimage: {tag: x}\n",
        "apiVersion: v2\nname: chart\nversion: 1.0.0\n",
        "- a\n- b\n",
        "just words\n",
        "7\n",
        "[1, 2]\n",
        "{\"name\": \"x\", \"dependencies\": {}}\n",
        "kind: Deployment\nreplicas: 3\n",
    ] {
        let manifest = read(text);
        assert_eq!((objects(&manifest), errors(&manifest)), (vec![], vec![]), "{text}");
        let [skipped] = &manifest.skipped[..] else { panic!("{text}: {manifest:?}") };
        assert_eq!(skipped, "f.yaml, document 1, line 1: no object of Kubernetes");
    }
    // objects of other kinds are nothing to remark on
    let other = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: []\n";
    let manifest = read(other);
    assert_eq!(
        (manifest.objects.len(), manifest.skipped.len(), errors(&manifest).len()),
        (0, 0, 0)
    );
}
