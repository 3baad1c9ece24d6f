//! The network configuration that containerd finds.

use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

/// A chain [bridge with host-local, podgate], and what a test changes about it. ADD waits long for policyd, as a busy
/// machine needs it: a test in which there is none, or one that does not answer, says how long.
#[derive(Clone, Debug)]
pub struct Conflist {
    range: (Ipv4Addr, Ipv4Addr),
    podgate: Option<Map<String, Value>>,
    before: Vec<Value>,
    after: Vec<Value>,
}

impl Default for Conflist {
    fn default() -> Self {
        Self {
            range: (Ipv4Addr::new(10, 88, 0, 10), Ipv4Addr::new(10, 88, 0, 250)),
            podgate: Some(Map::from_iter([("policydTimeoutMs".to_owned(), json!(20_000))])),
            before: Vec::new(),
            after: Vec::new(),
        }
    }
}

impl Conflist {
    /// The network's name, in it and in registrations.
    pub const NETWORK: &str = "pods";

    /// The bridge's own address, which the node has.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

    /// Without podgate: what the node does by itself.
    pub fn ungated() -> Self {
        Self { podgate: None, ..Self::default() }
    }

    /// Sets a key of podgate's.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.podgate.get_or_insert_default().insert(key.to_owned(), value.into());
        self
    }

    /// Leaves only so many addresses, so that they are soon used again.
    #[must_use]
    pub fn with_addresses(mut self, count: u8) -> Self {
        let [a, b, c, d] = self.range.0.octets();
        self.range.1 = Ipv4Addr::new(a, b, c, d + count - 1);
        self
    }

    /// Puts another plugin between the bridge and podgate.
    #[must_use]
    pub fn before(mut self, plugin: &str) -> Self {
        self.before.push(json!({ "type": plugin }));
        self
    }

    /// Puts another plugin after podgate.
    #[must_use]
    pub fn after(mut self, plugin: &str) -> Self {
        self.after.push(json!({ "type": plugin }));
        self
    }

    /// The file's content.
    pub fn json(&self) -> Value {
        let bridge = json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{
                    "subnet": "10.88.0.0/24",
                    "rangeStart": self.range.0,
                    "rangeEnd": self.range.1,
                }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        let podgate = self.podgate.clone().map(|mut keys| {
            keys.insert("type".into(), "podgate".into());
            Value::Object(keys)
        });
        let plugins: Vec<_> = [bridge]
            .into_iter()
            .chain(self.before.iter().cloned())
            .chain(podgate)
            .chain(self.after.iter().cloned())
            .collect();
        json!({ "cniVersion": "1.0.0", "name": Self::NETWORK, "plugins": plugins })
    }
}
