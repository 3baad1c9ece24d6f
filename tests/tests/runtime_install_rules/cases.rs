//! The table: what stands in a directory, and what install must come to.

use policyd::install::{Rules, Runtime};
use serde_json::json;

/// What stands in a configuration directory.
pub(crate) enum Put {
    /// A file with this text.
    Text(String),
    /// A symbolic link.
    Link(&'static str),
    /// An empty directory.
    Dir,
}

/// What install must come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// New pods get a gate.
    Gated,
    /// It refuses, and the reason has this in it.
    Refuses(&'static str),
    /// There is no network yet.
    Nothing,
}
pub(crate) use Outcome::{Gated, Nothing, Refuses};

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) files: Vec<(&'static str, Put)>,
    pub(crate) rules: Rules,
    pub(crate) outcome: Outcome,
    /// Whether only the runtime can read a file, so that there is no verdict to compare.
    pub(crate) unreadable: bool,
}

fn case(name: &'static str, outcome: Outcome, files: Vec<(&'static str, String)>) -> Case {
    let files = files.into_iter().map(|(name, text)| (name, Put::Text(text))).collect();
    Case { name, files, rules: Rules::default(), outcome, unreadable: false }
}

impl Case {
    fn max(mut self, max_conf_num: usize) -> Self {
        self.rules = Rules { runtime: Some(Runtime::Containerd), max_conf_num, ..Rules::default() };
        self
    }

    fn default_network(mut self, name: &str) -> Self {
        let default_network = Some(name.to_owned());
        self.rules = Rules { runtime: Some(Runtime::CriO), default_network, ..Rules::default() };
        self
    }

    fn with(mut self, name: &'static str, put: Put) -> Self {
        self.files.push((name, put));
        self
    }

    fn unreadable(mut self) -> Self {
        self.unreadable = true;
        self
    }
}

/// A list of plugins of these types.
fn list(network: &str, kinds: &[&str]) -> String {
    let plugins: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    json!({ "cniVersion": "1.0.0", "name": network, "plugins": plugins }).to_string()
}

/// The same with other keys.
fn keyed(network: &str, keys: &str) -> String {
    let text = list(network, &["bridge"]);
    format!("{{{keys},{}", &text[1..])
}

/// With another `cniVersion`, or none.
fn versioned(network: &str, versions: &str) -> String {
    list(network, &["bridge"]).replace(r#""cniVersion":"1.0.0""#, versions)
}

fn single(network: &str, kind: &str) -> String {
    json!({ "cniVersion": "1.0.0", "name": network, "type": kind }).to_string()
}

fn plugin(text: &str) -> String {
    format!(r#"{{"cniVersion":"1.0.0","name":"a","plugins":[{text}]}}"#)
}

fn orders() -> Vec<Case> {
    let a = || ("10-a.conflist", list("a", &["bridge", "portmap"]));
    let b = || ("20-b.conflist", list("b", &["ptp"]));
    vec![
        case("nothing", Nothing, vec![]),
        case("one list", Gated, vec![a()]),
        case("two lists", Gated, vec![b(), a()]),
        case("podgate is in it", Gated, vec![("10-a.conflist", list("a", &["bridge", "podgate"]))]),
        case("a single one first", Gated, vec![("10-a.conf", single("s", "ptp")), b()]),
        case("a .json first", Gated, vec![("10-a.json", single("s", "ptp")), b()]),
        case("other names", Gated, vec![("05-c.txt", list("c", &["ptp"])), ("x", "{".into()), b()]),
        case("a hidden one", Gated, vec![(".x.conflist", list("h", &["ptp"])), a()]),
        case(
            "upper case sorts first",
            Gated,
            vec![("Z.conflist", list("z", &["ptp"])), ("a.conflist", list("a", &["ptp"]))],
        ),
        case(
            "loopback alone",
            Refuses("makes an interface"),
            vec![("99-lo.conf", single("lo", "loopback"))],
        ),
        case("a directory of that name", Gated, vec![a()]).with("05-d.conflist", Put::Dir),
        case("a link that leads nowhere", Refuses("05-l.conflist cannot take podgate"), vec![a()])
            .with("05-l.conflist", Put::Link("/nonexistent/elsewhere"))
            .unreadable(),
        case("a link to a directory", Refuses("05-l.conflist cannot take podgate"), vec![a()])
            .with("05-l.conflist", Put::Link("/"))
            .unreadable(),
        case("all of three", Gated, vec![a(), b(), ("30-c.conf", single("c", "ptp"))]).max(0),
        case("two of three", Gated, vec![a(), b(), ("30-c.conf", single("c", "ptp"))]).max(2),
        case("five of three", Gated, vec![a(), b(), ("30-c.conf", single("c", "ptp"))]).max(5),
        case("two, the third is invalid", Gated, vec![a(), b(), ("30-c.conf", "{".into())]).max(2),
        case("all, the third is invalid", Nothing, vec![a(), b(), ("30-c.conf", "{".into())])
            .max(0),
        case(
            "two, the second cannot be gated",
            Refuses("20-b.conflist cannot take podgate"),
            vec![a(), ("20-b.conflist", versioned("b", r#""cniVersion":"0.2.0""#))],
        )
        .max(2),
        case(
            "two, the second is loopback",
            Gated,
            vec![a(), ("99-lo.conf", single("lo", "loopback"))],
        )
        .max(2),
        case("the default is the second", Gated, vec![a(), b()]).default_network("b"),
        case("the default is not there", Nothing, vec![a(), b()]).default_network("c"),
        case(
            "the default is invalid",
            Nothing,
            vec![a(), ("20-b.conflist", keyed("b", r#""disableCheck":"maybe""#))],
        )
        .default_network("b"),
        case(
            "the default has no name",
            Refuses("has no name"),
            vec![a(), ("20-b.conf", single("", "ptp"))],
        )
        .default_network("20-b.conf"),
        case(
            "the default has a missing plugin",
            Gated,
            vec![a(), ("20-b.conflist", list("b", &["missing"]))],
        )
        .default_network("b"),
    ]
}

fn invalid() -> Vec<Case> {
    let first = |name, text: &str| {
        let good = list("good", &["ptp"]);
        case(name, Gated, vec![("10-a.conflist", text.to_owned()), ("50-good.conflist", good)])
    };
    vec![
        first("half a file", "{\"name\":\"n\",\"plug"),
        first("empty", ""),
        first("null", "null"),
        first("an array", "[]"),
        first("a byte order mark", &format!("\u{feff}{}", list("a", &["bridge"]))),
        first("something behind it", &(list("a", &["bridge"]) + " x")),
        first("no name", r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#),
        first("name is null", r#"{"cniVersion":"1.0.0","name":null,"plugins":[{"type":"ptp"}]}"#),
        first("name is a number", r#"{"cniVersion":"1.0.0","name":1,"plugins":[{"type":"ptp"}]}"#),
        first("Name", &list("a", &["bridge"]).replace("\"name\"", "\"Name\"")),
        first("no plugins", r#"{"cniVersion":"1.0.0","name":"a"}"#),
        first("plugins is empty", &plugin("")),
        first("plugins is null", r#"{"cniVersion":"1.0.0","name":"a","plugins":null}"#),
        first("plugins is an object", r#"{"cniVersion":"1.0.0","name":"a","plugins":{}}"#),
        first("cniVersion is null", &versioned("a", r#""cniVersion":null"#)),
        first("cniVersion is a number", &versioned("a", r#""cniVersion":1"#)),
        first("a number too large", &keyed("a", r#""x":1e400"#)),
        first("disableCheck maybe", &keyed("a", r#""disableCheck":"maybe""#)),
        first("disableCheck 1", &keyed("a", r#""disableCheck":1"#)),
        first("disableCheck null", &keyed("a", r#""disableCheck":null"#)),
        first("disableCheck \"true\"", &keyed("a", r#""disableCheck":"true""#)),
        first("disableCheck \"FALSE\"", &keyed("a", r#""disableCheck":"FALSE""#)),
        first("disableCheck true", &keyed("a", r#""disableCheck":true"#)),
        first("disableGC maybe", &keyed("a", r#""disableGC":"maybe""#)),
        first("loadOnlyInlinedPlugins maybe", &keyed("a", r#""loadOnlyInlinedPlugins":7"#)),
        first("no type", &plugin(r#"{"typ":"bridge"}"#)),
        first("an empty type", &plugin(r#"{"type":""}"#)),
        first("a type that is a number", &plugin(r#"{"type":1}"#)),
        first("a plugin that is null", &plugin("null")),
        first("a plugin that is a string", &plugin("\"bridge\"")),
        first(
            "capabilities that are strings",
            &plugin(r#"{"type":"bridge","capabilities":{"a":"b"}}"#),
        ),
        first(
            "capabilities that are null",
            &plugin(r#"{"type":"bridge","capabilities":{"a":null}}"#),
        ),
        first("ipam that is a list", &plugin(r#"{"type":"bridge","ipam":[]}"#)),
        first("ipam of a number", &plugin(r#"{"type":"bridge","ipam":{"type":1}}"#)),
        first("ipam that is null", &plugin(r#"{"type":"bridge","ipam":null}"#)),
        first("dns that is a string", &plugin(r#"{"type":"bridge","dns":"x"}"#)),
        first("dns of numbers", &plugin(r#"{"type":"bridge","dns":{"search":[1]}}"#)),
        first("dns as it should be", &plugin(r#"{"type":"bridge","dns":{"search":["a"]}}"#)),
        first("name of a plugin is a number", &plugin(r#"{"type":"bridge","name":1}"#)),
        first("prevResult is a list", &plugin(r#"{"type":"bridge","prevResult":[]}"#)),
        case(
            "a list in a .conf",
            Gated,
            vec![("10-a.conf", list("a", &["ptp"])), ("20-b.conflist", list("b", &["ptp"]))],
        ),
        case(
            "half a .conf",
            Gated,
            vec![("10-a.conf", "{".into()), ("20-b.conflist", list("b", &["ptp"]))],
        ),
        case(
            "all are invalid",
            Nothing,
            vec![("10-a.conf", "{".into()), ("20-b.conflist", "{".into())],
        ),
        case(
            "no type in a .json",
            Gated,
            vec![("10-a.json", "{}".into()), ("20-b.conflist", list("b", &["ptp"]))],
        ),
        // what the library takes and podgate cannot edit
        case(
            "Type",
            Refuses("runtimes take it"),
            vec![("10-a.conflist", plugin(r#"{"Type":"bridge"}"#))],
        ),
        case(
            "the name twice",
            Refuses("duplicate field"),
            vec![("10-a.conflist", keyed("a", r#""name":"z""#))],
        ),
        case(
            "very deep",
            Refuses("recursion limit"),
            vec![
                (
                    "10-a.conflist",
                    keyed("a", &format!(r#""x":{}{}"#, "[".repeat(300), "]".repeat(300))),
                ),
                ("20-b.conflist", list("b", &["ptp"])),
            ],
        )
        .unreadable(),
        case(
            "half a surrogate pair",
            Refuses("10-a.conflist cannot take podgate"),
            vec![
                ("10-a.conflist", keyed("a", r#""x":"\ud800""#)),
                ("20-b.conflist", list("b", &["ptp"])),
            ],
        )
        .unreadable(),
    ]
}

fn versions() -> Vec<Case> {
    let one = |name, outcome, versions: &str| {
        case(name, outcome, vec![("10-a.conflist", versioned("a", versions))])
    };
    let only_new = "write one of these as cniVersion too";
    vec![
        one("none", Refuses("its cniVersion is 0.1.0"), r#""x":1"#),
        one("0.2.0", Refuses("its cniVersion is 0.2.0"), r#""cniVersion":"0.2.0""#),
        one("1.1.0", Gated, r#""cniVersion":"1.1.0""#),
        one("2.0.0", Refuses("its cniVersion is 2.0.0"), r#""cniVersion":"2.0.0""#),
        one(
            "several with one",
            Gated,
            r#""cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","9.9.9"]"#,
        ),
        one("several without one", Refuses(only_new), r#""cniVersions":["0.4.0","1.0.0"]"#),
        one(
            "several that nobody knows",
            Refuses("its cniVersion is 0.1.0"),
            r#""cniVersions":["7.0.0","9.9.9"]"#,
        ),
        one(
            "several that are older",
            Refuses("its cniVersion is 0.2.0"),
            r#""cniVersions":["0.2.0","0.1.0"]"#,
        ),
        one("none of several", Refuses("its cniVersion is 0.1.0"), r#""cniVersions":[]"#),
        one("several of one part", Gated, r#""cniVersion":"1.0.0","cniVersions":["0.4"]"#),
        one("one twice", Gated, r#""cniVersion":"1.0.0","cniVersions":["1.0.0","1.0.0"]"#),
        one(
            "one in two ways",
            Refuses("in two ways"),
            r#""cniVersion":"1.0.0","cniVersions":["1"]"#,
        )
        .unreadable(),
        one(
            "several that are no list",
            Refuses("its cniVersions are"),
            r#""cniVersion":"1.0.0","cniVersions":"1.0.0""#,
        ),
        one(
            "several that are no versions",
            Refuses("no version"),
            r#""cniVersion":"1.0.0","cniVersions":["1.x"]"#,
        ),
        one(
            "several that are numbers",
            Refuses("no version"),
            r#""cniVersion":"1.0.0","cniVersions":[1]"#,
        ),
    ]
}

fn folders() -> Vec<Case> {
    let a = |kinds: &[&str]| ("10-a.conflist", list("a", kinds));
    let only = || ("10-a.conflist", r#"{"cniVersion":"1.0.0","name":"a"}"#.to_owned());
    let other = || ("87-b.conflist", list("b", &["ptp"]));
    let conf = |kind: &str| Put::Text(format!(r#"{{"cniVersion":"1.0.0","type":"{kind}"}}"#));
    let broken = "libcni 1.3 cannot load plugins from the directory \"a\" beside it";
    let beside = "libcni 1.3 runs the plugins in the directory \"a\"";
    vec![
        case("plugins beside a list", Refuses(beside), vec![a(&["bridge"]), other()])
            .with("a/50-bandwidth.conf", conf("bandwidth")),
        case("plugins beside, none in the list", Refuses(beside), vec![only(), other()])
            .with("a/10-bridge.conf", conf("bridge")),
        case("podgate itself beside", Refuses(beside), vec![a(&["bridge"])])
            .with("a/99-podgate.conf", conf("podgate")),
        case("an unreadable one beside", Refuses(broken), vec![a(&["bridge"]), other()])
            .with("a/10-l.conf", Put::Link("/nonexistent/elsewhere")),
        case("an invalid one beside", Refuses(broken), vec![a(&["bridge"]), other()])
            .with("a/10-l.conf", Put::Text("{".into())),
        case("an empty directory beside", Gated, vec![a(&["bridge"]), other()]).with("a", Put::Dir),
        case("an empty directory, no plugins", Gated, vec![only(), other()]).with("a", Put::Dir),
        case("other files beside", Gated, vec![a(&["bridge"]), other()])
            .with("a/50-x.conflist", conf("bandwidth"))
            .with("a/50-x.json", conf("bandwidth")),
        case("a directory in it", Gated, vec![a(&["bridge"])]).with("a/x.conf", Put::Dir),
        case("a file of the network's name", Refuses(broken), vec![a(&["bridge"]), other()])
            .with("a", Put::Text("x".into())),
        case(
            "only what is inlined",
            Gated,
            vec![("10-a.conflist", keyed("a", r#""loadOnlyInlinedPlugins":true"#))],
        )
        .with("a/50-bandwidth.conf", conf("bandwidth")),
        case(
            "only what is inlined, which is nothing",
            Gated,
            vec![
                (
                    "10-a.conflist",
                    r#"{"cniVersion":"1.0.0","name":"a","loadOnlyInlinedPlugins":true}"#.to_owned(),
                ),
                other(),
            ],
        )
        .with("a/50-bandwidth.conf", conf("bandwidth")),
        case("beside a single one", Refuses(beside), vec![("10-a.conf", single("a", "bridge"))])
            .with("a/50-bandwidth.conf", conf("bandwidth")),
        case("a name that leads up", Gated, vec![("10-a.conflist", list("../x", &["bridge"]))]),
        case(
            "a name that leads back",
            Refuses("libcni 1.3 runs the plugins in"),
            vec![("10-a.conflist", list("a/..", &["bridge"])), ("20-b.conf", single("b", "ptp"))],
        )
        .with("a", Put::Dir),
    ]
}

fn passed_over() -> Vec<Case> {
    let first = |name, outcome, kinds: &[&str]| {
        let packaged = list("crio", &["bridge", "portmap"]);
        let files = vec![("10-a.conflist", list("a", kinds)), ("200-crio.conflist", packaged)];
        case(name, outcome, files)
    };
    vec![
        first("a plugin is missing", Gated, &["bridge", "missing"]),
        first("a plugin is old", Gated, &["bridge", "old"]),
        first("a plugin fails", Gated, &["fails"]),
        first("a plugin talks nonsense", Gated, &["nonsense"]),
        first("a plugin names no version", Gated, &["versionless"]),
        first("a plugin's name is a path", Gated, &["../bin/bridge"]),
        first("a plugin is a directory", Gated, &["folder"]),
        first("missing and old", Gated, &["missing", "old"]),
        case(
            "the only one has a missing plugin",
            Gated,
            vec![("10-a.conflist", list("a", &["missing"]))],
        ),
        case(
            "missing, then old, then good",
            Gated,
            vec![
                ("10-a.conflist", list("a", &["missing"])),
                ("20-b.conflist", list("b", &["old"])),
                ("30-c.conflist", list("c", &["bridge"])),
                ("40-d.conflist", list("d", &["bridge"])),
            ],
        ),
        case(
            "missing, then what cannot be gated",
            Refuses("20-b.conflist cannot take podgate"),
            vec![
                ("10-a.conflist", list("a", &["missing"])),
                ("20-b.conflist", versioned("b", r#""cniVersion":"0.2.0""#)),
            ],
        ),
        case(
            "missing, then loopback",
            Gated,
            vec![
                ("10-a.conflist", list("a", &["missing"])),
                ("99-lo.conflist", list("lo", &["loopback"])),
            ],
        ),
    ]
}

/// The whole table.
pub(crate) fn all() -> Vec<Case> {
    [orders(), invalid(), versions(), folders(), passed_over()].into_iter().flatten().collect()
}
