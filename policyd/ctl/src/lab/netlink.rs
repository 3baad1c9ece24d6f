//! Links, addresses and routes of one namespace.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use tokio::runtime;

use super::error::{Error, Result};
use super::sandbox::{Sandbox, host_bits};

/// A netlink connection to one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Of the namespace that the calling thread is in. Needs a runtime.
    pub(crate) fn here() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| Error::io("open", "a netlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Of a sandbox: the socket is opened inside and used from here.
    pub(crate) fn of(sandbox: &Sandbox) -> Result<Self> {
        let runtime = runtime::Handle::current();
        sandbox.inside(move || {
            let _entered = runtime.enter();
            Self::here()
        })?
    }

    /// The index of a link.
    pub(crate) async fn index(&self, link: &str) -> Result<u32> {
        let mut found = self.handle.link().get().match_name(link.to_owned()).execute();
        match found.try_next().await {
            Ok(Some(message)) => Ok(message.header.index),
            Ok(None) => Err(Error::Layout(format!("link {link} is gone"))),
            Err(e) => Err(Error::netlink("find link", link, e)),
        }
    }

    /// Makes a bridge.
    pub(crate) async fn add_bridge(&self, name: &str) -> Result<()> {
        let made = self.handle.link().add(LinkBridge::new(name).up().build()).execute().await;
        made.map_err(|e| Error::netlink("make bridge", name, e))
    }

    /// Makes a veth pair, one end here and the other moved to another namespace.
    pub(crate) async fn add_veth(
        &self,
        here: &str,
        there: &str,
        namespace: BorrowedFd<'_>,
    ) -> Result<()> {
        let link = self.handle.link();
        let made = link.add(LinkVeth::new(here, there).build()).execute().await;
        made.map_err(|e| Error::netlink("make link", here, e))?;
        let index = self.index(there).await?;
        let moved = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let done = self.handle.link().change(moved).execute().await;
        done.map_err(|e| Error::netlink("move link", there, e))?;
        self.up(here).await
    }

    /// Brings a link up.
    pub(crate) async fn up(&self, link: &str) -> Result<()> {
        let index = self.index(link).await?;
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        let done = self.handle.link().change(message).execute().await;
        done.map_err(|e| Error::netlink("bring up link", link, e))
    }

    /// Gives a link an address with the prefix of its subnet.
    pub(crate) async fn add_address(&self, link: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let index = self.index(link).await?;
        let done = self.handle.address().add(index, address, prefix).execute().await;
        done.map_err(|e| Error::netlink("add address", format!("{address}/{prefix} to {link}"), e))
    }

    /// One address is reached directly over a link.
    pub(crate) async fn add_neighbour_route(&self, to: IpAddr, link: &str) -> Result<()> {
        let index = self.index(link).await?;
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, host_bits(to))
            .map_err(|e| Error::Layout(format!("route to {to}: {e}")))?
            .output_interface(index)
            .build();
        let done = self.handle.route().add(route).replace().execute().await;
        done.map_err(|e| Error::netlink("add route", format!("{to} over {link}"), e))
    }

    /// Everything else of that family goes by this neighbour.
    pub(crate) async fn add_default_route(&self, gateway: IpAddr, link: &str) -> Result<()> {
        let index = self.index(link).await?;
        let message = match gateway {
            IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .gateway(v4)
                .output_interface(index)
                .onlink()
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .gateway(v6)
                .output_interface(index)
                .onlink()
                .build(),
        };
        let done = self.handle.route().add(message).replace().execute().await;
        done.map_err(|e| Error::netlink("add default route", format!("{gateway} over {link}"), e))
    }
}
