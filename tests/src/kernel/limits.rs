//! What the pod of a lab may use.

use libbpf_rs::{MapCore, MapFlags};
use podgate_bpf::abi::{Direction, LimitsKey, LimitsRecord, Meter, Verdict};
use zerocopy::IntoBytes;

use super::Lab;
use super::lab::must;
use super::world::{Entry, Ports};

impl Lab {
    /// Puts limits in force at the pod (rule 0), or at one of its traffic rules, and has every flow judged again.
    pub fn limit(&self, rule: u32, limits: &LimitsRecord) {
        must("load the metered programs", self.datapath().load_metered());
        let key = LimitsKey { owner: self.owner(), rule };
        must("set limits", self.datapath().maps.limits().set(key, limits));
        self.bump();
    }

    /// Takes the pod's limits out of force, and has every flow judged again.
    pub fn unlimit(&self) {
        let removed =
            self.datapath().maps.limits().remove(LimitsKey { owner: self.owner(), rule: 0 });
        must("remove limits", removed);
        self.bump();
    }

    /// What the pod, or one of its traffic rules, uses.
    pub fn meter(&self, rule: u32) -> Meter {
        let meter = self.datapath().maps.limits().meter(LimitsKey { owner: self.owner(), rule });
        must("read a meter", meter).unwrap_or_else(|| panic!("rule {rule} has no meter"))
    }

    /// Gives the pod traffic rules: connections of these directions, classes and ports are of the rule of that number.
    pub fn traffic_rules(&self, rules: &[(Direction, u32, Ports, u32)]) {
        let spelled: Vec<_> = rules
            .iter()
            .map(|&(direction, class, ports, rule)| {
                let verdict = Verdict::Allow;
                Entry { direction, class, ports, verdict, logged: false, rule }.spell(self.owner())
                    [0]
            })
            .collect();
        let table = must("make a table", self.datapath().maps.new_policy_map(&spelled));
        let installed = self.datapath().maps.limits().install_traffic(self.ifindex, &table);
        must("install it", installed);
        self.bump();
    }

    /// Forgets every flow that is counted as an open connection, as eviction does: with its place in the count.
    pub fn evict_counted(&self) {
        let table = self.datapath().maps.flow_table();
        let v4 = must("read flows4", table.flows4()).into_iter();
        let v6 = must("read flows6", table.flows6()).into_iter();
        let counted = v4
            .map(|(key, flow)| ("flows4", key.as_bytes().to_vec(), flow))
            .chain(v6.map(|(key, flow)| ("flows6", key.as_bytes().to_vec(), flow)))
            .filter(|(_, _, flow)| flow.counted != 0);
        let key = LimitsKey { owner: self.owner(), rule: 0 };
        for (map, flow_key, flow) in counted {
            must("forget a flow", self.map(map).delete(&flow_key));
            let mut meter = self.meter(0);
            meter.open[usize::from(flow.direction)] -= 1;
            let changed =
                self.map("meters").update(key.as_bytes(), meter.as_bytes(), MapFlags::ANY);
            must("uncount it", changed);
        }
    }
}
