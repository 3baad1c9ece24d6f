//! Services and EndpointSlices as the sources report them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Frontend;
use crate::model::{EndpointSlice, ObjectKey, Service};

/// Services and their slices, by name. Like the index that holds it, its content is a function of the set of
/// objects, whatever their order; a slice may come before its service.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    services: BTreeMap<ObjectKey, Arc<Service>>,
    slices: BTreeMap<ObjectKey, Arc<EndpointSlice>>,
    /// The services that claim an address; no empty sets.
    services_at: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    /// The slices of a service, known or not; no empty sets.
    slices_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Services that changed, or whose slices did, since [`Catalog::take_touched`].
    touched: BTreeSet<ObjectKey>,
}

/// Compares the objects, not which changes were already taken.
impl PartialEq for Catalog {
    fn eq(&self, other: &Self) -> bool {
        self.services == other.services
            && self.services_at == other.services_at
            && self.slices == other.slices
            && self.slices_of == other.slices_of
    }
}

impl Eq for Catalog {}

impl Catalog {
    /// Adds or replaces a service. False if it is unchanged.
    pub fn set_service(&mut self, service: Service) -> bool {
        if self.services.get(&service.key).is_some_and(|known| **known == service) {
            return false;
        }
        self.remove_service(&service.key);
        self.touched.insert(service.key.clone());
        for address in addresses(&service) {
            self.services_at.entry(address).or_default().insert(service.key.clone());
        }
        self.services.insert(service.key.clone(), Arc::new(service));
        true
    }

    /// Removes a service. False if it was not there.
    pub fn remove_service(&mut self, key: &ObjectKey) -> bool {
        let Some(service) = self.services.remove(key) else { return false };
        for address in addresses(&service) {
            if let Some(claims) = self.services_at.get_mut(&address) {
                claims.remove(key);
                if claims.is_empty() {
                    self.services_at.remove(&address);
                }
            }
        }
        self.touched.insert(key.clone());
        true
    }

    /// Adds or replaces a slice. False if it is unchanged.
    pub fn set_slice(&mut self, slice: EndpointSlice) -> bool {
        if self.slices.get(&slice.key).is_some_and(|known| **known == slice) {
            return false;
        }
        // its label may have named another service
        self.remove_slice(&slice.key);
        if let Some(service) = slice.service_key() {
            self.touched.insert(service.clone());
            self.slices_of.entry(service).or_default().insert(slice.key.clone());
        }
        self.slices.insert(slice.key.clone(), Arc::new(slice));
        true
    }

    /// Removes a slice. False if it was not there.
    pub fn remove_slice(&mut self, key: &ObjectKey) -> bool {
        let Some(slice) = self.slices.remove(key) else { return false };
        let Some(service) = slice.service_key() else { return true };
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(key);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        self.touched.insert(service);
        true
    }

    /// The services that changed, or whose slices did, since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.touched)
    }

    /// All services, by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service of this name.
    pub fn service(&self, key: &ObjectKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The first service, by name, that claims a frontend, with or without backends.
    pub fn service_of(&self, frontend: &Frontend) -> Option<&Arc<Service>> {
        let claims = self.services_at.get(&frontend.address)?.iter();
        let mut services = claims.filter_map(|key| self.services.get(key));
        services.find(|service| {
            let mut ports = service.ports.iter();
            ports.any(|of| (of.port, of.protocol) == (frontend.port, frontend.protocol))
        })
    }

    /// All slices, by name.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = &Arc<EndpointSlice>> {
        self.slices.values()
    }

    /// The slice of this name.
    pub fn slice(&self, key: &ObjectKey) -> Option<&Arc<EndpointSlice>> {
        self.slices.get(key)
    }

    /// The slices of a service, by their names.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let keys = self.slices_of.get(service).into_iter().flatten();
        keys.filter_map(|key| self.slices.get(key))
    }
}

/// Every address at which a service is reached.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let cluster = service.addressing.cluster();
    // without cluster addresses nothing is translated, external ones neither
    let external = service.external.iter().filter(|_| !cluster.is_empty());
    let guarded = service.guarded.iter().filter(|_| !cluster.is_empty());
    cluster.iter().chain(external).chain(guarded).copied()
}
