//! GC: takes away this network's gates that no valid attachment accounts for. Of its configuration it must have the
//! network's name and the list: an empty list in the place of one that cannot be read would take every gate away.

use std::collections::BTreeSet;

use crate::gating;
use crate::spec::config::ValidAttachment;
use crate::spec::{CniError, NetConf};

pub(super) fn gc(conf: &NetConf) -> Result<String, CniError> {
    conf.require_name()?;
    let valid: BTreeSet<_> = conf.valid_attachments()?.into_iter().collect();
    let places = super::places(conf);
    let gate = gating::open(&places)?;
    gating::remove_all(gate.as_ref(), &places, |registration| {
        // another network's list is another call
        registration.network == conf.name
            && !valid.contains(&ValidAttachment {
                container_id: registration.container_id.clone(),
                ifname: registration.interface.clone(),
            })
    })?;
    Ok(String::new())
}
