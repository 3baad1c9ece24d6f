//! Links and addresses of the node's network namespace, by rtnetlink.
//!
//! Events say only "look again": what is acted on is always a fresh answer of the kernel, so a lost
//! event costs time and a late one does no harm.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};

use super::Reconciler;
use super::addresses;
use crate::writer::Message;

const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn watch(reconciler: &Reconciler) {
    loop {
        let Err(error) = follow(reconciler).await;
        tracing::warn!(error, "cannot watch the node's links and addresses, trying again");
        tokio::time::sleep(RETRY).await;
    }
}

/// What an event is about.
#[derive(Default)]
struct News {
    /// Interfaces that may be gone.
    links: BTreeSet<u32>,
    addresses: bool,
    /// Events were lost.
    everything: bool,
}

impl News {
    fn add(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                // a bridge tells of a port that leaves in the same words, under its own family
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
        let mut news = News::default();
        tokio::select! {
            _ = due.tick() => news.everything = true,
            event = events.next() => {
                let Some((event, _)) = event else { return Err("netlink connection ended".into()) };
                news.add(&event);
                // one look for all that has piled up
                while let Ok((event, _)) = events.try_recv() {
                    news.add(&event);
                }
            }
        }
        if news.addresses || news.everything {
            let mut addresses = addresses::list(&handle).await?;
            addresses.named.clone_from(&reconciler.named);
            tell(reconciler, Message::NodeAddresses(addresses))?;
        }
        let mut gone = news.links;
        if news.everything {
            let view = reconciler.shared.view();
            gone.extend(view.endpoints.keys().map(|endpoint| endpoint.0));
        }
        for ifindex in gone {
            if !exists(&handle, ifindex).await? {
                tell(reconciler, Message::LinkGone(ifindex))?;
            }
        }
    }
}

/// Ends with its owner.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn tell(reconciler: &Reconciler, message: Message) -> Result<(), String> {
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
