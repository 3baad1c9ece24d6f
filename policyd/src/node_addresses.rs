//! Addresses that count as the node's own although no interface has them, because the node sends from them:
//! `--node-address`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use podgate_bpf::maps::Net;

/// The source addresses to which Istio's ambient mode translates the kubelet's probes.
const ISTIO_AMBIENT: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];

/// A value of `--node-address`: an address, a CIDR, the name of a preset, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress(Vec<Net>);

impl NodeAddress {
    /// Its prefixes.
    pub fn nets(&self) -> &[Net] {
        &self.0
    }
}

impl FromStr for NodeAddress {
    type Err = String;

    /// The error says what to write instead.
    fn from_str(text: &str) -> Result<Self, String> {
        // an empty environment variable
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        if text == "istio-ambient" {
            return ISTIO_AMBIENT
                .iter()
                .map(|address| net(address))
                .collect::<Result<_, _>>()
                .map(Self);
        }
        net(text).map(|net| Self(vec![net]))
    }
}

fn net(text: &str) -> Result<Net, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(podgate_bpf::maps::host_net(address.to_canonical()));
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| "write an address, a CIDR as in 192.0.2.0/24, or istio-ambient".to_owned())?;
    if net.prefix_len() == 0 {
        return Err("every address would be the node's own: write a longer prefix".to_owned());
    }
    if net != net.trunc() {
        return Err(format!("bits are set behind the prefix: write {}", net.trunc()));
    }
    Ok((net.addr(), net.prefix_len()))
}

/// Whether one of the prefixes holds the address.
pub fn holds(nets: &BTreeSet<Net>, address: IpAddr) -> bool {
    let address = address.to_canonical();
    nets.iter().any(|(of, length)| IpNet::new(*of, *length).is_ok_and(|net| net.contains(&address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Net>, String> {
        text.parse::<NodeAddress>().map(|named| named.nets().to_vec())
    }

    #[test]
    fn addresses_and_prefixes_are_read() {
        let net = |address: &str, length| Ok(vec![(address.parse().unwrap(), length)]);
        assert_eq!(parsed(""), Ok(Vec::new()));
        assert_eq!(parsed("169.254.7.127"), net("169.254.7.127", 32));
        assert_eq!(parsed("::ffff:192.0.2.1"), net("192.0.2.1", 32));
        assert_eq!(parsed("fd00::1"), net("fd00::1", 128));
        assert_eq!(parsed("192.0.2.0/24"), net("192.0.2.0", 24));
        assert_eq!(parsed("fd00:1::/64"), net("fd00:1::", 64));
    }

    #[test]
    fn the_preset_is_both_of_istios_addresses() {
        let nets = parsed("istio-ambient").unwrap();
        let wanted = ISTIO_AMBIENT.map(|address| address.parse::<IpAddr>().unwrap());
        assert_eq!(nets, [(wanted[0], 32), (wanted[1], 128)]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert!(parsed("0.0.0.0/0").unwrap_err().contains("longer prefix"));
        assert!(parsed("::/0").unwrap_err().contains("longer prefix"));
        assert!(parsed("192.0.2.7/24").unwrap_err().ends_with("write 192.0.2.0/24"));
        for text in ["istio", "192.0.2.0/33", "192.0.2", "host.example"] {
            assert!(parsed(text).unwrap_err().starts_with("write an address"), "{text}");
        }
    }

    #[test]
    fn an_address_is_found_in_its_prefix() {
        let nets =
            BTreeSet::from([("192.0.2.0".parse().unwrap(), 24), ("fd00::1".parse().unwrap(), 128)]);
        for (address, held) in [
            ("192.0.2.9", true),
            ("::ffff:192.0.2.9", true),
            ("192.0.3.9", false),
            ("fd00::1", true),
            ("fd00::2", false),
        ] {
            assert_eq!(holds(&nets, address.parse().unwrap()), held, "{address}");
        }
    }
}
