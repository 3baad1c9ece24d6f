//! `runtimeConfig.bandwidth`: limits that the runtime takes from the pod's annotations, for a plugin with the capability
//! `bandwidth`. The keys and units are those of the CNI project's bandwidth plugin.

use std::collections::BTreeMap;

use podgate_bpf::abi::{Direction, Limit, LimitsRecord, ORIGIN_RUNTIME, Rate};
use podgate_contract::bandwidth::Bucket;
use podgate_contract::plugin_conf::BANDWIDTH;
use serde::Deserialize;
use serde_json::Value;

use super::{CniError, Code, NetConf};

/// From here on a burst is none: containerd and CRI-O pass the largest number that fits into 31 or 32 bits where the pod
/// says nothing, 256 MB at the rate of the wire.
const NO_BURST: u64 = i32::MAX as u64;

/// In bits a second and bits. 0 is the same as missing.
#[derive(Debug, Default)]
struct Bandwidth {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

impl Bandwidth {
    /// In whatever case the keys are: containerd (1.6.20) writes `IngressRate` where the convention says `ingressRate`. Go's reader,
    /// which the bandwidth plugin has, takes both. Other keys are ignored.
    fn read(fields: BTreeMap<String, Value>) -> Result<Self, CniError> {
        let mut read = Self::default();
        for (key, value) in fields {
            let field = match key.to_ascii_lowercase().as_str() {
                "ingressrate" => &mut read.ingress_rate,
                "ingressburst" => &mut read.ingress_burst,
                "egressrate" => &mut read.egress_rate,
                "egressburst" => &mut read.egress_burst,
                _ => continue,
            };
            *field = value.as_u64().ok_or_else(|| {
                let key = format!("read runtimeConfig.{BANDWIDTH}.{key}");
                CniError::new(Code::Decode, key).because(format!("it is {value}, no whole number"))
            })?;
        }
        Ok(read)
    }
}

/// The limits of the pod's bandwidth. `None` if there are none.
pub fn limits(conf: &NetConf) -> Result<Option<LimitsRecord>, CniError> {
    #[derive(Deserialize)]
    struct RuntimeConfig {
        bandwidth: Option<BTreeMap<String, Value>>,
    }
    let config: Option<RuntimeConfig> = conf.get("runtimeConfig")?;
    let Some(fields) = config.and_then(|config| config.bandwidth) else { return Ok(None) };
    let Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } =
        Bandwidth::read(fields)?;
    let mut limits = LimitsRecord::default();
    let mut limited = false;
    for (direction, rate, burst) in [
        (Direction::Ingress, ingress_rate, ingress_burst),
        (Direction::Egress, egress_rate, egress_burst),
    ] {
        if rate == 0 {
            if burst > 0 && burst < NO_BURST {
                let key = format!("runtimeConfig.{BANDWIDTH}");
                return Err(CniError::new(Code::InvalidConfig, format!("use {key}")).because(
                    format!("it has a burst of {burst} bits for {}, and no rate", direction.name()),
                ));
            }
            continue;
        }
        let burst = Some(burst).filter(|burst| (1..NO_BURST).contains(burst));
        let Bucket { per_second, burst } = Bucket::of_bits(rate, burst);
        let rate = Rate::per_second(per_second, burst);
        limits.set_rate(direction, Limit::Bandwidth, rate, ORIGIN_RUNTIME);
        limited = true;
    }
    Ok(limited.then_some(limits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bandwidth: &str) -> Result<Option<LimitsRecord>, CniError> {
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"n","runtimeConfig":{{"bandwidth":{bandwidth}}}}}"#
        );
        limits(&NetConf::parse(text.as_bytes()).unwrap())
    }

    fn rate(limits: Option<LimitsRecord>, direction: Direction) -> Rate {
        limits.unwrap().rates[direction as usize][Limit::Bandwidth as usize]
    }

    #[test]
    fn rates_and_bursts_are_those_of_the_bandwidth_plugin() {
        let both = read(
            r#"{"ingressRate":8000000,"ingressBurst":1600000,"egressRate":80000000,"egressBurst":8}"#,
        );
        let both = both.unwrap();
        assert_eq!(rate(both, Direction::Ingress), Rate::per_second(1_000_000, 200_000));
        assert_eq!(rate(both, Direction::Egress), Rate::per_second(10_000_000, 1));
        assert_eq!(both.unwrap().origins[Direction::Egress as usize][0], ORIGIN_RUNTIME);
        let one = read(r#"{"egressRate":8000}"#).unwrap();
        assert_eq!(rate(one, Direction::Ingress), Rate::NONE);
        assert_eq!(rate(one, Direction::Egress), Rate::per_second(1000, 131_072));
    }

    #[test]
    fn keys_are_read_as_containerd_writes_them() {
        let text =
            r#"{"EgressBurst":4294967295,"EgressRate":80000000,"IngressBurst":0,"IngressRate":0}"#;
        let limits = read(text).unwrap();
        assert_eq!(rate(limits, Direction::Egress), Rate::per_second(10_000_000, 500_000));
        assert_eq!(rate(limits, Direction::Ingress), Rate::NONE);
        assert_eq!(read(r#"{"shapedSubnets":["10.0.0.0/8"]}"#), Ok(None));
    }

    #[test]
    fn a_burst_as_large_as_a_runtimes_default_is_none() {
        for none in [0, 2_147_483_647_u64, 4_294_967_295] {
            let text = format!(r#"{{"ingressRate":8000000,"ingressBurst":{none}}}"#);
            let limits = read(&text).unwrap();
            assert_eq!(rate(limits, Direction::Ingress), Rate::per_second(1_000_000, 131_072));
        }
    }

    #[test]
    fn without_a_rate_there_is_no_limit() {
        for none in
            ["null", "{}", r#"{"ingressRate":0,"egressRate":0}"#, r#"{"ingressBurst":2147483647}"#]
        {
            assert_eq!(read(none), Ok(None), "{none}");
        }
        let conf =
            NetConf::parse(br#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":"x"}}"#);
        assert_eq!(limits(&conf.unwrap()), Ok(None));
    }

    #[test]
    fn what_cannot_be_a_limit_is_refused_by_name() {
        let refused = |text: &str| read(text).unwrap_err();
        let burst = refused(r#"{"egressBurst":8000}"#);
        assert_eq!(burst.code, Code::InvalidConfig);
        assert!(
            burst.to_string().contains("a burst of 8000 bits for egress, and no rate"),
            "{burst}"
        );
        for text in
            [r#"{"ingressRate":-1}"#, r#"{"ingressRate":"1M"}"#, r#"{"ingressRate":1.5}"#, "7"]
        {
            let error = refused(text);
            assert_eq!(error.code, Code::Decode, "{text}");
            assert!(error.to_string().contains("runtimeConfig"), "{error}");
        }
    }
}
