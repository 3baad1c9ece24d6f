//! Which pod owns which address.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use super::label_identities::IdentityId;
use crate::model::Pod;

/// A pod that may own addresses, and its identity.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) pod: Arc<Pod>,
    pub(crate) identity: IdentityId,
}

/// The claims on one address: nearly always one.
#[derive(Clone, Debug)]
enum Claimants {
    One(Claim),
    /// At least two.
    Many(Vec<Claim>),
}

/// All claims, by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    of: BTreeMap<IpAddr, Claimants>,
}

impl Claims {
    pub(super) fn add(&mut self, address: IpAddr, claim: Claim) {
        match self.of.entry(address) {
            Entry::Vacant(vacant) => drop(vacant.insert(Claimants::One(claim))),
            Entry::Occupied(mut taken) => match taken.get_mut() {
                Claimants::One(first) => {
                    let both = vec![first.clone(), claim];
                    taken.insert(Claimants::Many(both));
                }
                Claimants::Many(claims) => claims.push(claim),
            },
        }
    }

    pub(super) fn remove(&mut self, address: IpAddr, pod: &Arc<Pod>) {
        let Entry::Occupied(mut taken) = self.of.entry(address) else { return };
        match taken.get_mut() {
            Claimants::One(only) if only.pod.key == pod.key => drop(taken.remove()),
            Claimants::One(_) => {}
            Claimants::Many(claims) => {
                claims.retain(|claim| claim.pod.key != pod.key);
                if let [only] = claims.as_slice() {
                    let only = only.clone();
                    taken.insert(Claimants::One(only));
                }
            }
        }
    }

    pub(super) fn best(&self, address: IpAddr) -> Option<&Claim> {
        self.of.get(&address).and_then(Claimants::best)
    }

    /// The best claim on each address of a range, in the order of addresses.
    pub(super) fn range(
        &self,
        range: impl std::ops::RangeBounds<IpAddr>,
    ) -> impl Iterator<Item = (IpAddr, &Claim)> {
        self.of.range(range).filter_map(|(address, claims)| Some((*address, claims.best()?)))
    }
}

impl Claimants {
    /// A live pod before a terminating one, then the newest, then the first by name.
    fn best(&self) -> Option<&Claim> {
        match self {
            Self::One(claim) => Some(claim),
            Self::Many(claims) => {
                claims.iter().min_by(|a, b| a.pod.claim_rank().cmp(&b.pod.claim_rank()))
            }
        }
    }
}
