//! A raw look at, and a raw way into, a link.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use podgate_testkit::net::Net;

/// An AF_PACKET socket. It sees every frame of its interface's namespace but loopback's, in both
/// directions, from the moment it is made.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Tap {
    /// Opens one in `net`; frames are sent out of `interface`.
    #[track_caller]
    pub fn new(net: &Net, interface: &str) -> Self {
        net.run(|| Self::here(interface))
    }

    /// Opens one in the calling thread's namespace that sees the frames of `interface` alone. What it sends it does not see.
    #[track_caller]
    pub fn of_interface(interface: &str) -> Self {
        let tap = Self::here(interface);
        bind(tap.socket.as_raw_fd(), &tap.link)
            .unwrap_or_else(|e| panic!("bind a packet socket to {interface}: {e}"));
        tap
    }

    #[track_caller]
    fn here(interface: &str) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .unwrap_or_else(|e| panic!("open a packet socket: {e}"));
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))
            .unwrap_or_else(|e| panic!("enlarge a packet socket's buffer: {e}"));
        // its address from the kernel, because a sockaddr_ll cannot be made without unsafe
        let link = getifaddrs()
            .unwrap_or_else(|e| panic!("list interfaces: {e}"))
            .filter(|found| found.interface_name == interface)
            .find_map(|found| found.address?.as_link_addr().copied())
            .unwrap_or_else(|| panic!("no interface {interface} to tap"));
        Self { socket, link }
    }

    /// Sends a whole frame, Ethernet header first.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        match self.offer(frame) {
            Ok(length) => assert_eq!(length, frame.len(), "a frame is sent whole"),
            Err(e) => panic!("send a frame of {} bytes: {e}", frame.len()),
        }
    }

    /// The same, if the kernel takes it. A frame that a program on the way out of this very interface drops is
    /// `ENOBUFS`.
    pub fn offer(&self, frame: &[u8]) -> nix::Result<usize> {
        sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty())
    }

    /// The next frame, if one comes before the deadline.
    pub fn next(&self, deadline: Instant) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 17];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Some(buffer);
                }
                Err(Errno::EAGAIN) => {}
                Err(e) => panic!("read a packet socket: {}", io::Error::from(e)),
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let wait = (left.as_millis() as u16).clamp(1, 100);
            let _ = poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], wait);
        }
    }

    /// Whether a frame like this comes before the time is over; others are thrown away.
    pub fn sees(&self, within: Duration, mut like: impl FnMut(&[u8]) -> bool) -> bool {
        let deadline = Instant::now() + within;
        std::iter::from_fn(|| self.next(deadline)).any(|frame| like(&frame))
    }

    /// Everything that has come so far.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        let now = Instant::now();
        std::iter::from_fn(|| self.next(now)).collect()
    }
}
