//! Which of a directory's files the runtime takes for the pods' network.
//!
//! containerd and CRI-O read `.conf`, `.conflist` and `.json`, sorted by name, hidden ones too, and take the first.
//! They part at one that cannot be read: CRI-O goes on to the next, containerd stays "not ready" until it is mended.
//! So does this one go on: the next is what CRI-O uses, and containerd uses none. It does not go past one that only
//! it cannot open, since what a runtime makes of that is not known.

use super::conflist::{Conflist, from_conf};

/// A file of the configuration directory that a runtime would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its content, or why there is none.
    pub text: Result<String, String>,
}

/// The choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Active {
    /// The runtime has no network yet.
    None,
    /// A list that podgate can be in.
    List {
        /// The file's name.
        name: String,
        /// Its content.
        text: String,
    },
    /// A single plugin's configuration, which becomes a list.
    Single {
        /// The file's name.
        name: String,
        /// The list's name.
        list: String,
        /// The list.
        text: String,
    },
    /// What the runtime uses has no room for podgate.
    Refused {
        /// The file's name.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// What a single plugin's file is called once the list has taken its place: runtimes do not read it.
pub(super) const KEPT: &str = ".before-podgate";

/// Whether a runtime reads files of this name.
pub(super) fn is_read(name: &str) -> bool {
    name.rfind('.').is_some_and(|dot| matches!(&name[dot..], ".conf" | ".conflist" | ".json"))
}

/// Chooses among `files` as a runtime does; also says what is wrong with those it had to pass over.
pub fn choose(files: &[Candidate]) -> (Active, Vec<String>) {
    let mut files: Vec<_> = files.iter().filter(|file| is_read(&file.name)).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let mut passed = Vec::new();
    for file in &files {
        let name = file.name.clone();
        let outcome = match &file.text {
            // the runtime may well read it: a link that leads out of a container's mount
            Err(reason) => {
                let reason = format!("it cannot be read from here: {reason}");
                return (Active::Refused { name, reason }, passed);
            }
            Ok(text) if name.ends_with(".conflist") => Conflist::parse(text)
                .map(|list| {
                    (list.refusal(), Active::List { name: name.clone(), text: text.clone() })
                })
                .map_err(|e| e.to_string()),
            Ok(text) => from_conf(text).map_err(|e| e.to_string()).and_then(|text| {
                let refusal = Conflist::parse(&text).map_err(|e| e.to_string())?.refusal();
                let list = list_name(&name, &files);
                Ok((refusal, Active::Single { name: name.clone(), list, text }))
            }),
        };
        match outcome {
            Ok((None, active)) => return (active, passed),
            Ok((Some(reason), _)) => return (Active::Refused { name, reason }, passed),
            Err(reason) => passed.push(format!("{name} is no CNI configuration: {reason}")),
        }
    }
    (Active::None, passed)
}

/// A name for the list at the same place in the order. Of the two usual ones, that may be taken or jump over
/// another file, the second never is: nothing sorts between it and the file's own name but what begins like it.
fn list_name(single: &str, files: &[&Candidate]) -> String {
    let stem = single.rsplit_once('.').map_or(single, |(stem, _)| stem);
    let usual = format!("{stem}.conflist");
    let others = || files.iter().map(|file| file.name.as_str()).filter(|name| *name != single);
    let place = |name: &str| others().filter(|other| *other < name).count();
    // one that is there is an earlier turn's, whose single file somebody has written anew
    let taken = files.iter().any(|file| {
        file.name == usual
            && !file
                .text
                .as_deref()
                .is_ok_and(|text| Conflist::parse(text).is_ok_and(|list| list.gates()))
    });
    let earlier = others().filter(|other| *other < single && *other != usual).count();
    let moved = others().filter(|other| *other < usual.as_str() && *other != usual).count();
    if !taken && earlier == moved {
        return usual;
    }
    let beside = format!("{single}-podgate.conflist");
    debug_assert!(place(&beside) >= place(single));
    beside
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;
    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

    fn file(name: &str, text: &str) -> Candidate {
        Candidate { name: name.into(), text: Ok(text.into()) }
    }

    fn chosen(files: &[Candidate]) -> String {
        match choose(files).0 {
            Active::None => "none".into(),
            Active::List { name, .. } => name,
            Active::Single { name, list, .. } => format!("{name} -> {list}"),
            Active::Refused { name, reason } => format!("{name}: {reason}"),
        }
    }

    #[test]
    fn the_first_in_lexical_order_whatever_its_kind() {
        assert_eq!(chosen(&[]), "none");
        let files =
            [file("20-b.conflist", LIST), file("10-a.conflist", LIST), file("05-c.txt", LIST)];
        assert_eq!(chosen(&files), "10-a.conflist");
        let mut files = files.to_vec();
        files.push(file("10-a.conf", BRIDGE));
        // the usual name is another's
        assert_eq!(chosen(&files), "10-a.conf -> 10-a.conf-podgate.conflist");
        files.push(file(".hidden.conflist", LIST));
        assert_eq!(chosen(&files), ".hidden.conflist");
        assert_eq!(
            chosen(&[file("x.conf.before-podgate", BRIDGE), file(".podgate-Ab.tmp", LIST)]),
            "none"
        );
    }

    #[test]
    fn a_single_plugin_keeps_its_place_as_a_list() {
        assert_eq!(chosen(&[file("10-a.conf", BRIDGE)]), "10-a.conf -> 10-a.conflist");
        assert_eq!(chosen(&[file("10-a.json", BRIDGE)]), "10-a.json -> 10-a.conflist");
        // would jump over an unreadable one, for which containerd waits
        let files = [file("10-a.d.conf", "{"), file("10-a.json", BRIDGE)];
        assert_eq!(chosen(&files), "10-a.json -> 10-a.json-podgate.conflist");
        // an earlier turn's list makes way
        let ours = r#"{"name":"n","plugins":[{"type":"bridge"},{"type":"podgate"}]}"#;
        let files = [file("10-a.conf", BRIDGE), file("10-a.conflist", ours)];
        assert_eq!(chosen(&files), "10-a.conf -> 10-a.conflist");
    }

    #[test]
    fn what_cannot_be_read_is_told_and_passed_over() {
        let mut files = vec![
            file("10-half.conflist", "{\"name\":\"n\",\"plug"),
            file("20-empty.conflist", r#"{"name":"n","plugins":[]}"#),
            file("30-list.conf", LIST),
        ];
        assert_eq!(chosen(&files), "none");
        files.push(file("50-good.conflist", LIST));
        assert_eq!(chosen(&files), "50-good.conflist");
        let told = choose(&files).1.join("\n");
        for part in [
            "10-half.conflist is no CNI configuration: EOF while parsing",
            "20-empty.conflist is no CNI configuration: its list of plugins is empty",
            "30-list.conf is no CNI configuration: it has no type (a list belongs into a .conflist)",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn what_has_no_room_for_podgate_is_refused_by_name() {
        let old = r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"bridge"}]}"#;
        let told = chosen(&[file("10-a.conflist", old), file("20-b.conflist", LIST)]);
        assert!(told.starts_with("10-a.conflist: its cniVersion is 0.2.0"), "{told}");
        let none = r#"{"name":"n","type":"bridge"}"#;
        assert!(chosen(&[file("10-a.conf", none)]).contains("its cniVersion is 0.1.0"));
        let unread = Candidate { name: "10-a.conflist".into(), text: Err("no such file".into()) };
        let told = chosen(&[unread, file("20-b.conflist", LIST)]);
        assert_eq!(told, "10-a.conflist: it cannot be read from here: no such file");
        let lo = r#"{"cniVersion":"1.0.0","name":"lo","type":"loopback"}"#;
        assert!(chosen(&[file("99-lo.conf", lo)]).contains("makes an interface for pods"));
    }
}
