//! DEL: removes the attachment's gates, complete or not. Needs neither CNI_NETNS nor `prevResult`, and succeeds if there
//! is no gate: a runtime sends two DELs for each pod, and also one after an ADD that did not reach this plugin. No error
//! in the configuration makes it fail either: the runtime calls the DEL of the plugins before this one only after it has
//! succeeded.

use crate::gating;
use crate::spec::env::Attachment;
use crate::spec::{CniError, NetConf};

pub(super) fn del(conf: &NetConf, attachment: &Attachment) -> Result<String, CniError> {
    let paths = super::paths(conf);
    let datapath = gating::open(&paths)?;
    // Container and interface name are the attachment's key; the network's name may have changed since.
    gating::remove_all(datapath.as_ref(), &paths, |registration| {
        registration.container_id == attachment.container_id
            && registration.interface == attachment.ifname
    })?;
    Ok(String::new())
}
