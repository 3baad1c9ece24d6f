//! Runs plugins to get the versions of the protocol that they support, as CRI-O does before it takes a list: it skips one
//! with a plugin that is missing, does not answer, or does not support the list's version.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use podgate_contract::plugin_conf::PLUGIN;
use serde::Deserialize;

use super::VERSIONS;
use crate::file_stamp::FileStamp;

/// How long a plugin may take to answer. CRI-O itself waits without a limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How often, and at which interval, a binary is tried that is open for writing.
const MAX_ATTEMPTS: u32 = 10;
const BUSY_INTERVAL: Duration = Duration::from_millis(30);
/// Longer than any answer, bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// Result of running a plugin with CNI_COMMAND=VERSION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plugin {
    /// It supports these versions.
    Supports(Vec<String>),
    /// The directory has no such binary.
    Missing,
    /// It was run and gave no valid answer.
    NoAnswer(String),
    /// This program cannot run it (e.g. its libraries are the node's and not the container's).
    Unknown(String),
}

/// The plugins of a directory. Each is run again only when its file has changed.
#[derive(Debug)]
pub(super) struct Plugins {
    dir: PathBuf,
    known: RefCell<HashMap<String, (FileStamp, Plugin)>>,
}

impl Plugins {
    /// Does not run any plugin yet.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, known: RefCell::default() }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The versions that the plugin of this type supports.
    pub(super) fn versions_of(&self, kind: &str) -> Plugin {
        // podgate's own versions are known, even before its binary is installed
        if kind == PLUGIN {
            return Plugin::Supports(VERSIONS.map(str::to_owned).to_vec());
        }
        if kind.contains('/') {
            return Plugin::Missing;
        }
        let path = self.dir.join(kind);
        let Some(stamp) = FileStamp::at(&path) else {
            return match path.is_symlink() {
                true => {
                    Plugin::Unknown("a link to a path that does not exist for this program".into())
                }
                false => Plugin::Missing,
            };
        };
        if !path.is_file() {
            return Plugin::Missing;
        }
        let known = self.known.borrow().get(kind).filter(|(s, _)| *s == stamp).cloned();
        if let Some((_, plugin)) = known {
            return plugin;
        }
        let plugin = run(&path);
        // the cause may disappear without a change of the file, so this is not cached
        if !matches!(plugin, Plugin::Unknown(_)) {
            self.known.borrow_mut().insert(kind.to_owned(), (stamp, plugin.clone()));
        }
        plugin
    }
}

fn run(path: &Path) -> Plugin {
    for _ in 0..MAX_ATTEMPTS {
        match spawn(path) {
            Ok(child) => {
                return match answer(child) {
                    Ok(text) => read(&text),
                    Err(reason) => Plugin::NoAnswer(reason),
                };
            }
            // it is open for writing by the program that installs it
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                thread::sleep(BUSY_INTERVAL)
            }
            // the runtime may be able to run it: it has other files than this program
            Err(error) => return Plugin::Unknown(error.to_string()),
        }
    }
    Plugin::Unknown("it is being written".to_owned())
}

fn spawn(path: &Path) -> io::Result<Child> {
    Command::new(path)
        .env_clear()
        // as libcni does: old plugins require all of them
        .envs([("CNI_COMMAND", "VERSION"), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy")])
        .envs([("CNI_PATH", "dummy"), ("CNI_CONTAINERID", ""), ("CNI_ARGS", "")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// What it prints within the time-out.
fn answer(mut child: Child) -> Result<String, String> {
    if let Some(mut stdin) = child.stdin.take() {
        // a plugin may answer without reading its input
        let _ = stdin.write_all(br#"{"cniVersion":"1.1.0"}"#);
    }
    let (sender, printed) = mpsc::channel();
    let stdout = child.stdout.take();
    // this thread is not joined, because a child of the plugin may keep the pipe open after its end
    thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.map(|out| out.take(MAX_ANSWER).read_to_string(&mut text)).transpose();
        let _ = sender.send(read.map(|_| text));
    });
    let late = || format!("it has not answered within {} s", ANSWER_TIMEOUT.as_secs());
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let end = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break Ok(status),
            None if Instant::now() >= deadline => break Err(late()),
            None => thread::sleep(POLL_INTERVAL),
        }
    };
    if end.is_err() {
        let _: io::Result<()> = child.kill();
        let _ = child.wait();
    }
    let status = end?;
    let left = deadline.saturating_duration_since(Instant::now());
    let text = printed.recv_timeout(left).map_err(|_| late())?.map_err(|e| e.to_string())?;
    match status.success() {
        true => Ok(text),
        // a plugin older than the VERSION verb
        false if text.contains("unknown CNI_COMMAND: VERSION") => Ok(OLDEST.to_owned()),
        false => Err(format!("it ends with {status}")),
    }
}

const OLDEST: &str = r#"{"cniVersion":"0.1.0","supportedVersions":["0.1.0"]}"#;

fn read(text: &str) -> Plugin {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        cni_version: String,
        #[serde(default)]
        supported_versions: Option<Vec<String>>,
    }
    match serde_json::from_str::<Answer>(text) {
        Err(error) => Plugin::NoAnswer(format!("its answer is not understood: {error}")),
        Ok(answer) => match answer.supported_versions.unwrap_or_default() {
            versions if !versions.is_empty() => Plugin::Supports(versions),
            _ if answer.cni_version == "0.2.0" => {
                Plugin::Supports(vec!["0.1.0".to_owned(), "0.2.0".to_owned()])
            }
            _ => Plugin::NoAnswer("its answer names no version".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_is_run_once_and_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, body: &str| {
            let new = dir.path().join("new");
            fs::write(&new, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(new, dir.path().join(name)).unwrap();
        };
        let supports = |versions: &[&str]| {
            Plugin::Supports(versions.iter().map(|version| (*version).to_owned()).collect())
        };
        let plugins = Plugins::new(dir.path().to_owned());
        assert_eq!(plugins.versions_of("bridge"), Plugin::Missing);
        assert_eq!(plugins.versions_of("../bridge"), Plugin::Missing);
        assert_eq!(plugins.versions_of("."), Plugin::Missing);
        assert_eq!(plugins.versions_of("podgate"), supports(&VERSIONS));
        let count = dir.path().join("count");
        let versions = r#"printf '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#;
        let body = format!("echo >>{}; [ $CNI_COMMAND = VERSION ] && {versions}", count.display());
        write("bridge", &body);
        for _ in 0..3 {
            assert_eq!(plugins.versions_of("bridge"), supports(&["0.4.0", "1.0.0"]));
        }
        assert_eq!(fs::read_to_string(&count).unwrap(), "\n", "run more than once");
        write("bridge", r#"printf '{"cniVersion":"0.2.0"}'"#);
        assert_eq!(plugins.versions_of("bridge"), supports(&["0.1.0", "0.2.0"]));
        write("bridge", r#"printf '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#);
        assert_eq!(plugins.versions_of("bridge"), supports(&["0.1.0"]));
        for (body, part) in [
            ("exit 3", "exit status: 3"),
            ("echo hello", "not understood"),
            (r#"printf '{"cniVersion":"1.0.0"}'"#, "names no version"),
        ] {
            write("bridge", body);
            let Plugin::NoAnswer(reason) = plugins.versions_of("bridge") else { panic!("{body}") };
            assert!(reason.contains(part), "{reason}");
        }
        std::os::unix::fs::symlink("/nonexistent/elsewhere", dir.path().join("link")).unwrap();
        assert!(matches!(plugins.versions_of("link"), Plugin::Unknown(_)));
        fs::write(dir.path().join("text"), "no program").unwrap();
        assert!(matches!(plugins.versions_of("text"), Plugin::Unknown(_)));
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hangs");
        fs::write(&path, "#!/bin/sh\nexec sleep 600\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let started = Instant::now();
        let Plugin::NoAnswer(reason) = Plugins::new(dir.path().to_owned()).versions_of("hangs")
        else {
            panic!("it answers")
        };
        assert!(reason.contains("within 5 s"), "{reason}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
