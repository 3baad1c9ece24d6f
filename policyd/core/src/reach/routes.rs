//! Which endpoints a packet to a service may get.

use std::collections::BTreeSet;

use super::parties::{Party, Place};
use super::{Field, Question, Reach, Target, Translator, Unanswerable};
use crate::model::ObjectKey;
use crate::services::{Backend, Claims, Frontend};
use crate::tables::Transport;

/// One address and port of a service, and where packets to it may end.
pub(super) struct Route {
    pub(super) frontend: Frontend,
    /// Some service has the address and port.
    is_service: bool,
    pub(super) translator: Translator,
    /// Every endpoint that may be selected.
    pub(super) backends: BTreeSet<Backend>,
    /// What listens at the address itself answers for the service.
    pub(super) is_node_local: bool,
    /// The services that may answer, where the gate does not translate.
    pub(super) claims: Claims,
}

impl Reach<'_> {
    /// What the destination means if it is a service, by its name or by an address and port of it; `None` if it is none.
    pub(super) fn routes(
        &self,
        question: &Question,
        from: &Party,
    ) -> Result<Option<Vec<Route>>, Unanswerable> {
        let frontends = match (&question.to, question.transport) {
            (Target::Service(key), transport) => self.frontends(key, transport)?,
            (Target::Address(address), Transport::Port(protocol, port)) => {
                vec![Frontend { address: *address, port, protocol }]
            }
            (Target::Address(_) | Target::Pod(_) | Target::Node(_), _) => return Ok(None),
        };
        let mut routes: Vec<_> = frontends.into_iter().map(|of| self.route(of, from)).collect();
        if let Target::Address(_) = question.to {
            routes.retain(|route| route.is_service);
            if routes.is_empty() {
                return Ok(None);
            }
        }
        if let Place::External = from.place {
            let cause =
                "must be a pod or a node: a service is translated at a pod's gate or on a node";
            return Err(Unanswerable::new(Field::From, cause));
        }
        Ok(Some(routes))
    }

    /// The frontends of a service's own addresses, as a client sees it that was given the service's name.
    fn frontends(
        &self,
        key: &ObjectKey,
        transport: Transport,
    ) -> Result<Vec<Frontend>, Unanswerable> {
        let fail = |field, cause: String| Err(Unanswerable::new(field, cause));
        let Some(service) = self.index.services().service(key) else {
            return fail(Field::To, format!("no service {key} is known"));
        };
        let cluster = service.addressing.cluster();
        if cluster.is_empty() {
            let cause = format!("service {key} has no address of its own: ask about its pods");
            return fail(Field::To, cause);
        }
        let Transport::Port(protocol, port) = transport else {
            return fail(Field::Protocol, "a service has ports: must be TCP, UDP or SCTP".into());
        };
        let translated = self.services.of_service(key).map(|(frontend, _)| frontend);
        let left = self.services.untranslated_of_service(key).map(|(frontend, _)| frontend);
        let frontends: Vec<_> = translated
            .chain(left)
            .filter(|of| (of.port, of.protocol) == (port, protocol))
            .filter(|of| cluster.contains(&of.address))
            .collect();
        match frontends.is_empty() {
            true => fail(Field::Port, format!("service {key} has no port {port}/{protocol}")),
            false => Ok(frontends),
        }
    }

    fn route(&self, frontend: Frontend, from: &Party) -> Route {
        let translated = self.services.translated(&frontend);
        let claims = self.services.untranslated_at(&frontend);
        let is_node_local = claims.iter().any(|left| left.is_node_local());
        let behind = claims.iter().filter(|left| !left.is_node_local());
        let mut backends: BTreeSet<_> = behind.flat_map(|left| &left.backends).copied().collect();
        backends.extend(translated.iter().flat_map(|balance| balance.ready()));
        let translator = match (&from.place, translated) {
            (Place::Pod(_), Some(_)) => Translator::Gate,
            _ => Translator::Node,
        };
        let is_service = translated.is_some() || !claims.is_empty();
        Route { frontend, is_service, translator, backends, is_node_local, claims }
    }
}
