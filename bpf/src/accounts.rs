//! What accounted pods exchanged with whom (`c/accounting.h`), and where peers are.

use std::collections::BTreeMap;

use libbpf_rs::{MapCore, MapFlags};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::abi::{Account, AccountKey, Direction, NodeKey, SCOPE_COUNT, Scope, ScopeValue};
use crate::limits::LimitMaps;
use crate::maps::Net;
use crate::typed_map::{errno, write_error, wrote};
use crate::{Error, Result};

/// Every account that an endpoint has.
fn keys_of(owner: u32) -> impl Iterator<Item = AccountKey> {
    let of = move |direction: Direction, scope| AccountKey {
        owner,
        scope,
        direction: direction as u8,
        pad: [0; 2],
    };
    Direction::ALL.iter().flat_map(move |&way| (0..SCOPE_COUNT).map(move |scope| of(way, scope)))
}

impl LimitMaps {
    /// Makes an endpoint's accounts, before its limits say that it is accounted; those that are there stay as they are.
    pub fn open_accounts(&self, owner: u32) -> Result<()> {
        let map = self.accounts.handle()?;
        let cpus = libbpf_rs::num_possible_cpus()
            .map_err(|e| Error::io("count", "processors", errno(&e)))?;
        let zeros = vec![Account::new_zeroed().as_bytes().to_vec(); cpus];
        for key in keys_of(owner) {
            match map.update_percpu(key.as_bytes(), &zeros, MapFlags::NO_EXIST) {
                Ok(()) => wrote("accounts", "set", key.as_bytes()),
                Err(e) if errno(&e).raw_os_error() == Some(nix::libc::EEXIST) => {}
                Err(e) => return Err(write_error("accounts", map.max_entries(), &e)),
            }
        }
        Ok(())
    }

    /// Removes an endpoint's accounts; missing ones are fine.
    pub fn close_accounts(&self, owner: u32) -> Result<()> {
        let mut keys = keys_of(owner);
        keys.try_for_each(|key| self.remove_from(&self.accounts, key.as_bytes()))
    }

    /// What every accounted endpoint exchanged with each scope since its accounts were made, all CPUs together. The three
    /// numbers of an account are not of one moment.
    pub fn accounts(&self) -> Result<BTreeMap<AccountKey, Account>> {
        let map = self.accounts.handle()?;
        let mut all = BTreeMap::new();
        for bytes in map.keys() {
            let Ok(key) = AccountKey::read_from_bytes(&bytes) else { continue };
            let found = map
                .lookup_percpu(&bytes, MapFlags::ANY)
                .map_err(|e| Error::io("read map", "accounts", errno(&e)))?;
            // removed since
            let Some(cpus) = found else { continue };
            let mut sum = Account::new_zeroed();
            for cpu in cpus.iter().filter_map(|value| Account::read_from_bytes(value).ok()) {
                sum.packets = sum.packets.wrapping_add(cpu.packets);
                sum.bytes = sum.bytes.wrapping_add(cpu.bytes);
                sum.flows = sum.flows.wrapping_add(cpu.flows);
            }
            all.insert(key, sum);
        }
        Ok(all)
    }

    /// Says where the peers of a prefix are, for flows that are remembered or revalidated from now on.
    pub fn set_scope(&self, net: Net, scope: Scope) -> Result<()> {
        self.scopes.set(&NodeKey::from(net), &ScopeValue { kind: scope as u32 })
    }

    /// Forgets that.
    pub fn remove_scope(&self, net: Net) -> Result<()> {
        self.scopes.remove(&NodeKey::from(net)).map(drop)
    }

    /// Every prefix, with where its peers are; `None` for a number that this build does not know.
    pub fn scopes(&self) -> Result<BTreeMap<Net, Option<Scope>>> {
        let all = self.scopes.entries()?.into_iter();
        Ok(all
            .map(|(key, value)| {
                let kind = u8::try_from(value.kind).ok();
                (Net::from(key), kind.and_then(Scope::from_number))
            })
            .collect())
    }
}
