//! Probes that go through a service: one way for each of its endpoints, since any of them may be picked.

use std::net::IpAddr;
use std::sync::Arc;

use podgate_policy::compile::Transport;
use podgate_policy::services::{Balance, Frontend};

use super::end::End;
use super::judge::{Judged, Unanswerable, Way};
use super::probes::Probe;
use super::world::{Party, World};

/// A frontend and where it leads.
pub(super) type Led = (Frontend, Option<Arc<Balance>>);

impl World {
    /// What a probe's destination means if it is a service, by its name or by an address of it. An address that leads
    /// nowhere is judged as the address it is: podgate leaves it alone.
    pub(super) fn service(&self, probe: &Probe) -> Result<Option<Vec<Led>>, Unanswerable> {
        let key = match &probe.dst {
            End::Service(key) => key,
            End::Address(address) => {
                let Transport::Port(protocol, port) = probe.wire.0 else { return Ok(None) };
                let frontend = Frontend { address: *address, port, protocol };
                let balance = self.services.get(&frontend);
                return Ok(balance.map(|balance| vec![(frontend, Some(balance.clone()))]));
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
        let frontends: Vec<Led> = self
            .services
            .of_service(key)
            .filter(|(of, _)| (of.port, of.protocol) == (port, protocol))
            .filter(|(of, _)| cluster.contains(&of.address))
            .map(|(frontend, balance)| (frontend, balance.cloned()))
            .collect();
        if frontends.is_empty() {
            return Err(("port", format!("service {key} has no port {port}/{protocol}")));
        }
        Ok(Some(frontends))
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
        for (frontend, balance) in frontends {
            let family = |address: &&IpAddr| address.is_ipv4() == frontend.address.is_ipv4();
            let Some(source) = addresses.iter().find(family).copied() else { continue };
            families += 1;
            let from = super::Spot::Pod(*seat);
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
