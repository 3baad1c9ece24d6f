//! `prevResult`: what the plugins before this one made. It goes out as it came in; only the interfaces
//! and addresses are read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{CniError, Code, SpecVersion};

/// A result, its literal text kept.
#[derive(Debug)]
pub struct PrevResult {
    raw: Box<RawValue>,
    version: Option<String>,
    interfaces: Vec<Interface>,
    ips: Vec<(Option<usize>, IpAddr)>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

/// The fields that 0.3.1, 0.4.0, 1.0.0 and 1.1.0 have in common.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    cni_version: Option<String>,
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

/// An interface in the sandbox, with what the result says of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxInterface {
    /// Its name inside.
    pub name: String,
    /// Its addresses; `None` if the result does not name them: then they have to be read from the interface.
    pub addresses: Option<Vec<IpAddr>>,
}

impl PrevResult {
    pub(super) fn parse(raw: &RawValue) -> Result<Self, CniError> {
        let fail = |cause: String| CniError::new(Code::Decode, "read prevResult").because(cause);
        if !raw.get().starts_with('{') {
            return Err(fail(format!("it is no object: {raw}")));
        }
        let shape: Shape = serde_json::from_str(raw.get()).map_err(|e| fail(e.to_string()))?;
        let interfaces = shape.interfaces.unwrap_or_default();
        let mut ips = Vec::new();
        for (position, ip) in shape.ips.unwrap_or_default().into_iter().enumerate() {
            let address = ip
                .address
                .parse::<IpNet>()
                .map(|net| net.addr())
                .or_else(|_| ip.address.parse::<IpAddr>())
                .map_err(|_| fail(format!("ips[{position}] is {:?}, no address", ip.address)))?;
            // negative is how some plugins spell "none"
            let interface = ip.interface.and_then(|index| usize::try_from(index).ok());
            if let Some(index) = interface.filter(|index| *index >= interfaces.len()) {
                return Err(fail(format!(
                    "ips[{position}] is of interface {index}, of which there are {}",
                    interfaces.len()
                )));
            }
            ips.push((interface, address));
        }
        Ok(Self { raw: raw.to_owned(), version: shape.cni_version, interfaces, ips })
    }

    /// What goes to stdout: the same bytes, unless the previous plugin named another version (or none)
    /// than the configuration, in which libcni reads it.
    pub fn output(&self, version: SpecVersion) -> Result<String, CniError> {
        if self.version.as_deref() == Some(version.text()) {
            return Ok(self.raw.get().to_owned());
        }
        let fail =
            |e: serde_json::Error| CniError::new(Code::Decode, "pass on prevResult").because(e);
        let mut fields: BTreeMap<String, &RawValue> =
            serde_json::from_str(self.raw.get()).map_err(fail)?;
        let named = serde_json::value::to_raw_value(version.text()).map_err(fail)?;
        fields.insert("cniVersion".to_owned(), &named);
        serde_json::to_string(&fields).map_err(fail)
    }

    /// The device through which the `bandwidth` plugin limits what the pod sends, if that plugin has run: with it comes a
    /// qdisc at the ingress hook of the host veth.
    pub fn bandwidth_device(&self) -> Option<&str> {
        const PREFIX: &str = "bwp";
        self.interfaces.iter().map(|i| i.name.as_str()).find(|name| name.starts_with(PREFIX))
    }

    /// The interfaces in the sandbox, loopback left out. If the result lists none there (some plugins
    /// leave `sandbox` or all interfaces out), it is the one that CNI_IFNAME names.
    pub fn sandbox_interfaces(
        &self,
        ifname: &str,
        is_sandbox: impl Fn(&str) -> bool,
    ) -> Vec<SandboxInterface> {
        let in_sandbox: Vec<(usize, &Interface)> = self
            .interfaces
            .iter()
            .enumerate()
            .filter(|(_, i)| i.name != "lo")
            .filter(|(_, i)| i.sandbox.as_deref().is_some_and(|s| !s.is_empty() && is_sandbox(s)))
            .collect();
        if in_sandbox.is_empty() {
            if ifname == "lo" {
                return Vec::new();
            }
            let all: Vec<_> = self.ips.iter().map(|(_, address)| *address).collect();
            let addresses = (!all.is_empty()).then_some(all);
            return vec![SandboxInterface { name: ifname.to_owned(), addresses }];
        }
        let only = in_sandbox.len() == 1;
        // an address of no interface could be any of several ones: then none is known to be complete
        let ambiguous = !only && self.ips.iter().any(|(interface, _)| interface.is_none());
        in_sandbox
            .into_iter()
            .map(|(index, interface)| {
                let own: Vec<_> = self
                    .ips
                    .iter()
                    .filter(|(of, _)| of.map_or(only, |of| of == index))
                    .map(|(_, address)| *address)
                    .collect();
                let known = !ambiguous && !own.is_empty();
                SandboxInterface { name: interface.name.clone(), addresses: known.then_some(own) }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(json: &str) -> PrevResult {
        PrevResult::parse(&RawValue::from_string(json.to_owned()).unwrap()).unwrap()
    }

    fn found(json: &str) -> Vec<(String, Option<Vec<String>>)> {
        result(json)
            .sandbox_interfaces("eth0", |s| s == "/ns")
            .into_iter()
            .map(|i| {
                let text = |a: Vec<IpAddr>| a.iter().map(IpAddr::to_string).collect();
                (i.name, i.addresses.map(text))
            })
            .collect()
    }

    fn known(name: &str, addresses: &[&str]) -> (String, Option<Vec<String>>) {
        (name.into(), Some(addresses.iter().map(|a| a.to_string()).collect()))
    }

    fn unknown(name: &str) -> (String, Option<Vec<String>>) {
        (name.into(), None)
    }

    #[test]
    fn the_bridge_plugin_result() {
        let json = r#"{"interfaces":[{"name":"br0","mac":"m"},{"name":"veth1","mac":"m"},
            {"name":"eth0","mac":"m","sandbox":"/ns"}],
            "ips":[{"version":"4","interface":2,"address":"10.0.0.5/24","gateway":"10.0.0.1"},
                   {"version":"6","interface":2,"address":"fd00::5/64"}]}"#;
        assert_eq!(found(json), [known("eth0", &["10.0.0.5", "fd00::5"])]);
    }

    #[test]
    fn several_interfaces_get_their_own_addresses() {
        let json = r#"{"interfaces":[{"name":"eth0","sandbox":"/ns"},{"name":"lo","sandbox":"/ns"},
            {"name":"net1","sandbox":"/ns"},{"name":"x","sandbox":"/other"}],
            "ips":[{"interface":2,"address":"10.1.0.5/24"},{"interface":0,"address":"10.0.0.5/24"}]}"#;
        assert_eq!(found(json), [known("eth0", &["10.0.0.5"]), known("net1", &["10.1.0.5"])]);
    }

    #[test]
    fn addresses_without_interface_are_the_only_ones() {
        let json =
            r#"{"interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"10.0.0.5/24"}]}"#;
        assert_eq!(found(json), [known("eth0", &["10.0.0.5"])]);
        let json = r#"{"interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"10.0.0.5","interface":-1}]}"#;
        assert_eq!(found(json), [known("eth0", &["10.0.0.5"])]);
    }

    #[test]
    fn ambiguous_or_missing_addresses_are_asked_for() {
        let json = r#"{"interfaces":[{"name":"eth0","sandbox":"/ns"},{"name":"net1","sandbox":"/ns"}],
            "ips":[{"address":"10.0.0.5/24"},{"address":"10.0.0.6/24","interface":1}]}"#;
        assert_eq!(found(json), [unknown("eth0"), unknown("net1")]);
        assert_eq!(found(r#"{"interfaces":[{"name":"eth0","sandbox":"/ns"}]}"#), [unknown("eth0")]);
    }

    #[test]
    fn a_result_without_sandbox_means_the_runtimes_interface() {
        assert_eq!(found("{}"), [unknown("eth0")]);
        assert_eq!(found(r#"{"interfaces":null,"ips":null}"#), [unknown("eth0")]);
        let json = r#"{"interfaces":[{"name":"eth0","sandbox":""}],"ips":[{"address":"10.0.0.5/24","interface":0}]}"#;
        assert_eq!(found(json), [known("eth0", &["10.0.0.5"])]);
        let only_lo = result(r#"{"interfaces":[{"name":"lo","sandbox":"/ns"}]}"#);
        assert!(only_lo.sandbox_interfaces("lo", |_| true).is_empty());
    }

    #[test]
    fn malformed_results_are_refused() {
        for json in [
            r#"{"ips":[{"address":"ten"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/24","interface":0}]}"#,
            r#"{"interfaces":[{"sandbox":"/ns"}]}"#,
            r#"[]"#,
        ] {
            let raw = RawValue::from_string(json.to_owned()).unwrap();
            assert_eq!(PrevResult::parse(&raw).unwrap_err().code, Code::Decode, "{json}");
        }
    }

    #[test]
    fn goes_out_as_it_came_in() {
        let text = r#"{ "zebra": 1e400, "cniVersion":"1.0.0",  "a":{"b" : [1.0, 0.10]} }"#;
        assert_eq!(result(text).output(SpecVersion::V1_0_0).unwrap(), text);
        assert_eq!(
            result(text).output(SpecVersion::V0_4_0).unwrap(),
            r#"{"a":{"b" : [1.0, 0.10]},"cniVersion":"0.4.0","zebra":1e400}"#
        );
        assert_eq!(result("{}").output(SpecVersion::V1_1_0).unwrap(), r#"{"cniVersion":"1.1.0"}"#);
    }
}
