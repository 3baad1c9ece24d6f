//! `enforcement`: what a denial does, on the node and by policy.

use clap::{Args, ValueEnum};
use hyper::Method;
use podgate_contract::api::{
    ClusterPolicy, Enforcement as Mode, EnforcementMode, EnforcementState, NewPolicyMode, Policy,
    PolicyMode,
};
use podgate_policy::object::KUBERNETES_SOURCE;

use super::client::{Client, Server, decode};
use super::policies::{cluster_policy_path, policy_path, tell};
use crate::output::json;
use crate::{Failure, Format, Outcome, Printer};

/// The API as a source of policies.
const LOCAL_SOURCE: &str = "local";

/// What a denial does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Enforcement {
    /// Denied packets are dropped
    #[value(alias = "enforce")]
    On,
    /// They pass, are counted and reported
    Audit,
    /// They pass and are counted
    Off,
}

/// Arguments of `enforcement`.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// The new mode; without one, the present ones are shown
    pub mode: Option<Enforcement>,
    /// For one policy, on or audit: namespace/name, or the name of a cluster policy. A local one is changed; of one from
    /// the API server or a directory it is said how to change it there
    #[arg(long, value_name = "NAME", requires = "mode")]
    pub policy: Option<String>,
    /// Say how to set it for all policies of a namespace
    #[arg(short, long, requires = "mode", conflicts_with = "policy")]
    pub namespace: Option<String>,
}

pub(crate) fn enforcement(
    printer: &Printer,
    server: &Server,
    change: &Change,
) -> Result<Outcome, Failure> {
    let client = Client::new(server)?;
    match change {
        Change { mode: None, .. } => show(printer, &client),
        Change { mode: Some(mode), policy: None, namespace: None } => set(printer, &client, *mode),
        Change { mode: Some(mode), policy: Some(policy), .. } => {
            of_policy(printer, &client, policy, *mode)?;
            Ok(Outcome::Expected)
        }
        Change { mode: Some(mode), namespace: Some(namespace), .. } => {
            let object = format!("namespace {namespace}");
            printer.print(&annotate(&object, &annotation(*mode)?))?;
            Ok(Outcome::Expected)
        }
    }
}

fn show(printer: &Printer, client: &Client) -> Result<Outcome, Failure> {
    let path = "/v1/enforcement";
    let answer = client.ask(Method::GET, path, None)?;
    let text = match printer.format {
        Format::Json => String::from_utf8_lossy(&answer).into_owned(),
        Format::Table => describe(&decode(path, &answer)?),
    };
    printer.print(&text)?;
    Ok(Outcome::Expected)
}

fn describe(state: &EnforcementState) -> String {
    let EnforcementState { mode, namespaces, policies, cluster_policies } = state;
    let mut text = in_words(*mode).to_owned();
    let mut list = |what: &str, names: Vec<String>| {
        if !names.is_empty() {
            text += &format!("\naudited {what}: {}", names.join(", "));
        }
    };
    list("namespaces", namespaces.clone());
    let names = policies.iter().map(|policy| format!("{}/{}", policy.namespace, policy.name));
    list("policies", names.collect());
    list("cluster policies", cluster_policies.iter().map(|policy| policy.name.clone()).collect());
    if *mode == Mode::Enforce && !policies.is_empty() | !cluster_policies.is_empty() {
        text += "\nwhat audited policies alone would deny passes and is reported: podgatectl audit";
    }
    text
}

fn in_words(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforcement is on: denied packets are dropped",
        Mode::Audit => "enforcement is audit: denied packets pass and are reported",
        Mode::Off => "enforcement is off: denied packets pass",
    }
}

fn set(printer: &Printer, client: &Client, mode: Enforcement) -> Result<Outcome, Failure> {
    let mode = match mode {
        Enforcement::On => Mode::Enforce,
        Enforcement::Audit => Mode::Audit,
        Enforcement::Off => Mode::Off,
    };
    let path = "/v1/enforcement";
    let body = json(&EnforcementMode { mode })?;
    let answer = client.ask(Method::PUT, path, Some(body))?;
    let text = match printer.format {
        Format::Json => String::from_utf8_lossy(&answer).into_owned(),
        Format::Table => in_words(decode::<EnforcementMode>(path, &answer)?.mode).to_owned(),
    };
    printer.print(&text)?;
    Ok(Outcome::Expected)
}

/// Sets the mode of a policy where the source is this API; of those of another source, says how to set it there.
fn of_policy(
    printer: &Printer,
    client: &Client,
    wanted: &str,
    mode: Enforcement,
) -> Result<(), Failure> {
    let annotation = annotation(mode)?;
    let (sources, path, object) = match wanted.split_once('/') {
        Some((namespace, name)) => {
            let known = client.get::<Vec<Policy>>("/v1/policies")?.into_iter().map(|of| of.name);
            let known = known.filter(|of| of.namespace == namespace && of.name == name);
            let sources: Vec<String> = known.map(|of| of.source).collect();
            let object = format!("networkpolicy -n {namespace} {name}");
            (sources, policy_path(namespace, name), object)
        }
        None => {
            let known = client.get::<Vec<ClusterPolicy>>("/v1/cluster-policies")?;
            let known = known.into_iter().map(|of| of.name).filter(|of| of.name == wanted);
            let sources: Vec<String> = known.map(|of| of.source).collect();
            (sources, cluster_policy_path(wanted), format!("clusternetworkpolicy {wanted}"))
        }
    };
    if sources.is_empty() {
        let cause = "policyd knows none of this name; see podgatectl policies and cluster-policies";
        return Err(Failure(format!("set enforcement of policy {wanted}: {cause}")));
    }
    for source in sources {
        match source.as_str() {
            LOCAL_SOURCE => {
                let path = format!("{path}/mode");
                let body = json(&NewPolicyMode { mode: annotation.mode })?;
                tell(printer, &path, &client.ask(Method::PUT, &path, Some(body))?)?;
            }
            KUBERNETES_SOURCE => printer.print(&annotate(&object, &annotation))?,
            source => printer.print(&format!(
                "{wanted} is in a manifest of source {source}, which podgatectl does not write: it must have {} there",
                annotation.in_manifest
            ))?,
        }
    }
    Ok(())
}

/// What the annotation `podgate.io/mode` has to be for a mode.
struct Annotation {
    mode: PolicyMode,
    in_manifest: &'static str,
    of_kubectl: &'static str,
}

/// An object of the API server is changed there, by its owners: with their rights, and for every node.
fn annotate(object: &str, annotation: &Annotation) -> String {
    format!("kubectl annotate {object} {}", annotation.of_kubectl)
}

fn annotation(mode: Enforcement) -> Result<Annotation, Failure> {
    match mode {
        Enforcement::Audit => Ok(Annotation {
            mode: PolicyMode::Audit,
            in_manifest: "metadata.annotations: podgate.io/mode: audit",
            of_kubectl: "podgate.io/mode=audit --overwrite",
        }),
        Enforcement::On => Ok(Annotation {
            mode: PolicyMode::Enforce,
            in_manifest: "no annotation podgate.io/mode",
            of_kubectl: "podgate.io/mode-",
        }),
        Enforcement::Off => Err(Failure(
            "set enforcement off: a policy is on or audit; off is for the whole node".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_contract::api::{ClusterPolicyName, PolicyName};

    #[test]
    fn what_is_audited_is_shown_below_the_mode() {
        let mut state = EnforcementState {
            mode: Mode::Enforce,
            namespaces: Vec::new(),
            policies: Vec::new(),
            cluster_policies: Vec::new(),
        };
        assert_eq!(describe(&state), "enforcement is on: denied packets are dropped");
        let source = || "kubernetes".to_owned();
        state.namespaces = vec!["shop".to_owned()];
        let (namespace, name) = ("shop".to_owned(), "deny".to_owned());
        state.policies = vec![PolicyName { source: source(), namespace, name }];
        state.cluster_policies =
            vec![ClusterPolicyName { source: source(), name: "base".to_owned() }];
        assert_eq!(
            describe(&state),
            "enforcement is on: denied packets are dropped\n\
             audited namespaces: shop\naudited policies: shop/deny\naudited cluster policies: base\n\
             what audited policies alone would deny passes and is reported: podgatectl audit"
        );
    }

    #[test]
    fn a_policy_is_on_or_audit() {
        let command = |mode| {
            annotation(mode).map(|annotation| annotate("networkpolicy -n shop deny", &annotation))
        };
        let audit = "kubectl annotate networkpolicy -n shop deny podgate.io/mode=audit --overwrite";
        assert_eq!(command(Enforcement::Audit).unwrap(), audit);
        let on = "kubectl annotate networkpolicy -n shop deny podgate.io/mode-";
        assert_eq!(command(Enforcement::On).unwrap(), on);
        assert!(command(Enforcement::Off).is_err());
    }
}
