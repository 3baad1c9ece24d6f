//! How long each part of a call may take. Runtimes wait for their plugins, some without a limit, so a call ends in time
//! even if it waits for a configuration that does not end, a lock, a hanging file system or a log without a reader.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::spec::env::Command;
use crate::spec::keys::Settings;
use crate::spec::{CniError, Code, NetConf};

/// For reading the configuration from stdin.
pub const INPUT_TIMEOUT: Duration = Duration::from_secs(10);
/// For ADD (without its wait for policyd, which the configuration sets), DEL and GC, once the input is read.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for CHECK, which only reads.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for STATUS and VERSION, which a runtime may call every few seconds.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that a verb has once its configuration is read.
pub fn of(command: &Command, conf: Option<&NetConf>) -> Duration {
    match command {
        Command::Add(..) => {
            // ADD itself refuses an invalid configuration at once
            let settings = conf.and_then(|conf| Settings::read(conf).ok());
            CHANGE_TIMEOUT + settings.map_or(Duration::ZERO, |settings| settings.policyd_timeout)
        }
        Command::Del(_) | Command::Gc => CHANGE_TIMEOUT,
        Command::Check(..) => CHECK_TIMEOUT,
        Command::Status | Command::Version => STATUS_TIMEOUT,
    }
}

/// The error that the runtime gets when the time is over.
pub fn exceeded(command: &Command, limit: Duration) -> CniError {
    let code = match command {
        Command::Status => Code::NotAvailable,
        _ => Code::TryAgain,
    };
    let verb = command.verb();
    CniError::new(code, format!("{verb} has not ended within {} s", limit.as_secs())).because(
        "something on this node hangs (a lock or a file below bpfRoot, logFile, a log without a reader): DEL \
         removes the gates that are attached already",
    )
}

/// Reads a descriptor until [`INPUT_TIMEOUT`] is over, then fails with `TimedOut`: a runtime may never close the other end.
#[derive(Debug)]
pub struct TimedReader<'a> {
    from: BorrowedFd<'a>,
    until: Instant,
}

impl<'a> TimedReader<'a> {
    /// The time-out starts now.
    pub fn new(from: BorrowedFd<'a>) -> Self {
        Self { from, until: Instant::now() + INPUT_TIMEOUT }
    }
}

impl Read for TimedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.from, PollFlags::POLLIN)], timeout) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => Ok(nix::unistd::read(self.from, buffer)?),
            Err(Errno::EINTR) => Err(io::ErrorKind::Interrupted.into()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(verb: &str, keys: &str) -> u64 {
        let env = |name: &str| match name {
            "CNI_COMMAND" => Some(verb.to_owned()),
            "CNI_NETNS" => Some("/n".to_owned()),
            "CNI_CONTAINERID" => Some("c".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            _ => None,
        };
        let command = Command::from_env(&env).unwrap();
        let conf = format!(r#"{{"cniVersion":"1.1.0","name":"n"{keys}}}"#);
        of(&command, Some(&NetConf::parse(conf.as_bytes()).unwrap())).as_secs()
    }

    #[test]
    fn every_verb_has_one_and_adds_grows_with_its_configuration() {
        let verbs = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];
        assert_eq!(verbs.map(|verb| limit(verb, "")), [62, 60, 30, 60, 10, 10]);
        assert_eq!(limit("ADD", r#","policydTimeoutMs":300000"#), 360);
        assert_eq!(limit("ADD", r#","policydTimeoutMs":"soon""#), 60);
    }

    #[test]
    fn what_never_ends_is_read_as_far_as_it_comes() {
        use std::io::Write;
        use std::os::fd::AsFd;
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        theirs.write_all(b"half").unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        let mut input = TimedReader { from: ours.as_fd(), until };
        let mut text = Vec::new();
        let error = input.read_to_end(&mut text).unwrap_err();
        assert_eq!((error.kind(), &*text), (io::ErrorKind::TimedOut, &b"half"[..]));
        drop(theirs);
        assert_eq!(input.read(&mut [0; 8]).unwrap(), 0);
    }
}
