//! GC: removes this network's gates whose attachment is not in the list of valid ones. The network's name and the list
//! are required: an empty list in the place of one that cannot be read would remove every gate.

use std::collections::BTreeSet;

use crate::gating;
use crate::spec::config::ValidAttachment;
use crate::spec::{CniError, NetConf};

pub(super) fn gc(conf: &NetConf) -> Result<String, CniError> {
    conf.require_name()?;
    let valid: BTreeSet<_> = conf.valid_attachments()?.into_iter().collect();
    let paths = super::paths(conf);
    let datapath = gating::open(&paths)?;
    gating::remove_all(datapath.as_ref(), &paths, |registration| {
        // attachments of other networks are in the lists of other calls
        registration.network == conf.name
            && !valid.contains(&ValidAttachment {
                container_id: registration.container_id.clone(),
                ifname: registration.interface.clone(),
            })
    })?;
    Ok(String::new())
}
