//! What a runtime gives the plugin: standard input and environment.

use podgate_cni::spec::env::{Command, EnvError};
use podgate_cni::spec::{NetConf, SpecVersion, args};
use podgate_tests::mutator::fuzz;
use serde_json::Value;

use super::JSON;

const CONFIGURATIONS: [&str; 3] = [
    r#"{"cniVersion":"1.1.0","name":"pods","type":"podgate","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"veth0",
        "mac":"02:00:00:00:00:01"},{"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"address":"10.0.0.2/24","interface":1}]}}"#,
    r#"{"cniVersion":"0.3.1","name":"pods","prevResult":{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}]}}"#,
    r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}],"prevResult":null}"#,
];

#[test]
fn configurations_are_read_or_refused() {
    fuzz(5000, JSON, &CONFIGURATIONS.map(|text| text.as_bytes().to_vec()), |input| {
        // the verb that touches nothing, from its input to what it prints
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let env = |name: &str| (name == "CNI_COMMAND").then(|| "VERSION".to_owned());
        podgate_cni::run(env, &mut &input[..], &mut stdout, &mut stderr);
        assert!(serde_json::from_slice::<Value>(&stdout).unwrap().is_object());

        match NetConf::parse(input) {
            Ok(conf) => {
                let results = [
                    conf.require_name().err(),
                    conf.prev_result().err(),
                    conf.valid_attachments().err(),
                ];
                for error in results.into_iter().flatten() {
                    assert!(serde_json::from_str::<Value>(&error.to_json(conf.version)).is_ok());
                }
                assert!(conf.keys().all(|key| key.len() <= input.len()));
            }
            Err(error) => {
                assert!(serde_json::from_str::<Value>(&error.to_json(SpecVersion::LATEST)).is_ok());
            }
        }
    });
}

const WORDS: &[&str] = &[
    ";",
    "=",
    "K8S_POD_NAMESPACE=",
    "K8S_POD_NAME=",
    "K8S_POD_UID=",
    "IgnoreUnknown=1",
    " ",
    "..",
    "/",
    "\u{e4}",
    "\0",
    "\n",
    "ADD",
    "DEL",
    "GC",
    "eth0",
    ":",
];

/// The variables, a line each.
const ENVIRONMENTS: [&str; 2] = [
    "ADD\nc0ffee\n/run/netns/x\neth0\nK8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u-1;IgnoreUnknown=1",
    "DEL\nc0ffee\n\neth0\n",
];
const VARIABLES: [&str; 5] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"];

#[test]
fn environments_are_read_or_refused() {
    fuzz(5000, WORDS, &ENVIRONMENTS.map(|text| text.as_bytes().to_vec()), |input| {
        let text = String::from_utf8_lossy(input);
        let values: Vec<&str> = text.split('\n').collect();
        let env = |name: &str| {
            let place = VARIABLES.iter().position(|known| *known == name)?;
            values.get(place).map(|value| (*value).to_owned())
        };
        match Command::from_env(&env) {
            Ok(Command::Add(of, _) | Command::Check(of, _) | Command::Del(of)) => {
                assert!((1..=15).contains(&of.ifname.len()) && !of.ifname.contains('/'));
                assert!(!of.container_id.is_empty() && !of.container_id.contains('/'));
            }
            Ok(Command::Gc | Command::Status | Command::Version) | Err(EnvError::NoCommand) => {}
            Err(EnvError::Invalid(error)) => assert!(!error.details.is_empty()),
        }
        if let Ok(Some(pod)) = args::pod(&text) {
            assert!(!pod.namespace.is_empty() && !pod.name.is_empty());
        }
    });
}
