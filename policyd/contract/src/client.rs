//! One request to policyd over its CNI socket and the response, within a deadline that holds even if policyd hangs.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::handshake::{MAX_LINE, Request, Response};

/// policyd has not answered.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The socket does not exist or no process listens on it.
    #[error("policyd does not listen on {socket}: {cause}")]
    NotListening {
        /// Path of the socket.
        socket: String,
        /// Why connecting failed.
        cause: io::Error,
    },
    /// No complete line arrived before the deadline.
    #[error("policyd has not answered within {} ms", timeout.as_millis())]
    TimedOut {
        /// The time that the whole exchange had.
        timeout: Duration,
    },
    /// policyd closed the connection before a complete line arrived.
    #[error("policyd closed the connection without an answer")]
    Closed,
    /// The line is not a [`Response`], or longer than [`MAX_LINE`].
    #[error("policyd's answer is not understood: {0}")]
    Malformed(String),
    /// Any other socket error.
    #[error("talk to policyd: {0}")]
    Io(io::Error),
}

/// Sends one request and waits for the response; `timeout` bounds connecting, writing and reading together.
pub fn send(path: &Path, request: &Request, timeout: Duration) -> Result<Response, NoAnswer> {
    let deadline = Deadline { at: Instant::now() + timeout, timeout };
    let mut stream = open(path, &deadline)?;
    let mut line = serde_json::to_vec(request).map_err(|e| NoAnswer::Io(e.into()))?;
    line.push(b'\n');
    // a zero time-out of a socket means "none", so even after the deadline the request is still sent
    let remaining = deadline.remaining().unwrap_or(Duration::from_millis(1));
    stream.set_write_timeout(Some(remaining)).map_err(NoAnswer::Io)?;
    stream.write_all(&line).map_err(|e| deadline.classify(e))?;
    let answer = read_line(&mut stream, &deadline)?;
    serde_json::from_slice(&answer).map_err(|e| {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(100)]).into_owned();
        NoAnswer::Malformed(format!("{e} in {shown:?}"))
    })
}

/// `UnixStream::connect` blocks without limit while the listener's backlog is full; SO_SNDTIMEO, set before connecting,
/// bounds it.
fn open(path: &Path, deadline: &Deadline) -> Result<UnixStream, NoAnswer> {
    let failed = |e: nix::Error| match e {
        nix::Error::EAGAIN => NoAnswer::TimedOut { timeout: deadline.timeout },
        e => NoAnswer::NotListening { socket: path.display().to_string(), cause: e.into() },
    };
    let address = UnixAddr::new(path).map_err(failed)?;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed)?;
    let wait = deadline.remaining().unwrap_or(Duration::from_millis(1));
    let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX).max(1);
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::microseconds(micros)).map_err(failed)?;
    connect(fd.as_raw_fd(), &address).map_err(failed)?;
    Ok(UnixStream::from(fd))
}

fn read_line(stream: &mut UnixStream, deadline: &Deadline) -> Result<Vec<u8>, NoAnswer> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let timed_out = NoAnswer::TimedOut { timeout: deadline.timeout };
        let remaining = deadline.remaining().ok_or(timed_out)?;
        stream.set_read_timeout(Some(remaining)).map_err(NoAnswer::Io)?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Err(NoAnswer::Closed),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(NoAnswer::Closed),
            Err(e) => return Err(deadline.classify(e)),
        };
        line.extend_from_slice(&chunk[..count]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() > MAX_LINE {
            let cause = format!("more than {MAX_LINE} bytes without a line end");
            return Err(NoAnswer::Malformed(cause));
        }
    }
}

struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// `None` once it has passed.
    fn remaining(&self) -> Option<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        // below a microsecond the socket option would be rounded to zero, which means "no time-out"
        (left >= Duration::from_micros(1)).then_some(left)
    }

    fn classify(&self, error: io::Error) -> NoAnswer {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                NoAnswer::TimedOut { timeout: self.timeout }
            }
            io::ErrorKind::BrokenPipe => NoAnswer::Closed,
            _ => NoAnswer::Io(error),
        }
    }
}
