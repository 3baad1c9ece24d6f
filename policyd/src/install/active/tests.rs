use super::*;

const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;
const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

fn file(name: &str, text: &str) -> Candidate {
    Candidate { name: name.into(), text: Ok(text.into()) }
}

/// A list of one plugin.
fn list(name: &str, network: &str, kind: &str) -> Candidate {
    let text =
        format!(r#"{{"cniVersion":"1.0.0","name":"{network}","plugins":[{{"type":"{kind}"}}]}}"#);
    file(name, &text)
}

/// PluginDir `folder` there are plugins, `no-folder` is a file; of the binaries one is missing, one old, one silent, one cannot be run.
fn chosen_by(files: &[Candidate], rules: &Rules) -> Choice {
    let supports =
        |versions: &[&str]| Plugin::Supports(versions.iter().map(|v| (*v).into()).collect());
    let environment = Environment {
        plugin_dir: &|name| match name {
            "folder" => PluginDir::Plugins(vec!["50-tuning.conf".into()]),
            "no-folder" => PluginDir::Broken("not a directory".into()),
            _ => PluginDir::Nothing,
        },
        plugin: &|kind| match kind {
            "missing" => Plugin::Missing,
            "old" => supports(&["0.3.1", "0.4.0"]),
            "silent" => Plugin::NoAnswer("it ends with exit status: 1".into()),
            "foreign" => Plugin::Unknown("No such file or directory".into()),
            _ => supports(&["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0"]),
        },
    };
    choose(files, rules, environment)
}

fn spelled(networks: &[Active]) -> String {
    let one = |active: &Active| match active {
        Active::List { name, .. } => name.clone(),
        Active::Single { name, list, .. } => format!("{name} -> {list}"),
        Active::NoInterface { name } => format!("({name})"),
        Active::Refused { name, reason } => format!("{name}: {reason}"),
    };
    let all: Vec<_> = networks.iter().map(one).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

fn chosen(files: &[Candidate]) -> String {
    spelled(&chosen_by(files, &Rules::default()).networks)
}

fn only(runtime: Runtime) -> Rules {
    Rules { runtime: Some(runtime), ..Rules::default() }
}

#[test]
fn the_first_in_lexical_order_whatever_its_kind() {
    assert_eq!(chosen(&[]), "none");
    let files = [file("20-b.conflist", LIST), file("10-a.conflist", LIST), file("05-c.txt", LIST)];
    assert_eq!(chosen(&files), "10-a.conflist");
    assert_eq!(chosen_by(&files, &Rules::default()).unused, ["20-b.conflist"]);
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
fn what_is_invalid_is_told_and_only_cri_o_goes_past_it() {
    let mut files = vec![
        file("10-half.conflist", "{\"name\":\"n\",\"plug"),
        file("20-empty.conflist", r#"{"name":"n","plugins":[]}"#),
        file("30-list.conf", LIST),
        file("40-maybe.conflist", &LIST.replace("\"name\"", "\"disableCheck\":\"maybe\",\"name\"")),
    ];
    assert_eq!(chosen(&files), "none");
    files.push(file("50-good.conflist", LIST));
    assert_eq!(chosen(&files), "50-good.conflist");
    assert_eq!(spelled(&chosen_by(&files, &only(Runtime::Containerd)).networks), "none");
    let reported = chosen_by(&files, &Rules::default()).problems.join("\n");
    for part in [
        "10-half.conflist is no CNI configuration: EOF while parsing",
        "until it is corrected or removed, containerd starts no pod",
        "CRI-O skips it",
        "20-empty.conflist is no CNI configuration: its list of plugins is empty",
        "30-list.conf is no CNI configuration: it has no type (a list belongs into a .conflist)",
        "40-maybe.conflist is no CNI configuration: its disableCheck is \"maybe\"",
    ] {
        assert!(reported.contains(part), "{reported}");
    }
}

#[test]
fn what_only_some_libraries_take_gates_both_ways() {
    // libcni 1.1 refuses a string, 1.3 reads it
    let odd =
        file("10-a.conflist", &LIST.replace("\"name\"", "\"disableCheck\":\"true\",\"name\""));
    let files = [odd, file("20-b.conflist", LIST), file("30-c.conflist", LIST)];
    assert_eq!(chosen(&files), "10-a.conflist, 20-b.conflist");
}

#[test]
fn what_has_no_room_for_podgate_is_refused_by_name() {
    let old = r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    let reported = chosen(&[file("10-a.conflist", old), file("20-b.conflist", LIST)]);
    assert!(reported.starts_with("10-a.conflist: its cniVersion is 0.2.0"), "{reported}");
    let none = r#"{"name":"n","type":"bridge"}"#;
    assert!(chosen(&[file("10-a.conf", none)]).contains("its cniVersion is 0.1.0"));
    let unread = Candidate { name: "10-a.conflist".into(), text: Err("no such file".into()) };
    let reported = chosen(&[unread, file("20-b.conflist", LIST)]);
    assert_eq!(reported, "10-a.conflist: this program cannot read it: no such file");
    let lo = r#"{"cniVersion":"1.0.0","name":"lo","type":"loopback"}"#;
    assert_eq!(chosen(&[file("99-lo.conf", lo)]), "(99-lo.conf)");
    // Go takes what this program does not
    let deep =
        LIST.replace("\"name\"", &format!("\"x\":{}{},\"name\"", "[".repeat(500), "]".repeat(500)));
    assert!(chosen(&[file("10-a.conflist", &deep)]).contains("recursion limit"));
    let shout = LIST.replace("\"type\"", "\"Type\"");
    let reported = chosen(&[file("10-a.conflist", &shout)]);
    assert!(reported.contains("no type as podgate reads it, and runtimes take it"), "{reported}");
    let twice = LIST.replace("\"name\"", "\"name\":\"m\",\"name\"");
    assert!(chosen(&[file("10-a.conflist", &twice)]).contains("duplicate field"));
}

#[test]
fn plugins_beside_a_list_are_refused_by_name() {
    let only_beside = r#"{"cniVersion":"1.0.0","name":"folder"}"#;
    let inlined = r#"{"cniVersion":"1.0.0","loadOnlyInlinedPlugins":true,"name":"folder","plugins":[{"type":"bridge"}]}"#;
    let single = r#"{"cniVersion":"1.0.0","name":"folder","type":"bridge"}"#;
    for text in [only_beside, &LIST.replace("\"n\"", "\"folder\"")] {
        let reported = chosen(&[file("10-a.conflist", text), file("87-b.conflist", LIST)]);
        assert!(
            reported.starts_with("10-a.conflist: libcni 1.3 runs the plugins in"),
            "{reported}"
        );
        assert!(
            reported.contains("50-tuning.conf") && reported.contains("loadOnlyInlinedPlugins"),
            "{reported}"
        );
    }
    assert_eq!(chosen(&[file("10-a.conflist", inlined)]), "10-a.conflist");
    // not loaded now, but it would be once it is a list
    assert!(chosen(&[file("10-a.conf", single)]).contains("libcni 1.3 runs the plugins in"));
    let reported = chosen(&[list("10-a.conflist", "no-folder", "bridge")]);
    assert!(reported.contains("beside it (not a directory)"), "{reported}");
    // without a folder it is nothing
    let nothing = r#"{"cniVersion":"1.0.0","name":"pods"}"#;
    assert_eq!(chosen(&[file("10-a.conflist", nothing)]), "none");
}

#[test]
fn what_cri_o_passes_over_is_told_and_what_it_takes_instead_is_gated_too() {
    let bridge = list("100-crio-bridge.conflist", "crio", "bridge");
    for (kind, reported) in [
        ("missing", "its plugin missing is not there"),
        ("old", "its plugin old supports 0.3.1, 0.4.0 and not 1.0.0"),
        ("silent", "its plugin silent gives no versions: it ends with exit status: 1"),
        ("foreign", "its plugin foreign cannot be run by this program"),
    ] {
        // sorted before the packaged one
        let files = [list("10-a.conflist", "pods", kind), bridge.clone()];
        assert_eq!(chosen(&files), "10-a.conflist, 100-crio-bridge.conflist", "{kind}");
        let choice = chosen_by(&files, &Rules::default());
        let said = match kind {
            "foreign" => choice.doubts.join("\n"),
            _ => choice.problems.join("\n"),
        };
        let what = match kind {
            "foreign" => "whether CRI-O takes 10-a.conflist is not known:",
            _ => "CRI-O skips 10-a.conflist:",
        };
        assert!(said.contains(what) && said.contains(reported), "{said}");
        let containerd = chosen_by(&files, &only(Runtime::Containerd));
        assert_eq!(spelled(&containerd.networks), "10-a.conflist");
        assert_eq!(containerd.problems, [""; 0]);
        let crio = spelled(&chosen_by(&files, &only(Runtime::CriO)).networks);
        let may_be_elsewhere = ["missing", "foreign"].contains(&kind);
        assert_eq!(crio == "100-crio-bridge.conflist", !may_be_elsewhere, "{kind}: {crio}");
    }
    // a later file that cannot be gated is as bad as the first one, unless the runtime may never get to it
    let old = list("20-b.conflist", "b", "bridge");
    let old = file("20-b.conflist", &old.text.unwrap().replace("1.0.0", "0.2.0"));
    let networks = chosen(&[list("10-a.conflist", "pods", "missing"), old.clone()]);
    assert!(networks.contains("20-b.conflist: its cniVersion is 0.2.0"), "{networks}");
    let choice = chosen_by(&[list("10-a.conflist", "pods", "foreign"), old], &Rules::default());
    assert_eq!(spelled(&choice.networks), "10-a.conflist");
    assert!(choice.doubts[1].starts_with("if not, CRI-O takes 20-b.conflist"), "{choice:?}");
    // the next file only has loopback
    let lo = list("99-loopback.conflist", "lo", "loopback");
    let files = [list("10-a.conflist", "pods", "missing"), lo];
    assert_eq!(chosen(&files), "10-a.conflist, (99-loopback.conflist)");
}

#[test]
fn the_runtimes_own_configuration_decides() {
    let files = [
        list("10-a.conflist", "a", "bridge"),
        list("20-b.conflist", "b", "bridge"),
        list("30-c.conflist", "c", "bridge"),
    ];
    let by = |rules: Rules| spelled(&chosen_by(&files, &rules).networks);
    let max = |max_conf_num| Rules { max_conf_num, ..only(Runtime::Containerd) };
    assert_eq!(by(max(1)), "10-a.conflist");
    assert_eq!(by(max(2)), "10-a.conflist, 20-b.conflist");
    for all in [0, 3, 4] {
        assert_eq!(by(max(all)), "10-a.conflist, 20-b.conflist, 30-c.conflist");
    }
    let named = |name: &str| Rules { default_network: Some(name.into()), ..only(Runtime::CriO) };
    assert_eq!(by(named("c")), "30-c.conflist");
    assert_eq!(by(named("d")), "none");
    let both = Rules { runtime: None, ..named("c") };
    assert_eq!(by(both), "10-a.conflist, 30-c.conflist");
}
