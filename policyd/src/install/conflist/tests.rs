use super::*;

fn with(text: &str) -> Option<String> {
    Conflist::parse(text).unwrap().with(&Entry::default())
}

fn without(text: &str) -> Option<String> {
    Conflist::parse(text).unwrap().without()
}

/// Puts the entry in, takes it out, and has the same bytes.
#[track_caller]
fn there_and_back(text: &str, there: &str) {
    let new = with(text).unwrap();
    assert_eq!(new, there);
    assert_eq!(with(&new), None, "a second time changes nothing");
    assert_eq!(without(&new).unwrap(), text);
    assert_eq!(without(text), None);
}

#[test]
fn the_entry_goes_to_the_end_and_every_other_byte_stays() {
    there_and_back(
        "{\n  \"x-first\": 1e3,\n  \"name\": \"n\", \"plugins\": [\n    {\n      \"type\": \"bridge\"\n    },\n    { \"type\":\"portmap\" }\n  ],\n  \"cniVersion\": \"1.0.0\", \"big\": 12345678901234567890123\n}\n",
        "{\n  \"x-first\": 1e3,\n  \"name\": \"n\", \"plugins\": [\n    {\n      \"type\": \"bridge\"\n    },\n    { \"type\":\"portmap\" },\n    { \"type\": \"podgate\" }\n  ],\n  \"cniVersion\": \"1.0.0\", \"big\": 12345678901234567890123\n}\n",
    );
    there_and_back(
        r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"ptp"}]}"#,
        r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"ptp"},{ "type": "podgate" }]}"#,
    );
    there_and_back(
        "{\"name\":\"n\",\n\"plugins\":[{\"type\":\"ptp\"}]}",
        "{\"name\":\"n\",\n\"plugins\":[{\"type\":\"ptp\"}, { \"type\": \"podgate\" }]}",
    );
}

#[test]
fn many_keys_are_laid_out_as_the_file_is() {
    let entry =
        Entry { policyd_timeout_ms: Some(1), anti_spoofing: Some(true), ..Entry::default() };
    let text = "{\n\t\"name\": \"n\",\n\t\"plugins\": [\n\t\t{\"type\": \"ptp\"}\n\t]\n}";
    let new = Conflist::parse(text).unwrap().with(&entry).unwrap();
    assert_eq!(
        new,
        "{\n\t\"name\": \"n\",\n\t\"plugins\": [\n\t\t{\"type\": \"ptp\"},\n\t\t{\n\t\t\t\"type\": \"podgate\",\n\t\t\t\"policydTimeoutMs\": 1,\n\t\t\t\"antiSpoofing\": true\n\t\t}\n\t]\n}"
    );
    assert_eq!(without(&new).unwrap(), text);
}

#[test]
fn an_entry_that_is_there_is_changed_where_it_is() {
    let text = r#"{"name":"n","plugins":[{"type":"ptp"},{"type":"podgate","startup":"open","maps":{"peers":9}},{"type":"portmap"}]}"#;
    assert_eq!(
        with(text).unwrap(),
        r#"{"name":"n","plugins":[{"type":"ptp"},{ "type": "podgate", "maps": {"peers":9} },{"type":"portmap"}]}"#
    );
    assert_eq!(
        without(text).unwrap(),
        r#"{"name":"n","plugins":[{"type":"ptp"},{"type":"portmap"}]}"#
    );
}

#[test]
fn an_entry_in_the_wrong_place_moves_to_the_end() {
    let list = |plugins: &str| {
        let plugin = |kind: &str| format!("{{ \"type\": \"{kind}\" }}");
        let plugins: Vec<_> = plugins.split(' ').map(plugin).collect();
        format!(r#"{{"name":"n","plugins":[{}]}}"#, plugins.join(","))
    };
    for (before, after) in [
        ("podgate bridge", "bridge podgate"),
        ("bridge podgate bandwidth", "bridge bandwidth podgate"),
        ("podgate bridge portmap podgate", "bridge portmap podgate"),
        ("podgate podgate bridge podgate podgate", "bridge podgate"),
    ] {
        let moved = with(&list(before)).unwrap();
        let moved = Conflist::parse(&moved).unwrap();
        assert_eq!(moved.kinds().collect::<Vec<_>>().join(" "), after, "{before}");
        assert_eq!(moved.with(&Entry::default()), None);
    }
    // in any other position it stays
    for stays in ["bridge podgate portmap", "bridge bandwidth podgate tuning"] {
        assert_eq!(with(&list(stays)), None, "{stays}");
    }
    // what an operator has put into it moves with it
    let text = r#"{"name":"n","plugins":[{"type":"podgate","maps":{"peers":9}},{"type":"ptp"}]}"#;
    assert!(with(text).unwrap().ends_with(r#"{"type":"podgate","maps":{"peers":9}}]}"#));
    // there is nothing to go on with
    assert_eq!(without(&list("podgate")), None);
}

#[test]
fn what_is_no_conflist() {
    for (text, told) in [
        ("", "EOF"),
        ("[\"1.0.0\"]", "no object"),
        ("{\"plugins\":[{\"type\":\"a\"}]}", "no name"),
        ("{\"name\":\"n\"}", "no plugins"),
        ("{\"name\":\"n\",\"plugins\":[]}", "empty"),
        ("{\"name\":\"n\",\"plugins\":[{\"typ\":\"a\"}]}", "no type"),
        ("{\"name\":\"n\",\"plugins\":[{\"type\":\"\"}]}", "no type"),
        ("{\"name\":\"n\",\"plugins\":[{\"type\":\"a\"}]} x", "trailing"),
    ] {
        let error = Conflist::parse(text).unwrap_err().to_string();
        assert!(error.contains(told), "{text}: {error}");
    }
}

#[test]
fn a_single_plugin_becomes_a_list_of_one() {
    let text = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"n\",\n  \"type\": \"bridge\",\n  \"x\": 1e3\n}\n";
    let list = from_conf(text).unwrap();
    assert_eq!(
        list,
        "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"n\",\n  \"plugins\": [\n    {\n      \"cniVersion\": \"1.0.0\",\n      \"name\": \"n\",\n      \"type\": \"bridge\",\n      \"x\": 1e3\n    }\n  ]\n}\n"
    );
    there_and_back(
        &list,
        &list.replace("    }\n  ]", "    },\n    { \"type\": \"podgate\" }\n  ]"),
    );
    assert!(from_conf("{\"name\":\"n\"}").is_err());
    assert!(from_conf("{").is_err());
}

#[test]
fn versions_that_podgate_speaks() {
    let refused = |keys: &str| {
        let text = format!(r#"{{{keys}"name":"n","plugins":[{{"type":"bridge"}}]}}"#);
        Conflist::parse(&text).unwrap().refusal()
    };
    for version in VERSIONS {
        assert_eq!(refused(&format!(r#""cniVersion":"{version}","#)), None);
    }
    assert!(refused(r#""cniVersion":"0.2.0","#).unwrap().contains("its cniVersion is 0.2.0"));
    assert!(refused("").unwrap().contains("its cniVersion is 0.1.0"));
    assert_eq!(refused(r#""cniVersion":"1.0.0","cniVersions":["9.0.0","1.1.0"],"#), None);
    // older libraries do not read it, and call the plugins with none
    let told = refused(r#""cniVersions":["9.0.0","1.1.0"],"#).unwrap();
    assert!(told.contains("write one of these as cniVersion too"), "{told}");
    let told = refused(r#""cniVersion":"0.4.0","cniVersions":["0.2.0","0.1.0","9.0.0"],"#);
    assert_eq!(told, None, "the newest that is known is 0.4.0");
    let told = refused(r#""cniVersions":["0.2.0","0.1.0"],"#).unwrap();
    assert!(told.contains("its cniVersion is 0.2.0"), "{told}");
}
