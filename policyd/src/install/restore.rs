//! Restores the configuration from before podgate was installed.

use std::fs;
use std::path::Path;

use podgate_contract::plugin_conf::PLUGIN;

use super::active::BACKUP_SUFFIX;
use super::atomic_file::{Expected, MAX_ATTEMPTS, WriteOutcome, wait_for_writer};
use super::conflist::{Conflist, from_conf};
use super::directory::read_all;
use super::{InstallError, atomic_file, failed};

/// Removes the entry from every file of the directory, not only from those in use, and restores single plugins' files.
/// Returns the edits, one line each. Idempotent.
///
/// A file that was not changed since has its original bytes again, because adding the entry kept all others. One that was
/// changed keeps the change.
pub(super) fn restore(dir: &Path) -> Result<Vec<String>, InstallError> {
    let mut done = Vec::new();
    for _ in 0..MAX_ATTEMPTS {
        if restore_once(dir, &mut done)? == WriteOutcome::Done {
            return Ok(done);
        }
        wait_for_writer();
    }
    Err(InstallError::Busy(format!(
        "remove {PLUGIN} from {}: another program keeps writing a file there; stop it first",
        dir.display()
    )))
}

fn restore_once(dir: &Path, done: &mut Vec<String>) -> Result<WriteOutcome, InstallError> {
    for single in singles(dir)? {
        done.extend(restore_single(dir, &single)?);
    }
    for file in read_all(dir)? {
        let Ok(text) = file.text else { continue };
        let Ok(list) = Conflist::parse(&text) else { continue };
        if !file.name.ends_with(".conflist") || !list.has_podgate() {
            continue;
        }
        let Some(without) = list.without() else {
            tracing::warn!(file = file.name, "lists only {PLUGIN}: not edited");
            continue;
        };
        let path = dir.join(&file.name);
        let real = fs::canonicalize(&path).unwrap_or(path);
        if atomic_file::write(&real, without.as_bytes(), 0o644, Expected::Text(&text))
            .map_err(failed(format!("write {}", real.display())))?
            == WriteOutcome::Conflict
        {
            return Ok(WriteOutcome::Conflict);
        }
        done.push(format!("removed {PLUGIN} from {}", file.name));
    }
    Ok(WriteOutcome::Done)
}

/// Names of files for a single plugin, in use or renamed as backup.
fn singles(dir: &Path) -> Result<Vec<String>, InstallError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(format!("read {}", dir.display())))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let single = |name: String| name.strip_suffix(BACKUP_SUFFIX).map(str::to_owned).unwrap_or(name);
    let mut names: Vec<_> = names
        .map(single)
        .filter(|name| name.ends_with(".conf") || name.ends_with(".json"))
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Restores a single plugin's file and then removes the list made from it. In this order the runtime never finds neither,
/// and the file sorts first.
fn restore_single(dir: &Path, single: &str) -> Result<Vec<String>, InstallError> {
    let mut done = Vec::new();
    let path = dir.join(single);
    let backup = dir.join(format!("{single}{BACKUP_SUFFIX}"));
    let source = if backup.exists() { &backup } else { &path };
    // both are gone: removed since the directory was listed
    let Ok(original) = fs::read_to_string(source) else { return Ok(done) };
    let Ok(as_list) = from_conf(&original) else { return Ok(done) };
    let rename_back = || {
        atomic_file::rename(&backup, &path, Expected::Any)
            .map(drop)
            .map_err(failed(format!("rename {}", backup.display())))
    };
    let stem = single.rsplit_once('.').map_or(single, |(stem, _)| stem);
    let lists = [format!("{stem}.conflist"), format!("{single}-podgate.conflist")];
    for list in &lists {
        let at = dir.join(list);
        let made_of_it = fs::read_to_string(&at).is_ok_and(|text| {
            Conflist::parse(&text).is_ok_and(|list| list.without().as_ref() == Some(&as_list))
        });
        if !made_of_it {
            continue;
        }
        if backup.exists() && !path.exists() {
            rename_back()?;
            done.push(format!("restored {single}"));
        }
        atomic_file::remove(&at).map_err(failed(format!("remove {}", at.display())))?;
        done.push(format!("removed {list}"));
    }
    let is_list = |list: &String| {
        fs::read_to_string(dir.join(list)).is_ok_and(|text| Conflist::parse(&text).is_ok())
    };
    if backup.exists() && !path.exists() && !lists.iter().any(is_list) {
        // the list was removed or damaged and not replaced: without the single file the node has no network
        rename_back()?;
        done.push(format!("restored {single}"));
    } else if backup.exists() {
        // the file was written again or the list was changed: that is newer than the backup
        atomic_file::remove(&backup).map_err(failed(format!("remove {}", backup.display())))?;
        done.push(format!("removed the backup of {single}, which has been replaced since"));
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::install::Entry;

    const SINGLE: &str = "{ \"cniVersion\": \"1.0.0\", \"name\": \"n\", \"type\": \"ptp\" }\n";
    const LIST: &str =
        "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[{\"type\":\"bridge\"}]}";

    fn gated(list: &str) -> String {
        Conflist::parse(list).unwrap().with(&Entry::default()).unwrap()
    }

    /// Restores a directory that holds these files, twice, and has what is then there.
    fn restored(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        restore(dir.path()).unwrap();
        assert_eq!(restore(dir.path()).unwrap(), [""; 0], "the second time it did something");
        let read = |entry: fs::DirEntry| {
            let text = fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), text)
        };
        fs::read_dir(dir.path()).unwrap().map(|entry| read(entry.unwrap())).collect()
    }

    fn files(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn the_entry_leaves_every_file_and_nothing_else_changes() {
        let half = "{\"name\":\"n\",\"plugins\":[{\"type\":\"podgate\"}";
        let only_us = "{\"name\":\"n\",\"plugins\":[{\"type\":\"podgate\"}]}";
        let before = [
            ("10-a.conflist", &*gated(LIST)),
            ("20-b.conflist", &*gated(LIST)),
            ("30-half.conflist", half),
            ("40-us.conflist", only_us),
            ("50-other.conf", SINGLE),
            ("calico-kubeconfig", "podgate"),
        ];
        let mut after = before;
        (after[0].1, after[1].1) = (LIST, LIST);
        assert_eq!(restored(&before), files(&after));
    }

    #[test]
    fn a_single_plugin_gets_its_file_back() {
        let list = gated(&from_conf(SINGLE).unwrap());
        let kept = ("10-a.conf.before-podgate", SINGLE);
        let back = files(&[("10-a.conf", SINGLE)]);
        assert_eq!(restored(&[kept, ("10-a.conflist", &list)]), back);
        // install was killed before the file was out of the way, uninstall after it was back
        assert_eq!(restored(&[("10-a.conf", SINGLE), ("10-a.conflist", &list)]), back);
        // under the name that it gets where the usual one is taken
        let taken = ("10-a.conflist", LIST);
        assert_eq!(
            restored(&[kept, ("10-a.conf-podgate.conflist", &list), taken]),
            files(&[("10-a.conf", SINGLE), taken])
        );
        let json = [("10-a.json.before-podgate", SINGLE), ("10-a.conflist", &list)];
        assert_eq!(restored(&json), files(&[("10-a.json", SINGLE)]));
    }

    #[test]
    fn what_somebody_has_changed_since_stays_changed() {
        let kept = ("10-a.conf.before-podgate", SINGLE);
        // the list was edited
        let edited = from_conf(SINGLE).unwrap().replace("ptp", "bridge");
        let list = gated(&edited);
        assert_eq!(
            restored(&[kept, ("10-a.conflist", &list)]),
            files(&[("10-a.conflist", &edited)])
        );
        // the primary plugin has written its file again, and it was not converted again
        let list = gated(&from_conf(SINGLE).unwrap());
        let newer = ("10-a.conf", "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"type\":\"bridge\"}");
        assert_eq!(restored(&[kept, ("10-a.conflist", &list), newer]), files(&[newer]));
    }

    #[test]
    fn a_kept_file_comes_back_where_nothing_usable_stands_in_its_place() {
        let kept = ("10-a.conf.before-podgate", SINGLE);
        assert_eq!(restored(&[kept]), files(&[("10-a.conf", SINGLE)]), "the list is missing");
        for name in ["10-a.conflist", "10-a.conf-podgate.conflist"] {
            let half = (name, "{\"name\":\"n\",\"plugins\":[");
            let back = files(&[("10-a.conf", SINGLE), half]);
            assert_eq!(restored(&[kept, half]), back, "{name} is half a file");
        }
    }
}
