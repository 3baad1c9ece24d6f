//! Asks plugins which versions of the protocol they speak, as CRI-O does before it takes a list: it passes over one of
//! whose plugins any is missing, does not answer, or does not speak the list's version.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{PLUGIN, VERSIONS};

/// How long a plugin may take to answer. CRI-O itself waits without a limit.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How often, and how long apart, a binary is tried that is open for writing.
const TRIES: u32 = 10;
const BUSY: Duration = Duration::from_millis(30);
/// More than any answer is long.
const LARGEST: u64 = 64 << 10;

/// What is known of a plugin's binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plugin {
    /// It speaks these versions.
    Speaks(Vec<String>),
    /// There is none in the directory.
    Missing,
    /// It was run, and gave no answer.
    Silent(String),
    /// It cannot be run from here (its libraries, or what it links to, are the node's and not the container's).
    Unknown(String),
}

/// Changes whenever the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp([i64; 5]);

impl Stamp {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let number = |n: u64| n.cast_signed();
        Some(Self([
            number(found.ino()),
            number(found.size()),
            found.mtime(),
            found.mtime_nsec(),
            i64::from(found.mode()),
        ]))
    }
}

/// The plugins of a directory. Each is run once for as long as its file stays the same.
#[derive(Debug)]
pub(super) struct Plugins {
    dir: PathBuf,
    known: RefCell<HashMap<String, (Stamp, Plugin)>>,
}

impl Plugins {
    /// Runs nothing yet.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, known: RefCell::default() }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the plugin of this type says.
    pub(super) fn ask(&self, kind: &str) -> Plugin {
        // of podgate itself it is known, also before its binary is placed
        if kind == PLUGIN {
            return Plugin::Speaks(VERSIONS.map(str::to_owned).to_vec());
        }
        if kind.contains('/') {
            return Plugin::Missing;
        }
        let path = self.dir.join(kind);
        let Some(stamp) = Stamp::of(&path) else {
            return match path.is_symlink() {
                true => {
                    Plugin::Unknown("a link that leads to where this program cannot see".into())
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
        // why it could not be run may pass without its file changing
        if !matches!(plugin, Plugin::Unknown(_)) {
            self.known.borrow_mut().insert(kind.to_owned(), (stamp, plugin.clone()));
        }
        plugin
    }
}

fn run(path: &Path) -> Plugin {
    for _ in 0..TRIES {
        match spawn(path) {
            Ok(child) => {
                return match answer(child) {
                    Ok(text) => read(&text),
                    Err(reason) => Plugin::Silent(reason),
                };
            }
            // the program that installs it has it open for writing
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(BUSY),
            // what the runtime makes of it is not known: it sees other files than this program
            Err(error) => return Plugin::Unknown(error.to_string()),
        }
    }
    Plugin::Unknown("it is being written".to_owned())
}

fn spawn(path: &Path) -> io::Result<Child> {
    Command::new(path)
        .env_clear()
        // as libcni does: plugins of old want all of them
        .envs([("CNI_COMMAND", "VERSION"), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy")])
        .envs([("CNI_PATH", "dummy"), ("CNI_CONTAINERID", ""), ("CNI_ARGS", "")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// What it prints, within the time.
fn answer(mut child: Child) -> Result<String, String> {
    if let Some(mut stdin) = child.stdin.take() {
        // one that does not read answers all the same
        let _ = stdin.write_all(br#"{"cniVersion":"1.1.0"}"#);
    }
    let (sender, printed) = mpsc::channel();
    let stdout = child.stdout.take();
    // what it started may keep the pipe open after its end: this thread is not waited for
    thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.map(|out| out.take(LARGEST).read_to_string(&mut text)).transpose();
        let _ = sender.send(read.map(|_| text));
    });
    let late = || format!("it has not answered within {} s", PATIENCE.as_secs());
    let deadline = Instant::now() + PATIENCE;
    let end = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break Ok(status),
            None if Instant::now() >= deadline => break Err(late()),
            None => thread::sleep(LOOK_AGAIN),
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
        // from before there was this verb
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
        Err(error) => Plugin::Silent(format!("its answer is not understood: {error}")),
        Ok(answer) => match answer.supported_versions.unwrap_or_default() {
            versions if !versions.is_empty() => Plugin::Speaks(versions),
            _ if answer.cni_version == "0.2.0" => {
                Plugin::Speaks(vec!["0.1.0".to_owned(), "0.2.0".to_owned()])
            }
            _ => Plugin::Silent("its answer names no version".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_is_asked_once_and_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, body: &str| {
            let new = dir.path().join("new");
            fs::write(&new, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(new, dir.path().join(name)).unwrap();
        };
        let speaks = |versions: &[&str]| {
            Plugin::Speaks(versions.iter().map(|version| (*version).to_owned()).collect())
        };
        let plugins = Plugins::new(dir.path().to_owned());
        assert_eq!(plugins.ask("bridge"), Plugin::Missing);
        assert_eq!(plugins.ask("../bridge"), Plugin::Missing);
        assert_eq!(plugins.ask("."), Plugin::Missing);
        assert_eq!(plugins.ask("podgate"), speaks(&VERSIONS));
        let count = dir.path().join("count");
        let versions = r#"printf '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#;
        let body = format!("echo >>{}; [ $CNI_COMMAND = VERSION ] && {versions}", count.display());
        write("bridge", &body);
        for _ in 0..3 {
            assert_eq!(plugins.ask("bridge"), speaks(&["0.4.0", "1.0.0"]));
        }
        assert_eq!(fs::read_to_string(&count).unwrap(), "\n", "asked more than once");
        write("bridge", r#"printf '{"cniVersion":"0.2.0"}'"#);
        assert_eq!(plugins.ask("bridge"), speaks(&["0.1.0", "0.2.0"]));
        write("bridge", r#"printf '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#);
        assert_eq!(plugins.ask("bridge"), speaks(&["0.1.0"]));
        for (body, part) in [
            ("exit 3", "exit status: 3"),
            ("echo hello", "not understood"),
            (r#"printf '{"cniVersion":"1.0.0"}'"#, "names no version"),
        ] {
            write("bridge", body);
            let Plugin::Silent(reason) = plugins.ask("bridge") else { panic!("{body}") };
            assert!(reason.contains(part), "{reason}");
        }
        std::os::unix::fs::symlink("/nonexistent/elsewhere", dir.path().join("link")).unwrap();
        assert!(matches!(plugins.ask("link"), Plugin::Unknown(_)));
        fs::write(dir.path().join("text"), "no program").unwrap();
        assert!(matches!(plugins.ask("text"), Plugin::Unknown(_)));
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hangs");
        fs::write(&path, "#!/bin/sh\nexec sleep 600\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let started = Instant::now();
        let Plugin::Silent(reason) = Plugins::new(dir.path().to_owned()).ask("hangs") else {
            panic!("it answers")
        };
        assert!(reason.contains("within 5 s"), "{reason}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
