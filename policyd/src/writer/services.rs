//! The part of a commit that is about services and comes after the policies.

use podgate_policy::compile::{Compiled, Endpoint};

use super::endpoints::Endpoints;
use crate::sync::left::LeftAlone;
use crate::sync::services::{ServiceMode, ServiceSync};

/// Puts in force what is new of services, or the answers that stand in for them; of the two ways the new one stands
/// before the old one goes. True if flows must look again.
pub(super) fn commit(
    services: &mut ServiceSync,
    left: &mut LeftAlone,
    compiled: &Compiled,
    endpoints: &Endpoints,
) -> bool {
    let owned = || {
        let owner = |of: Endpoint| Some((of.clone(), endpoints.get(of.id)?.owner));
        endpoints.compile_input().into_iter().filter_map(owner).collect::<Vec<_>>()
    };
    let answered = match services.mode() {
        ServiceMode::Leave => {
            let answered = left.answer(services.table(), compiled, &owned());
            services.retire();
            services.extend();
            answered
        }
        ServiceMode::Translate => {
            services.extend();
            !left.is_empty() && left.clear(&owned())
        }
    };
    services.take_changed() || answered
}
