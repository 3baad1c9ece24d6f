//! Blocking netlink: one request and all its responses, on the calling thread.
//!
//! The kernel answers these requests within microseconds, so an async runtime would gain nothing.

use std::io;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// What the kernel fits its answers to: it never makes a dump's part larger than the reader's buffer, nor than 32 KiB.
const BUFFER: usize = 64 * 1024;
/// How often a dump is started because what it lists changed meanwhile.
const ATTEMPTS: usize = 5;

/// A netlink socket. It stays in the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Netlink {
    /// Locked for one request and its responses.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one of a family, e.g. `netlink_sys::protocols::NETLINK_ROUTE`.
    pub fn open(family: isize) -> io::Result<Self> {
        let socket = Socket::new(family)?;
        // connected to port 0: only messages of the kernel are received
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { inner: Mutex::new(Inner { socket, sequence: 0 }) })
    }

    /// Requests one object: its attributes, or the kernel's error.
    pub fn get<M>(&self, request: M) -> io::Result<M>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        inner.exchange(request, NLM_F_REQUEST, |message| found = Some(message))?;
        found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer without content"))
    }

    /// Makes, changes or removes an object; the flags say which.
    pub fn change<M>(&self, request: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.exchange(request, NLM_F_REQUEST | NLM_F_ACK | flags, drop).map(drop)
    }

    /// Dumps all objects; `each` gets every one. One that cannot be parsed is left out.
    pub fn dump<M>(&self, request: M, mut each: impl FnMut(M)) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.exchange(request, NLM_F_REQUEST | NLM_F_DUMP, &mut each).map(drop)
    }

    /// Dumps a small table and starts again if it changed meanwhile.
    pub fn list<M>(&self, request: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for _ in 0..ATTEMPTS {
            found.clear();
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            if inner.exchange(request.clone(), flags, |message| found.push(message))? {
                return Ok(found);
            }
        }
        // what is listed then is there, but something that is may be missing
        Ok(found)
    }
}

impl Inner {
    /// False if the kernel flagged the dump as inconsistent because the table changed meanwhile.
    fn exchange<M>(&mut self, request: M, flags: u16, mut each: impl FnMut(M)) -> io::Result<bool>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut consistent = true;
        let mut answer = Vec::with_capacity(BUFFER);
        loop {
            answer.clear();
            self.socket.recv(&mut answer, 0)?;
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let invalid = |e: netlink_packet_core::DecodeError| {
                    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
                };
                let header = NetlinkBuffer::new_checked(rest).map_err(invalid)?;
                let length = header.length() as usize;
                // responses to an earlier request that were not all read are skipped
                let ours = header.sequence_number() == self.sequence;
                consistent &= !ours || header.flags() & NLM_F_DUMP_INTR == 0;
                let message = &rest[..length.min(rest.len())];
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if !ours {
                    continue;
                }
                match NetlinkMessage::<M>::deserialize(message).map(|message| message.payload) {
                    Ok(NetlinkPayload::Done(_)) => return Ok(consistent),
                    Ok(NetlinkPayload::Error(error)) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    Ok(NetlinkPayload::Error(_)) => return Ok(consistent),
                    Ok(NetlinkPayload::InnerMessage(message)) => each(message),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "unreadable netlink message left out"),
                }
                if flags & NLM_F_DUMP == 0 {
                    return Ok(consistent);
                }
            }
        }
    }
}
