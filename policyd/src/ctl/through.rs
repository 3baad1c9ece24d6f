//! Probes to services: one way for each endpoint, since any of them may be picked; or, where the gate leaves an address
//! alone, the way to that address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use podgate_policy::compile::Transport;
use podgate_policy::explain::Verdict;
use podgate_policy::services::{Balance, Claims, Frontend, LeftAnswer, answer_left};

use super::end::End;
use super::judge::{Answer, Judged, Spot, Unanswerable, Way};
use super::probes::Probe;
use super::world::{Party, Seat, World};

/// A frontend and where it leads; what is left alone has claims.
pub(super) struct Led {
    frontend: Frontend,
    balance: Option<Arc<Balance>>,
    claims: Claims,
}

impl World {
    /// What a probe's destination means if it is a service, by its name or by an address of it.
    pub(super) fn service(&self, probe: &Probe) -> Result<Option<Vec<Led>>, Unanswerable> {
        let key = match &probe.dst {
            End::Service(key) => key,
            End::Address(address) => {
                let Transport::Port(protocol, port) = probe.wire.0 else { return Ok(None) };
                let led = self.led(Frontend { address: *address, port, protocol });
                let is_one = led.balance.is_some() || !led.claims.is_empty();
                return Ok(is_one.then(|| vec![led]));
            }
            End::Pod(_) | End::Node(_) => return Ok(None),
        };
        let Some(service) = self.index.services().service(key) else {
            return Err(("dst", format!("no service {key} in {}", self.dir.display())));
        };
        let cluster = service.addressing.cluster();
        if cluster.is_empty() {
            let cause = format!("service {key} has no address of its own: ask about its pods");
            return Err(("dst", cause));
        }
        let Transport::Port(protocol, port) = probe.wire.0 else {
            return Err(("proto", "a service has ports: must be TCP, UDP or SCTP".into()));
        };
        let translated = self.services.of_service(key).map(|(frontend, _)| frontend);
        let left = self.services.left_of_service(key).map(|(frontend, _)| frontend);
        let frontends: Vec<Led> = translated
            .chain(left)
            .filter(|of| (of.port, of.protocol) == (port, protocol))
            .filter(|of| cluster.contains(&of.address))
            .map(|frontend| self.led(frontend))
            .collect();
        if frontends.is_empty() {
            return Err(("port", format!("service {key} has no port {port}/{protocol}")));
        }
        Ok(Some(frontends))
    }

    fn led(&self, frontend: Frontend) -> Led {
        let balance = self.services.translated(&frontend).cloned();
        Led { frontend, balance, claims: self.services.left_at(&frontend) }
    }

    /// The way of a packet to an address that the gate leaves alone: to whoever has it.
    fn left_way(
        &self,
        seat: usize,
        (src, source): (&Party, IpAddr),
        led: &Led,
    ) -> Result<Option<Way>, Unanswerable> {
        let Led { frontend, claims, .. } = led;
        let first = |list: &[IpAddr]| {
            list.iter().find(|of| of.is_ipv4() == frontend.address.is_ipv4()).copied()
        };
        let at = self.at(frontend.address);
        let Some((to, destination)) = self.stand("dst", &at, src, first)? else { return Ok(None) };
        let transport = Transport::Port(frontend.protocol, frontend.port);
        let Seat { pod, endpoint } = &self.seats[seat];
        let reasons: BTreeSet<_> = claims
            .iter()
            .map(|left| format!("{frontend} of {}: {}", left.service, left.reason))
            .collect();
        let reasons = reasons.into_iter().collect::<Vec<_>>().join("; ");
        let answer = match answer_left(self.engine.compiled(), endpoint, frontend, claims) {
            None => Answer {
                verdict: Verdict::Allow,
                why: format!("egress at {}: not isolated for egress", pod.key),
            },
            Some(LeftAnswer::Allow(_)) => Answer {
                verdict: Verdict::Allow,
                why: format!("egress at {}: allowed; {reasons}", pod.key),
            },
            Some(LeftAnswer::Deny) => {
                Answer { verdict: Verdict::Deny, why: format!("denied at {}: {reasons}", pod.key) }
            }
        };
        let (from, through) = (Spot::Pod(seat), None);
        Ok(Some(Way { from, source, to, destination, transport, through, answer }))
    }

    /// Judges a probe to a service.
    pub(super) fn judge_service(
        &self,
        probe: &Probe,
        frontends: &[Led],
    ) -> Result<Judged, Unanswerable> {
        let src = self.party(&probe.src).map_err(|cause| ("src", cause))?;
        let Party::Pod(seat, addresses) = &src else {
            let cause = "must be a pod: services are translated at a pod's gate";
            return Err(("src", cause.into()));
        };
        let mut ways = Vec::new();
        let mut families = 0;
        for led in frontends {
            let Led { frontend, balance, claims } = led;
            let family = |address: &&IpAddr| address.is_ipv4() == frontend.address.is_ipv4();
            let Some(source) = addresses.iter().find(family).copied() else { continue };
            families += 1;
            if !claims.is_empty() {
                ways.extend(self.left_way(*seat, (&src, source), led)?);
                continue;
            }
            let from = Spot::Pod(*seat);
            for backend in balance.iter().flat_map(|balance| balance.ready()) {
                let at = self.at(backend.address);
                let first = |list: &[IpAddr]| list.iter().find(family).copied();
                let to = self.stand("dst", &at, &src, first)?;
                let Some((to, destination)) = to else { continue };
                let transport = Transport::Port(frontend.protocol, backend.port);
                let answer = self.way(from, source, to, destination, transport);
                let through = Some(*frontend);
                ways.push(Way { from, source, to, destination, transport, through, answer });
            }
        }
        Ok(Judged::of(ways, || match families {
            0 => format!("{} and {} have no address family in common", probe.src, probe.dst),
            _ => format!("{} has no endpoint that is ready: nobody answers", probe.dst),
        }))
    }
}
