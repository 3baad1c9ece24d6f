//! DEL: takes away what stands for the attachment, in whatever state it is. Needs neither CNI_NETNS nor
//! `prevResult`, and finds nothing missing: every pod gets two DELs, and one whose ADD never came here. Nothing in the
//! configuration makes it fail either: the DEL of the plugins before this one is called only after it has succeeded.

use crate::gating;
use crate::spec::env::Attachment;
use crate::spec::{CniError, NetConf};

pub(super) fn del(conf: &NetConf, attachment: &Attachment) -> Result<String, CniError> {
    let places = super::places(conf);
    let gate = gating::open(&places)?;
    // Container and interface name are the attachment's key; the network's name may have changed since.
    gating::remove_all(gate.as_ref(), &places, |registration| {
        registration.container_id == attachment.container_id
            && registration.interface == attachment.ifname
    })?;
    Ok(String::new())
}
