//! GC: takes away this network's gates that no valid attachment accounts for.

use std::collections::BTreeSet;

use crate::gating;
use crate::spec::config::ValidAttachment;
use crate::spec::keys::Places;
use crate::spec::{CniError, NetConf};

pub(super) fn gc(conf: &NetConf) -> Result<String, CniError> {
    conf.require_name()?;
    let valid: BTreeSet<_> = conf.valid_attachments()?.into_iter().collect();
    let places = Places::read(conf)?;
    let Some(gate) = gating::open(&places)? else { return Ok(String::new()) };
    gating::remove_all(&gate, &places, |registration| {
        // another network's list is another call
        registration.network == conf.name
            && !valid.contains(&ValidAttachment {
                container_id: registration.container_id.clone(),
                ifname: registration.interface.clone(),
            })
    })?;
    Ok(String::new())
}
