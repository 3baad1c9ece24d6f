//! The configuration as it was before podgate came.

use std::fs;
use std::path::Path;

use super::active::KEPT;
use super::conflist::{Conflist, from_conf};
use super::pass::read_all;
use super::{InstallError, PLUGIN, failed, place};

/// Takes the entry out of every file of the directory, not only of the one in use, and gives single plugins their
/// files back. Returns what it has done, one line each; doing it again does nothing.
///
/// A file that nobody has touched since has its old bytes again, since putting the entry in kept all others. One
/// that has changed since keeps the change.
pub(super) fn restore(dir: &Path) -> Result<Vec<String>, InstallError> {
    let mut done = Vec::new();
    for single in singles(dir)? {
        done.extend(give_back(dir, &single)?);
    }
    for file in read_all(dir)? {
        let Ok(text) = file.text else { continue };
        let Ok(list) = Conflist::parse(&text) else { continue };
        if !file.name.ends_with(".conflist") || !list.gates() {
            continue;
        }
        let Some(text) = list.without() else {
            tracing::warn!(file = file.name, "lists nothing but {PLUGIN}: left alone");
            continue;
        };
        let path = dir.join(&file.name);
        let real = fs::canonicalize(&path).unwrap_or(path);
        place::put(&real, text.as_bytes(), 0o644)
            .map_err(failed(format!("write {}", real.display())))?;
        done.push(format!("took {PLUGIN} out of {}", file.name));
    }
    Ok(done)
}

/// Names of files for a single plugin, there or kept.
fn singles(dir: &Path) -> Result<Vec<String>, InstallError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(format!("read {}", dir.display())))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let single = |name: String| name.strip_suffix(KEPT).map(str::to_owned).unwrap_or(name);
    let mut names: Vec<_> = names
        .map(single)
        .filter(|name| name.ends_with(".conf") || name.ends_with(".json"))
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Puts a single plugin's file back and removes the list made of it: in this order, since the file comes first, so
/// that the runtime never finds neither.
fn give_back(dir: &Path, single: &str) -> Result<Vec<String>, InstallError> {
    let mut done = Vec::new();
    let path = dir.join(single);
    let kept = dir.join(format!("{single}{KEPT}"));
    let source = if kept.exists() { &kept } else { &path };
    // neither: it has gone meanwhile
    let Ok(original) = fs::read_to_string(source) else { return Ok(done) };
    let Ok(as_list) = from_conf(&original) else { return Ok(done) };
    let stem = single.rsplit_once('.').map_or(single, |(stem, _)| stem);
    for list in [format!("{stem}.conflist"), format!("{single}-podgate.conflist")] {
        let at = dir.join(&list);
        let made_of_it = fs::read_to_string(&at).is_ok_and(|text| {
            Conflist::parse(&text).is_ok_and(|list| list.without().as_ref() == Some(&as_list))
        });
        if !made_of_it {
            continue;
        }
        if kept.exists() && !path.exists() {
            place::rename(&kept, &path).map_err(failed(format!("rename {}", kept.display())))?;
            done.push(format!("gave {single} back"));
        }
        place::remove(&at).map_err(failed(format!("remove {}", at.display())))?;
        done.push(format!("removed {list}"));
    }
    if kept.exists() {
        // somebody has written the file anew, or changed the list: what is in force is theirs
        place::remove(&kept).map_err(failed(format!("remove {}", kept.display())))?;
        done.push(format!("removed the old {single}, in whose place there is something newer"));
    }
    Ok(done)
}
