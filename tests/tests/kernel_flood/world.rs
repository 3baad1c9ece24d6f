//! The objects that policyd reads, in all the states between which the driver changes.

use std::fmt::Write;

use podgate_tests::fuzz::dice::Dice;

use crate::node::{v4, v6};

/// Numbers of the pods.
pub(crate) const CLIENT: u8 = 10;
pub(crate) const SERVER: u8 = 11;
pub(crate) const SERVER2: u8 = 12;
pub(crate) const OTHER: u8 = 13;
pub(crate) const DRIFTER: u8 = 14;
pub(crate) const FLOODER: u8 = 15;
pub(crate) const SINK: u8 = 16;
pub(crate) const COMER: u8 = 17;

/// What every state lets the client, and clients only, do at both servers.
pub(crate) const PORT: u16 = 80;
/// Only some states let the client do this.
pub(crate) const MORE: u16 = 443;
/// Only some states let the other pod do this.
pub(crate) const OTHERS: u16 = 81;
/// For pods labelled as friends.
pub(crate) const FRIENDS: u16 = 82;
/// No state allows it at an isolated pod.
pub(crate) const NEVER: u16 = 90;
/// The service's address, in front of one or both servers.
pub(crate) const SERVICE: &str = "10.96.0.10";

/// What the changing part of the world is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Which state this is: a rule of its own shows when it is in force.
    pub(crate) number: u16,
    /// The client may use [`MORE`].
    pub(crate) more: bool,
    /// The other pod may use [`OTHERS`].
    pub(crate) others: bool,
    /// The drifter is labelled a friend.
    pub(crate) friend: bool,
    /// The comer is one of the clients; else it may send nothing.
    pub(crate) comer_is_client: bool,
    /// How often the comer has come.
    pub(crate) comers: u32,
    /// How the rules that are always there are spelled.
    spelling: usize,
    /// Which servers the service has.
    endpoints: usize,
}

impl State {
    pub(crate) fn first() -> Self {
        Self {
            number: 0,
            more: false,
            others: false,
            friend: false,
            comer_is_client: false,
            comers: 0,
            spelling: 0,
            endpoints: 0,
        }
    }

    /// Another one of the same pods.
    pub(crate) fn next(&self, dice: &mut Dice) -> Self {
        Self {
            number: self.number + 1,
            more: dice.chance(50),
            others: dice.chance(50),
            friend: dice.chance(50),
            spelling: dice.below(4),
            endpoints: dice.below(3),
            ..self.clone()
        }
    }

    /// The same with another pod at the comer's address.
    pub(crate) fn with_another_comer(&self) -> Self {
        Self {
            number: self.number + 1,
            comer_is_client: !self.comer_is_client,
            comers: self.comers + 1,
            ..self.clone()
        }
    }

    /// The same under another number.
    pub(crate) fn as_number(&self, number: u16) -> Self {
        Self { number, ..self.clone() }
    }

    /// The comer's name.
    pub(crate) fn comer(&self) -> String {
        format!("comer-{}", self.comers)
    }

    /// The port of the rule that only this state has.
    pub(crate) fn marker(&self) -> u16 {
        20_000 + self.number
    }

    /// All objects.
    pub(crate) fn manifest(&self) -> String {
        let mut world = String::new();
        let friend = if self.friend { "friend" } else { "stranger" };
        let comer = if self.comer_is_client { "client" } else { "mute" };
        for (name, number, app) in [
            ("client", CLIENT, "client"),
            ("server", SERVER, "server"),
            ("server2", SERVER2, "server"),
            ("other", OTHER, "other"),
            ("drifter", DRIFTER, friend),
            ("flooder", FLOODER, "flooder"),
            ("sink", SINK, "sink"),
            (&self.comer(), COMER, comer),
        ] {
            let (v4, v6) = (v4(number), v6(number));
            let _ = write!(
                world,
                "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: {name}, labels: {{app: {app}}}}}\n\
                 spec: {{containers: [{{name: c, image: i}}]}}\n\
                 status: {{podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}], phase: Running}}\n---\n"
            );
        }
        self.policies(&mut world);
        self.service(&mut world);
        world
    }

    fn policies(&self, world: &mut String) {
        let selector = |app: &str| format!("[{{podSelector: {{matchLabels: {{app: {app}}}}}}}]");
        let blocks = |numbers: &[u8]| {
            let block = |address, bits| format!("{{ipBlock: {{cidr: '{address}/{bits}'}}}}");
            let of = |number: &u8| [block(v4(*number), 32), block(v6(*number), 128)];
            format!("[{}]", numbers.iter().flat_map(of).collect::<Vec<_>>().join(", "))
        };
        let comer = if self.comer_is_client { &[CLIENT, COMER][..] } else { &[CLIENT] };
        let (clients, servers) = (selector("client"), selector("server"));
        let (some_clients, some_servers) = (blocks(comer), blocks(&[SERVER, SERVER2]));
        let always = format!("[{{protocol: UDP, port: {PORT}}}, {{protocol: TCP, port: {PORT}}}]");
        // the rule that is always there, in other words: as selectors, as blocks, as both, in a policy of its own
        let spelled = |key: &str, selected: &str, in_blocks: &str| -> Vec<String> {
            let rule = |peers: &str| format!("{{{key}: {peers}, ports: {always}}}");
            match self.spelling {
                0 => vec![rule(selected)],
                1 => vec![rule(in_blocks)],
                2 => vec![rule(selected), rule(in_blocks)],
                _ => vec![
                    rule(selected),
                    format!(
                        "{{{key}: {in_blocks}, ports: [{{protocol: UDP, port: 1, endPort: 79}}]}}"
                    ),
                ],
            }
        };
        let rule = |key: &str, peers: &str, port: u16| {
            format!("{{{key}: {peers}, ports: [{{protocol: UDP, port: {port}}}]}}")
        };
        let mut ingress = spelled("from", &clients, &some_clients);
        let mut egress = spelled("to", &servers, &some_servers);
        ingress.push(rule("from", &clients, self.marker()));
        egress.push(rule("to", &servers, self.marker()));
        ingress.push(rule("from", &selector("friend"), FRIENDS));
        if self.more {
            ingress.push(rule("from", &clients, MORE));
            egress.push(rule("to", &servers, MORE));
        }
        if self.others {
            ingress.push(rule("from", &selector("other"), OTHERS));
        }
        let mut policy = |name: &str, app: &str, types: &str, rules: &str| {
            let _ = write!(
                world,
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{namespace: shop, name: {name}}}\n\
                 spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [{types}], {rules}}}\n---\n"
            );
        };
        policy(
            "servers",
            "server",
            "Ingress, Egress",
            &format!("ingress: [{}]", ingress.join(", ")),
        );
        policy("clients", "client", "Egress", &format!("egress: [{}]", egress.join(", ")));
        policy("mute", "mute", "Ingress, Egress", "ingress: []");
    }

    fn service(&self, world: &mut String) {
        let endpoints = [&[SERVER][..], &[SERVER2], &[SERVER, SERVER2]][self.endpoints];
        let endpoints: Vec<String> =
            endpoints.iter().map(|number| format!("{{addresses: [{}]}}", v4(*number))).collect();
        let ports = format!(
            "[{{name: u, protocol: UDP, port: {PORT}}}, {{name: t, protocol: TCP, port: {PORT}}}]"
        );
        let _ = write!(
            world,
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: web}}\n\
             spec: {{clusterIP: {SERVICE}, ports: {ports}}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{namespace: shop, name: web-x, labels: {{kubernetes.io/service-name: web}}}}\n\
             ports: {ports}\nendpoints: [{}]\n---\n",
            endpoints.join(", ")
        );
    }
}
