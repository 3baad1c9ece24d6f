//! Follows links and addresses of the node's network namespace by rtnetlink.
//!
//! An event only triggers a new request: what is acted on is always the kernel's present state, so a lost event costs time
//! and a late one does no harm.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};

use super::Reconciler;
use super::addresses;
use crate::writer::Message;

/// Delay before netlink is opened again after an error.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn watch(reconciler: &Reconciler) {
    loop {
        let Err(error) = follow(reconciler).await;
        tracing::warn!(error, "cannot watch the node's links and addresses, trying again");
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// What the events received so far say may have changed.
#[derive(Default)]
struct Changes {
    /// Interfaces that may be gone.
    links: BTreeSet<u32>,
    addresses: bool,
    /// Events were lost.
    everything: bool,
}

impl Changes {
    fn add(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                // a bridge reports a port that leaves with the same message, with family AF_BRIDGE
                if link.header.interface_family == AddressFamily::Unspec {
                    self.links.insert(link.header.index);
                }
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_),
            ) => self.addresses = true,
            NetlinkPayload::InnerMessage(_) | NetlinkPayload::Noop | NetlinkPayload::Done(_) => {}
            _ => self.everything = true,
        }
    }
}

async fn follow(reconciler: &Reconciler) -> Result<std::convert::Infallible, String> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut events) =
        rtnetlink::new_multicast_connection(&groups).map_err(|e| format!("open netlink: {e}"))?;
    let _connection = Task(tokio::spawn(connection));
    let mut due = tokio::time::interval(reconciler.every);
    loop {
        let mut changes = Changes::default();
        tokio::select! {
            _ = due.tick() => changes.everything = true,
            event = events.next() => {
                let Some((event, _)) = event else { return Err("netlink connection ended".into()) };
                changes.add(&event);
                // one request for all events that are queued
                while let Ok((event, _)) = events.try_recv() {
                    changes.add(&event);
                }
            }
        }
        if changes.addresses || changes.everything {
            let mut addresses = addresses::list(&handle).await?;
            addresses.named.clone_from(&reconciler.named);
            send(reconciler, Message::NodeAddresses(addresses))?;
        }
        let mut gone = changes.links;
        if changes.everything {
            let snapshot = reconciler.shared.snapshot();
            gone.extend(snapshot.endpoints.keys().map(|endpoint| endpoint.0));
        }
        for ifindex in gone {
            if !exists(&handle, ifindex).await? {
                send(reconciler, Message::LinkGone(ifindex))?;
            }
        }
    }
}

/// A task that is aborted when this is dropped.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn send(reconciler: &Reconciler, message: Message) -> Result<(), String> {
    reconciler.writer.send(message).map_err(|stopped| stopped.to_string())
}

async fn exists(handle: &Handle, ifindex: u32) -> Result<bool, String> {
    match handle.link().get().match_index(ifindex).execute().try_next().await {
        Ok(link) => Ok(link.is_some()),
        Err(rtnetlink::Error::NetlinkError(error))
            if error.to_io().raw_os_error() == Some(nix::libc::ENODEV) =>
        {
            Ok(false)
        }
        Err(error) => Err(format!("look for interface {ifindex}: {error}")),
    }
}
