//! The one line to policyd and its answer, with a deadline that holds whatever policyd does.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use podgate_bpf::handshake::{MAX_LINE, Request, Response};

/// How long DEL and GC wait for policyd to take note: it answers at once, and finds out by itself if not.
pub const NOTICE: Duration = Duration::from_millis(500);

/// policyd has not answered.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    /// Nobody listens there.
    #[error("policyd does not listen on {socket}: {cause}")]
    Absent {
        /// The socket.
        socket: String,
        /// Why connecting failed.
        cause: io::Error,
    },
    /// Nothing, or half a line, within the time.
    #[error("policyd has not answered within {} ms", waited.as_millis())]
    Late {
        /// The limit.
        waited: Duration,
    },
    /// It went away.
    #[error("policyd closed the connection without an answer")]
    Closed,
    /// What came is no answer.
    #[error("policyd's answer is not understood: {0}")]
    Garbage(String),
    /// The connection broke.
    #[error("talk to policyd: {0}")]
    Broken(io::Error),
}

/// Sends one request and waits at most `limit`, all in all, for the answer.
pub fn ask(path: &Path, request: &Request, limit: Duration) -> Result<Response, Silence> {
    let deadline = Deadline { at: Instant::now() + limit, limit };
    let mut stream = open(path, &deadline)?;
    let mut line = serde_json::to_vec(request).map_err(|e| Silence::Broken(e.into()))?;
    line.push(b'\n');
    // a socket's time-out of zero means none, so the message goes out even when the time is up
    let remaining = deadline.remaining().unwrap_or(Duration::from_millis(1));
    stream.set_write_timeout(Some(remaining)).map_err(Silence::Broken)?;
    stream.write_all(&line).map_err(|e| deadline.or_broken(e))?;
    let answer = read_line(&mut stream, &deadline)?;
    serde_json::from_slice(&answer).map_err(|e| {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(100)]).into_owned();
        Silence::Garbage(format!("{e} in {shown:?}"))
    })
}

/// `UnixStream::connect` waits for ever at a daemon that hangs with a full backlog; the kernel's send
/// time-out, set before, bounds it.
fn open(path: &Path, deadline: &Deadline) -> Result<UnixStream, Silence> {
    let absent = |e: nix::Error| match e {
        nix::Error::EAGAIN => Silence::Late { waited: deadline.limit },
        e => Silence::Absent { socket: path.display().to_string(), cause: e.into() },
    };
    let address = UnixAddr::new(path).map_err(absent)?;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(absent)?;
    let wait = deadline.remaining().unwrap_or(Duration::from_millis(1));
    let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX).max(1);
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::microseconds(micros)).map_err(absent)?;
    connect(fd.as_raw_fd(), &address).map_err(absent)?;
    Ok(UnixStream::from(fd))
}

fn read_line(stream: &mut UnixStream, deadline: &Deadline) -> Result<Vec<u8>, Silence> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let remaining = deadline.remaining().ok_or(Silence::Late { waited: deadline.limit })?;
        stream.set_read_timeout(Some(remaining)).map_err(Silence::Broken)?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Err(Silence::Closed),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(Silence::Closed),
            Err(e) => return Err(deadline.or_broken(e)),
        };
        line.extend_from_slice(&chunk[..count]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() > MAX_LINE {
            return Err(Silence::Garbage(format!("more than {MAX_LINE} bytes without a line end")));
        }
    }
}

struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// `None` when it is over.
    fn remaining(&self) -> Option<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        // below a microsecond the socket option would read as "for ever"
        (left >= Duration::from_micros(1)).then_some(left)
    }

    fn or_broken(&self, error: io::Error) -> Silence {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Silence::Late { waited: self.limit }
            }
            io::ErrorKind::BrokenPipe => Silence::Closed,
            _ => Silence::Broken(error),
        }
    }
}

/// Why ADD has not heard "enforced": silence, or an answer that says otherwise.
#[derive(Debug)]
pub enum NotEnforced {
    /// No answer.
    Silent(Silence),
    /// `pending` or `error`, with its text.
    Told(String),
}

impl fmt::Display for NotEnforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(silence) => write!(f, "{silence}"),
            Self::Told(text) => write!(f, "{text}"),
        }
    }
}

/// Waits until policyd says that the request is done.
pub fn confirm(path: &Path, request: &Request, limit: Duration) -> Result<(), NotEnforced> {
    match ask(path, request, limit) {
        Ok(Response::Ok) => Ok(()),
        Ok(Response::Pending { reason }) => {
            Err(NotEnforced::Told(format!("policyd is not done yet: {reason}")))
        }
        Ok(Response::Error { message }) => {
            Err(NotEnforced::Told(format!("policyd refuses: {message}")))
        }
        Err(silence) => Err(NotEnforced::Silent(silence)),
    }
}
