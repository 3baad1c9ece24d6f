//! What `deploy/` renders to: by the real helm and kustomize, checked against the API's own types, policyd's own
//! command line, and each other. That a real API server takes it, and that it works, the cluster tier shows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use podgate_manifests::manifest;
use podgate_tests::go::go_tools;
use podgate_tests::runtime::program::said;
use policyd::args::{Cli, Command as Verb};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

fn tool(name: &str, arguments: &[&str]) -> Result<Result<String, String>> {
    static TOOLS: OnceLock<Result<std::path::PathBuf, String>> = OnceLock::new();
    let packages = ["helm.sh/helm/v3/cmd/helm", "sigs.k8s.io/kustomize/kustomize/v5"];
    let build = || go_tools(MODULE, &packages).map_err(|error| format!("{error:#}"));
    let tools = TOOLS.get_or_init(build).as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let output = Command::new(tools.join(name))
        .args(arguments)
        .current_dir(DEPLOY)
        // nothing of this machine's user
        .env("HOME", "/nonexistent")
        .output()
        .with_context(|| format!("run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(if output.status.success() { Ok(text) } else { Err(said(&output)) })
}

/// Objects by kind and name.
type Objects = BTreeMap<String, Value>;

fn objects(yaml: &str) -> Result<Objects> {
    let documents = manifest::values(yaml).map_err(anyhow::Error::msg).context("read YAML")?;
    let mut found = Objects::new();
    for object in documents.into_iter().filter(|document| !document.is_null()) {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let name = format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]));
        ensure!(found.insert(name.clone(), object).is_none(), "{name} is there twice");
    }
    Ok(found)
}

fn kustomize(dir: &str) -> Result<Objects> {
    objects(&tool("kustomize", &["build", dir])?.map_err(anyhow::Error::msg)?)
}

fn template(set: &[&str]) -> Result<Result<Objects, String>> {
    let mut arguments = vec!["template", "podgate", "helm/podgate", "-n", "podgate-system"];
    arguments.extend(["--kube-version", "1.33.0"]);
    set.iter().for_each(|value| arguments.extend(["--set-json", value]));
    tool("helm", &arguments)?
        .map(|text| objects(&text))
        .map_or_else(|error| Ok(Err(error)), |objects| objects.map(Ok))
}

fn helm(set: &[&str]) -> Result<Objects> {
    template(set)?.map_err(anyhow::Error::msg)
}

/// Every value away from its default.
const EVERYTHING: [&str; 25] = [
    r#"namespace.create=true"#,
    r#"image={"repository":"registry.example:5000/podgate","tag":"mine","pullPolicy":"Always"}"#,
    r#"imagePullSecrets=[{"name":"registry"}]"#,
    r#"fullnameOverride="gate""#,
    r#"crds.install=false"#,
    r#"cni={"confDir":"/c","binDir":"/b","cacheDir":"/v","install":true,"runtime":"cri-o","maxConfNum":0,"defaultNetwork":"pods","onCannotEnforce":"allow"}"#,
    r#"plugin={"startup":"open","policydTimeoutMs":0,"onTimeout":"fail","antiSpoofing":false,"attach":"tcx","logFile":"/var/log/p","logLevel":"debug"}"#,
    r#"paths={"bpffs":"/sys/fs/bpf","bpfRoot":"/sys/fs/bpf/other","run":"/run/other","netns":"/var/run/netns"}"#,
    r#"mountBpffs=true"#,
    r#"apiServer={"host":"192.0.2.1","port":6443}"#,
    r#"extraArgs=["--reconcile-seconds=30"]"#,
    r#"extraEnv=[{"name":"X","value":"y"}]"#,
    r#"logLevel="info,policyd=debug""#,
    r#"logFormat="json""#,
    r#"metrics={"address":"[::]","port":9899,"service":true,"serviceMonitor":{"enabled":true,"interval":"15s","labels":{"team":"net"}}}"#,
    r#"resources={"policyd":{"limits":{"memory":"1Gi"}},"install":{}}"#,
    r#"serviceAccount={"name":"account","annotations":{"a":"b"}}"#,
    r#"priorityClassName="""#,
    r#"tolerations=[]"#,
    r#"affinity={"nodeAffinity":{}}"#,
    r#"podLabels={"l":"m"}"#,
    r#"updateStrategy={"type":"OnDelete","rollingUpdate":null}"#,
    r#"seLinuxType="spc_t""#,
    r#"appArmor="field""#,
    r#"resourceQuota.enabled=false"#,
];

/// Every way in which the tests here render.
fn renderings() -> Result<Vec<(&'static str, Objects)>> {
    Ok(vec![
        ("base", kustomize("kustomize/base")?),
        ("uninstall", kustomize("kustomize/uninstall")?),
        ("chart", helm(&[])?),
        ("chart with everything", helm(&EVERYTHING)?),
        ("chart without installing", helm(&["cni.install=false", "metrics.service=false"])?),
    ])
}

fn container_lists(object: &Value) -> impl Iterator<Item = &Value> {
    let spec = &object["spec"]["template"]["spec"];
    let lists = [&spec["initContainers"], &spec["containers"]];
    lists.into_iter().filter_map(Value::as_array).flatten()
}

#[test]
fn helm_finds_nothing_to_complain_of() -> Result<()> {
    let said = tool("helm", &["lint", "helm/podgate", "--strict", "--kube-version", "1.33.0"])?;
    let said = said.map_err(anyhow::Error::msg)?;
    ensure!(!said.contains("[WARNING]") && !said.contains("[ERROR]"), "{said}");
    Ok(())
}

#[test]
fn a_mistaken_value_is_refused() -> Result<()> {
    for (value, told) in [
        (r#"plugin.startup="maybe""#, "plugin"),
        (r#"plugin.policydTimeoutMs=-1"#, "policydTimeoutMs"),
        (r#"metrics.port=0"#, "port"),
        (r#"image.digest="sha256:short""#, "digest"),
        (r#"cni.confDir="etc/cni""#, "confDir"),
        (r#"cni.runtime="docker""#, "runtime"),
        (r#"appArmor="off""#, "appArmor"),
        (r#"pluggin={}"#, "pluggin"),
        (r#"metrics={"service":false,"serviceMonitor":{"enabled":true}}"#, "needs metrics.service"),
    ] {
        match template(&[value])? {
            Err(error) => ensure!(error.contains(told), "{value}: {error}"),
            Ok(_) => bail!("{value} was taken"),
        }
    }
    Ok(())
}

#[test]
fn the_chart_and_the_kustomize_base_are_the_same() -> Result<()> {
    let mut chart = helm(&["namespace.create=true"])?;
    for object in chart.values_mut() {
        let labels = object["metadata"]["labels"].as_object_mut().context("labels")?;
        for only_helm in ["app.kubernetes.io/managed-by", "helm.sh/chart"] {
            ensure!(labels.remove(only_helm).is_some(), "no {only_helm}");
        }
        if object["kind"] == "CustomResourceDefinition" {
            let annotations = object["metadata"].as_object_mut().context("metadata")?;
            ensure!(annotations.remove("annotations").is_some(), "helm would remove the policies");
        }
    }
    let base = kustomize("kustomize/base")?;
    ensure!(
        chart.keys().eq(base.keys()),
        "the chart has {:?}, the base {:?}",
        chart.keys(),
        base.keys()
    );
    for (name, object) in &chart {
        ensure!(
            *object == base[name],
            "{name} differs: in the chart\n{object:#}\nin the base\n{:#}",
            base[name]
        );
    }
    Ok(())
}

/// Reads an object as the API's own type, which must know each of its keys.
fn known<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let read: T = serde_json::from_value(object.clone())?;
    let mut again = serde_json::to_value(read)?;
    let mut object = object.clone();
    drop_empty(&mut again);
    drop_empty(&mut object);
    ensure!(again == object, "keys that the API does not know:\n{object:#}\n{again:#}");
    Ok(())
}

/// An empty list or object is the same as none to the API's types, and 1 the same as 1.0.
fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(drop_empty);
            map.retain(|_, v| !matches!(v, Value::Null) && *v != json!({}) && *v != json!([]));
        }
        Value::Array(list) => list.iter_mut().for_each(drop_empty),
        Value::Number(number) => *value = json!(number.as_f64()),
        _ => {}
    }
}

#[test]
fn the_api_knows_every_key() -> Result<()> {
    for (rendering, objects) in renderings()? {
        for (name, object) in &objects {
            match name.split(' ').next().unwrap_or_default() {
                "CustomResourceDefinition" => known::<CustomResourceDefinition>(object),
                "Namespace" => known::<Namespace>(object),
                "ServiceAccount" => known::<ServiceAccount>(object),
                "ClusterRole" => known::<ClusterRole>(object),
                "ClusterRoleBinding" => known::<ClusterRoleBinding>(object),
                "ResourceQuota" => known::<ResourceQuota>(object),
                "Service" => known::<Service>(object),
                "DaemonSet" => known::<DaemonSet>(object),
                // the Prometheus operator's
                "ServiceMonitor" => Ok(()),
                other => bail!("{rendering} has a {other}, which nobody expects"),
            }
            .with_context(|| format!("{rendering}: {name}"))?;
        }
    }
    Ok(())
}

#[test]
fn policyd_takes_every_command_line() -> Result<()> {
    let mut verbs = Vec::new();
    for (rendering, objects) in renderings()? {
        for container in objects.values().flat_map(container_lists) {
            let arguments = container["args"].as_array().context("arguments")?;
            let line = arguments.iter().filter_map(Value::as_str);
            let cli = Cli::try_parse_from(["policyd"].into_iter().chain(line))
                .with_context(|| format!("{rendering}: {}", container["name"]))?;
            verbs.push(match cli.command {
                Verb::Run(_) => "run",
                Verb::Check(_) => "check",
                Verb::Install(_) => "install",
                Verb::Uninstall(_) => "uninstall",
                Verb::MountBpffs(_) => "mount-bpffs",
            });
        }
    }
    verbs.sort_unstable();
    verbs.dedup();
    ensure!(verbs == ["install", "mount-bpffs", "run", "uninstall"], "{verbs:?}");
    Ok(())
}

#[test]
fn every_value_arrives() -> Result<()> {
    let objects = helm(&EVERYTHING)?;
    let daemonset = &objects["DaemonSet gate"];
    let all = daemonset.to_string();
    for part in [
        "registry.example:5000/podgate:mine",
        r#""imagePullPolicy":"Always""#,
        r#""imagePullSecrets":[{"name":"registry"}]"#,
        "--startup=open",
        "--policyd-timeout-ms=0",
        "--on-timeout=fail",
        "--anti-spoofing=false",
        "--attach=tcx",
        "--plugin-log-file=/var/log/p",
        "--plugin-log-level=debug",
        "--runtime=cri-o",
        "--max-conf-num=0",
        "--on-cannot-enforce=allow",
        "--default-network=pods",
        "--socket=/run/other/cni.sock",
        "--bpf-root=/sys/fs/bpf/other",
        r#""hostPath":{"path":"/c""#,
        r#""hostPath":{"path":"/b""#,
        r#""hostPath":{"path":"/v""#,
        r#"{"name":"KUBERNETES_SERVICE_HOST","value":"192.0.2.1"}"#,
        r#"{"name":"KUBERNETES_SERVICE_PORT","value":"6443"}"#,
        r#"{"name":"PODGATE_METRICS_ADDR","value":"[::]:9899"}"#,
        r#"{"name":"PODGATE_LOG_LEVEL","value":"info,policyd=debug"}"#,
        r#"{"name":"PODGATE_LOG_FORMAT","value":"json"}"#,
        r#"{"name":"PODGATE_BPF_ROOT","value":"/sys/fs/bpf/other"}"#,
        r#"{"name":"PODGATE_ATTACH","value":"tcx"}"#,
        r#"{"name":"PODGATE_ADOPT_ANTI_SPOOFING","value":"false"}"#,
        r#"{"name":"PODGATE_NETNS_DIRS","value":"/var/run/netns"}"#,
        r#"{"name":"X","value":"y"}"#,
        "--reconcile-seconds=30",
        r#""seLinuxOptions":{"type":"spc_t"}"#,
        r#""appArmorProfile":{"type":"Unconfined"}"#,
        r#""serviceAccountName":"account""#,
        r#""l":"m""#,
        r#""mountPropagation":"Bidirectional""#,
        r#""type":"OnDelete""#,
        r#""memory":"1Gi""#,
    ] {
        ensure!(all.contains(part), "no {part} in {daemonset:#}");
    }
    ensure!(!objects.contains_key("ResourceQuota gate"), "a quota that was turned off");
    let crd = "CustomResourceDefinition podtrafficpolicies.podgate.io";
    ensure!(!objects.contains_key(crd), "a definition that was turned off");
    for part in ["priorityClassName", "tolerations", "apparmor.security"] {
        ensure!(!all.contains(part), "{part} in {daemonset:#}");
    }
    ensure!(objects["ServiceMonitor gate"]["metadata"]["labels"]["team"] == "net");
    ensure!(objects["ClusterRoleBinding gate"]["subjects"][0]["name"] == "account");
    let without = helm(&["cni.install=false", "metrics.service=false"])?;
    ensure!(!without.contains_key("Service podgate-metrics"));
    ensure!(!without["DaemonSet podgate"].to_string().contains("net.d"));
    let digest = format!("sha256:{}", "a".repeat(64));
    let pinned = helm(&[&format!("image.digest=\"{digest}\"")])?;
    ensure!(pinned["DaemonSet podgate"].to_string().contains(&format!("podgate@{digest}")));
    Ok(())
}

#[test]
fn nothing_has_more_rights_than_it_says() -> Result<()> {
    for (rendering, objects) in renderings()? {
        for rule in objects.values().filter_map(|o| o["rules"].as_array()).flatten() {
            let wanted = match rule["resources"][0].as_str() {
                Some("events") => json!(["create"]),
                // of kinds that are not enforced only the number is asked for
                Some("adminnetworkpolicies") => json!(["list"]),
                Some("clusternetworkpolicies/status" | "podtrafficpolicies/status") => {
                    json!(["patch"])
                }
                _ => json!(["list", "watch"]),
            };
            ensure!(rule["verbs"] == wanted, "{rendering}: {rule}");
            ensure!(!rule.to_string().contains('*'), "{rendering}: {rule}");
        }
        for container in objects.values().flat_map(container_lists) {
            let security = &container["securityContext"];
            if container["name"] == "mount-bpffs" {
                continue;
            }
            let name = format!("{rendering}: {}", container["name"]);
            ensure!(security["privileged"].is_null(), "{name} is privileged");
            ensure!(security["allowPrivilegeEscalation"] == false, "{name} may escalate");
            ensure!(security["readOnlyRootFilesystem"] == true, "{name} may write its root");
            ensure!(
                security["capabilities"]["drop"] == json!(["ALL"]),
                "{name} keeps capabilities"
            );
            let added = match container["name"].as_str() {
                Some("policyd") => json!(["NET_ADMIN", "SYS_ADMIN"]),
                Some("install") => json!(["DAC_OVERRIDE"]),
                Some("uninstall") => json!(["NET_ADMIN", "SYS_ADMIN", "DAC_OVERRIDE"]),
                _ => Value::Null,
            };
            ensure!(security["capabilities"]["add"] == added, "{name}: {security}");
        }
        for spec in objects.values().map(|o| &o["spec"]["template"]["spec"]) {
            if spec.is_null() {
                continue;
            }
            ensure!(spec["automountServiceAccountToken"] == false, "{rendering}: a token for all");
            ensure!(spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault");
            for host in ["hostPID", "hostIPC"] {
                ensure!(spec[host].is_null(), "{rendering}: {host}");
            }
        }
    }
    let base = kustomize("kustomize/base")?;
    let with_token: Vec<_> = container_lists(&base["DaemonSet podgate"])
        .filter(|c| c["volumeMounts"].to_string().contains("api-access"))
        .map(|c| c["name"].clone())
        .collect();
    ensure!(with_token == [json!("policyd")], "{with_token:?}");
    Ok(())
}

/// The default AppArmor profile denies writes below /sys: whoever pins or unpins must be without it, nobody else.
#[test]
fn who_pins_is_unconfined() -> Result<()> {
    const KEY: &str = "container.apparmor.security.beta.kubernetes.io/";
    for (rendering, objects) in renderings()? {
        for template in objects.values().map(|o| &o["spec"]["template"]) {
            for container in container_lists(&json!({ "spec": { "template": template } })) {
                let name = container["name"].as_str().context("a name")?;
                let profile = &container["securityContext"]["appArmorProfile"]["type"];
                let annotation = &template["metadata"]["annotations"][format!("{KEY}{name}")];
                let unconfined = match (profile.as_str(), annotation.as_str()) {
                    (None, None) => false,
                    (Some("Unconfined"), None) | (None, Some("unconfined")) => true,
                    other => bail!("{rendering}: {name} has {other:?}"),
                };
                ensure!(
                    unconfined == ["policyd", "uninstall"].contains(&name),
                    "{rendering}: {name}"
                );
            }
        }
    }
    Ok(())
}

/// Without a host the kubelet asks at the node's address, where a policyd that listens on 127.0.0.1 does not answer.
#[test]
fn probes_ask_where_policyd_listens() -> Result<()> {
    let mut cases = vec![(kustomize("kustomize/base")?, "127.0.0.1".to_owned())];
    for (address, host) in [
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::]", "127.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("[::1]", "::1"),
    ] {
        cases.push((helm(&[&format!("metrics.address=\"{address}\"")])?, host.to_owned()));
    }
    for (objects, host) in cases {
        let mut containers = container_lists(&objects["DaemonSet podgate"]);
        let policyd = containers.find(|c| c["name"] == "policyd").context("policyd")?;
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            ensure!(policyd[probe]["httpGet"]["host"] == *host, "{probe}: {policyd:#}");
        }
    }
    Ok(())
}

/// GKE's rule for the classes that the DaemonSets use.
#[test]
fn a_quota_speaks_of_every_system_class() -> Result<()> {
    for (rendering, objects) in renderings()? {
        let quota = objects.values().find(|o| o["kind"] == "ResourceQuota");
        for daemonset in objects.values().filter(|o| o["kind"] == "DaemonSet") {
            let class = &daemonset["spec"]["template"]["spec"]["priorityClassName"];
            if class.is_null() {
                continue;
            }
            let quota = quota.with_context(|| format!("{rendering} has no quota"))?;
            let scope = &quota["spec"]["scopeSelector"]["matchExpressions"][0];
            ensure!(scope["scopeName"] == "PriorityClass" && scope["operator"] == "In");
            let classes = scope["values"].as_array().context("classes")?;
            ensure!(classes.contains(class), "{rendering}: {class} is not in {quota:#}");
            ensure!(quota["metadata"]["namespace"] == daemonset["metadata"]["namespace"]);
        }
    }
    Ok(())
}

/// A quantity that the server writes in another way shows as changed at each apply.
#[test]
fn every_quantity_is_written_as_the_server_writes_it() -> Result<()> {
    fn canonical(quantity: &str) -> bool {
        let digits = quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len());
        let (number, suffix) = quantity.split_at(digits);
        let larger = if suffix.ends_with('i') { 1024 } else { 1000 };
        let known = ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"].contains(&suffix);
        known && number.parse::<u64>().is_ok_and(|number| number % larger != 0)
    }
    for (written, fine) in
        [("1M", true), ("1000000", false), ("1000m", false), ("64Mi", true), ("1024Mi", false)]
    {
        ensure!(canonical(written) == fine, "{written}");
    }
    let mut seen = 0;
    for (rendering, objects) in renderings()? {
        for (name, object) in &objects {
            let mut lists = vec![&object["spec"]["hard"]];
            for container in container_lists(object) {
                lists.extend(["requests", "limits"].map(|kind| &container["resources"][kind]));
            }
            for (what, quantity) in lists.into_iter().filter_map(Value::as_object).flatten() {
                let text = quantity.as_str().with_context(|| format!("{name}: {what}"))?;
                ensure!(canonical(text), "{rendering}: {name}: {what} {text}");
                seen += 1;
            }
        }
    }
    ensure!(seen > 10, "only {seen} quantities");
    Ok(())
}

#[test]
fn an_api_server_that_cannot_compare_quantities_gets_no_definition() -> Result<()> {
    let at = |version: &str| -> Result<bool> {
        let arguments = [
            "template",
            "podgate",
            "helm/podgate",
            "-n",
            "podgate-system",
            "--kube-version",
            version,
        ];
        let text = tool("helm", &arguments)?.map_err(anyhow::Error::msg)?;
        Ok(objects(&text)?.contains_key("CustomResourceDefinition podtrafficpolicies.podgate.io"))
    };
    ensure!(!at("1.28.15")?, "a definition that it would refuse, and the release with it");
    ensure!(at("1.29.0")?, "no definition");
    Ok(())
}

#[test]
fn all_speak_of_one_version() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let chart = fs::read_to_string(Path::new(DEPLOY).join("helm/podgate/Chart.yaml"))?;
    let chart = manifest::values(&chart).map_err(anyhow::Error::msg)?.remove(0);
    ensure!(chart["version"] == version && chart["appVersion"] == version, "{chart}");
    let image = format!("ghcr.io/podgate/podgate:{version}");
    for (rendering, objects) in renderings()? {
        for container in objects.values().flat_map(container_lists) {
            let used = &container["image"];
            let default = rendering != "chart with everything";
            ensure!(!default || *used == image, "{rendering}: {used}");
        }
    }
    let makefile = fs::read_to_string(Path::new(DEPLOY).join("../Makefile"))?;
    ensure!(makefile.contains(&format!("IMAGE ?= {image}\n")), "the Makefile's IMAGE");
    Ok(())
}
