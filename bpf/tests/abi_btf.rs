//! The layouts that Rust reads are the layouts that the programs write: `src/abi.rs` against the object's BTF
//! and the text of `c/abi.h`, and both against the snapshot of their version.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use libbpf_rs::ObjectBuilder;
use libbpf_rs::btf::types::{Array, Enum, Int, MemberAttr, Struct};
use libbpf_rs::btf::{Btf, HasSize, TypeId};
use podgate_bpf::abi::*;
use zerocopy::FromZeros;

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podgate.bpf.o"));
static ABI: &str = include_str!("../c/abi.h");
/// With what is about limits.
static HEADER: &str = concat!(include_str!("../c/abi.h"), include_str!("../c/abi_limits.h"));

/// Name, offset, size.
type Field = (String, usize, usize);

#[derive(Debug, PartialEq, Eq)]
struct Layout {
    name: String,
    size: usize,
    fields: Vec<Field>,
}

/// A mirror's layout. Naming every field is checked by the compiler: a new one does not build until it is here.
macro_rules! layout {
    ($rust:ident = $c:literal { $($field:ident),* $(,)? }) => {{
        let value = $rust::new_zeroed();
        let $rust { $($field: _),* } = value;
        Layout {
            name: $c.to_owned(),
            size: size_of::<$rust>(),
            fields: vec![
                $((stringify!($field).to_owned(), offset_of!($rust, $field), size_of_val(&value.$field)),)*
            ],
        }
    }};
}

fn mirrors() -> Vec<Layout> {
    vec![
        layout!(Counter = "pg_counter" { packets, bytes }),
        layout!(Addr = "pg_addr" { bytes }),
        layout!(EndpointRecord = "pg_endpoint" {
            owner, startup, anti_spoofing, addr4_count, addr6_count, addr4, addr6, mac, pad, netns_cookie,
            container_id, interface, host_interface, network, pod_namespace, pod_name, pod_uid, netns,
        }),
        layout!(PolicyKey = "pg_policy_key" { prefixlen, owner, class, direction, protocol, port }),
        layout!(PolicyValue = "pg_policy_value" { rule, verdict, flags, pad, hits }),
        layout!(Peer4Key = "pg_peer4_key" { addr }),
        layout!(Peer6Key = "pg_peer6_key" { addr }),
        layout!(Net4Key = "pg_net4_key" { prefixlen, addr }),
        layout!(Net6Key = "pg_net6_key" { prefixlen, addr }),
        layout!(ClassValue = "pg_class" { class }),
        layout!(NodeKey = "pg_node_key" { prefixlen, addr }),
        layout!(NodeAddr = "pg_node_addr" { pad }),
        layout!(Flow4Key = "pg_flow4_key" {
            ifindex, pod, peer, pod_port, peer_port, protocol, kind, pad,
        }),
        layout!(Flow6Key = "pg_flow6_key" {
            ifindex, pod, peer, pod_port, peer_port, protocol, kind, pad,
        }),
        layout!(Flow = "pg_flow" {
            epoch, expires, owner, rule, direction, state, flags, traffic_rule, other, other_port, own_port,
            direct_port, counted, scope,
        }),
        layout!(FlowSlotKey = "pg_flow_slot_key" { owner, index }),
        layout!(Ring = "pg_ring" { high, hand, last, steps, evicted }),
        layout!(Share = "pg_share" {
            lock, owner, rings, events_held, event_tokens, event_second, cut_evicted, answers,
        }),
        layout!(FlowUse = "pg_flow_use" { slots }),
        layout!(FragKey = "pg_frag_key" { ifindex, id, source, destination, protocol, direction, pad }),
        layout!(Frag = "pg_frag" {
            expires, pod_port, peer_port, kind, verdict, protocol, flags, other, other_port, own_port,
            epoch, refused, origin, pad,
        }),
        layout!(ExpectKey = "pg_expect_key" { ifindex, peer, protocol, kind, pad }),
        layout!(Expect = "pg_expect" { owner, expires, service }),
        layout!(Service4Key = "pg_service4_key" { addr, port, protocol, pad }),
        layout!(Service6Key = "pg_service6_key" { addr, port, protocol, pad }),
        layout!(ServiceValue = "pg_service" { id, count, affinity_seconds, affinity }),
        layout!(SlotKey = "pg_slot_key" { service, slot }),
        layout!(BackendRecord = "pg_backend" { addr, port, pad }),
        layout!(BackendKey = "pg_backend_key" { service, addr, port, pad }),
        layout!(BackendValue = "pg_backend_value" { state }),
        layout!(AffinityKey = "pg_affinity_key" { service, client }),
        layout!(AffinityValue = "pg_affinity" { addr, port, pad, seen }),
        layout!(ControlRecord = "pg_control" {
            epoch, mode, tell_allowed, events_per_second, build,
        }),
        layout!(EventRecord = "pg_event" {
            time, ifindex, owner, rule, peer_class, length, pod, peer, pod_port, peer_port, direction,
            protocol, reason, verdict, family, flags, service_port, service,
        }),
        layout!(LimitsKey = "pg_limits_key" { owner, rule }),
        layout!(Rate = "pg_rate" { cost, burst }),
        layout!(LimitsRecord = "pg_limits" {
            rates, origins, open_most, mark, mark_mask, priority, dscp, flags, pad,
        }),
        layout!(Meter = "pg_meter" {
            lock, pad, open, next, next_sparse, refused_at, departs, passed, refused, marked, delayed,
        }),
        layout!(ScopeValue = "pg_scope" { kind }),
        layout!(AccountKey = "pg_account_key" { owner, scope, direction, pad }),
        layout!(Account = "pg_account" { packets, bytes, flows }),
    ]
}

/// Declared in the header, and nobody's but the programs'.
const PRIVATE: &[&str] = &["pg_limiter"];

fn btf() -> Btf<'static> {
    Btf::from_raw("podgate", OBJECT).expect("parse the object").expect("the object has BTF")
}

/// Bytes of a type.
fn size(btf: &Btf<'_>, id: TypeId) -> usize {
    let ty =
        btf.type_by_id::<libbpf_rs::btf::BtfType<'_>>(id).expect("a type").skip_mods_and_typedefs();
    let id = ty.type_id();
    if let Some(array) = btf.type_by_id::<Array<'_>>(id) {
        return array.capacity() * size(btf, array.contained_type().type_id());
    }
    None.or_else(|| btf.type_by_id::<Int<'_>>(id).map(|t| t.size()))
        .or_else(|| btf.type_by_id::<Struct<'_>>(id).map(|t| t.size()))
        .or_else(|| btf.type_by_id::<Enum<'_>>(id).map(|t| t.size()))
        .unwrap_or_else(|| panic!("a field of kind {:?}: teach this test its size", ty.kind()))
}

/// The layout of a C struct, as the compiler of the programs saw it.
fn compiled(btf: &Btf<'_>, name: &str) -> Layout {
    let found: Struct<'_> = btf.type_by_name(name).unwrap_or_else(|| {
        panic!("struct {name} is not in the object's BTF: no map or global has it")
    });
    let fields = found.iter().map(|member| {
        let MemberAttr::Normal { offset } = member.attr else { panic!("{name} has a bit field") };
        let field = member.name.expect("a named field").to_string_lossy().into_owned();
        (field, offset as usize / 8, size(btf, member.ty))
    });
    Layout { name: name.to_owned(), size: found.size(), fields: fields.collect() }
}

#[test]
fn every_mirror_has_the_bytes_of_its_struct() {
    let btf = btf();
    for mirror in mirrors() {
        assert_eq!(mirror, compiled(&btf, &mirror.name));
    }
}

#[test]
fn every_struct_of_the_header_has_a_mirror() {
    let mirrored: BTreeSet<String> = mirrors().into_iter().map(|layout| layout.name).collect();
    let declared =
        HEADER.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"));
    let declared: BTreeSet<String> =
        declared.filter(|name| !PRIVATE.contains(name)).map(str::to_owned).collect();
    assert_eq!(mirrored, declared);
}

/// The enumerators of the header, by enum: name and number.
fn enums() -> BTreeMap<String, Vec<(String, u32)>> {
    let mut enums: BTreeMap<String, Vec<(String, u32)>> = BTreeMap::new();
    let mut current = None;
    for line in HEADER.lines() {
        if let Some(name) = line.strip_prefix("enum ").and_then(|rest| rest.strip_suffix(" {")) {
            current = Some(name.to_owned());
        } else if line.starts_with('}') {
            current = None;
        } else if let Some(of) = &current
            && let Some((name, rest)) = line.trim().split_once(" = ")
        {
            let number = rest.split([',', ' ', '\t']).next().expect("split gives one at least");
            let number = number.parse().unwrap_or_else(|e| panic!("{name} = {number:?}: {e}"));
            enums.entry(of.clone()).or_default().push((name.to_owned(), number));
        }
    }
    enums
}

/// `PG_DENY_NOT_IP` without `PG_` as Rust spells it: `DenyNotIp`.
fn camel(name: &str) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at(1);
        format!("{first}{}", rest.to_lowercase())
    };
    name.split('_').map(word).collect()
}

#[test]
fn every_enum_has_the_numbers_of_the_header() {
    fn of<T: std::fmt::Debug + Copy>(all: &[T], number: impl Fn(T) -> u32) -> Vec<(String, u32)> {
        all.iter().map(|&variant| (format!("{variant:?}"), number(variant))).collect()
    }
    let enums = enums();
    // marks, not values
    let marks = [
        "PG_DENY_FIRST",
        "PG_REASON_UNUSED",
        "PG_REASON_COUNT",
        "PG_STAT_COUNT",
        "PG_LIMIT_COUNT",
        "PG_SCOPE_COUNT",
    ];
    let declared = |name: &str, prefix: &str| -> Vec<(String, u32)> {
        let values =
            enums.get(name).unwrap_or_else(|| panic!("no enum {name} in the header")).iter();
        let strip = |text: &str| {
            text.strip_prefix(prefix)
                .unwrap_or_else(|| panic!("{text} without {prefix}"))
                .to_owned()
        };
        values
            .filter(|(value, _)| !marks.contains(&value.as_str()))
            .map(|(value, number)| (camel(&strip(value)), *number))
            .collect()
    };
    assert_eq!(of(Direction::ALL, |v| v as u32), declared("pg_direction", "PG_"));
    assert_eq!(of(Startup::ALL, |v| v as u32), declared("pg_startup", "PG_STARTUP_"));
    assert_eq!(of(Mode::ALL, |v| v as u32), declared("pg_mode", "PG_MODE_"));
    assert_eq!(of(Reason::ALL, |v| v as u32), declared("pg_reason", "PG_"));
    assert_eq!(of(Stat::ALL, |v| v as u32), declared("pg_stat", "PG_STAT_"));
    assert_eq!(of(Verdict::ALL, |v| v as u32), declared("pg_verdict", "PG_VERDICT_"));
    assert_eq!(of(PolicyFlag::ALL, |v| v as u32), declared("pg_policy_flag", "PG_POLICY_"));
    assert_eq!(of(EventFlag::ALL, |v| v as u32), declared("pg_event_flag", "PG_EVENT_"));
    assert_eq!(of(FlowState::ALL, |v| v as u32), declared("pg_flow_state", "PG_FLOW_"));
    assert_eq!(of(Limit::ALL, |v| v as u32), declared("pg_limit", "PG_LIMIT_"));
    assert_eq!(of(LimitsFlag::ALL, |v| v as u32), declared("pg_limits_flag", "PG_LIMITS_"));
    assert_eq!(of(Scope::ALL, |v| v as u32), declared("pg_scope_kind", "PG_SCOPE_"));
    assert_eq!(of(BackendState::ALL, |v| v as u32), declared("pg_backend_state", "PG_BACKEND_"));
}

#[test]
fn every_constant_is_that_of_the_header() {
    let numbers: BTreeMap<String, u32> = enums().into_values().flatten().chain(defines()).collect();
    for (name, ours) in [
        ("PG_ABI_VERSION", ABI_VERSION),
        ("PG_SOME_PORT", SOME_PORT.into()),
        ("PG_CLASS_ANY", CLASS_ANY),
        ("PG_CLASS_SELF4", CLASS_SELF4),
        ("PG_CLASS_SELF6", CLASS_SELF6),
        ("PG_ENDPOINT_ADDRS", ENDPOINT_ADDRS as u32),
        ("PG_POLICY_PREFIX_ANY", POLICY_PREFIX_ANY),
        ("PG_POLICY_PREFIX_PROTOCOL", POLICY_PREFIX_PROTOCOL),
        ("PG_POLICY_PREFIX_PORT", POLICY_PREFIX_PORT),
        ("PG_FLOW_BY_OWN_NODE", FLOW_BY_OWN_NODE.into()),
        ("PG_FLOW_DNAT", FLOW_DNAT.into()),
        ("PG_FLOW_REVNAT", FLOW_REVNAT.into()),
        ("PG_FLOW_HAIRPIN", FLOW_HAIRPIN.into()),
        ("PG_FLOW_EXTERNAL_NAT", FLOW_EXTERNAL_NAT.into()),
        ("PG_FLOW_NO_SLOT", FLOW_NO_SLOT.into()),
        ("PG_REASON_COUNT", REASON_COUNT),
        ("PG_DENY_FIRST", DENY_FIRST.into()),
        ("PG_STAT_COUNT", STAT_COUNT),
        ("PG_LIMIT_COUNT", LIMIT_COUNT as u32),
        ("PG_RATE_COUNT", RATE_COUNT as u32),
        ("PG_RATE_SHIFT", RATE_SHIFT),
        ("PG_METER_QUEUES", METER_QUEUES as u32),
        ("PG_OPEN_UNLIMITED", OPEN_UNLIMITED),
        ("PG_TRAFFIC_RULES_MOST", TRAFFIC_RULES_MOST),
        ("PG_SCOPE_COUNT", SCOPE_COUNT.into()),
        ("PG_ORIGIN_RUNTIME", ORIGIN_RUNTIME),
    ] {
        assert_eq!(numbers.get(name), Some(&ours), "{name}");
    }
    assert!(HEADER.contains("#define PG_STAT_BASE (2 * PG_REASON_COUNT)"));
    assert_eq!(STAT_BASE, 2 * REASON_COUNT);
    assert!(HEADER.contains("#define PG_COUNTER_COUNT (PG_STAT_BASE + PG_STAT_COUNT)"));
    assert_eq!(COUNTER_COUNT, STAT_BASE + STAT_COUNT);
}

/// The header's plain numbers.
fn defines() -> impl Iterator<Item = (String, u32)> {
    HEADER.lines().filter_map(|line| {
        let mut words = line.strip_prefix("#define ")?.split_whitespace();
        let (name, number) = (words.next()?, words.next()?);
        let parsed = match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        };
        Some((name.to_owned(), parsed.ok()?))
    })
}

/// Everything that two builds must agree on to share pins.
fn contract() -> String {
    let mut text = String::new();
    let btf = btf();
    for layout in mirrors() {
        let Layout { name, size, fields } = compiled(&btf, &layout.name);
        writeln!(text, "struct {name}: {size} bytes").unwrap();
        for (field, offset, size) in fields {
            writeln!(text, "  {offset:4} +{size:<3} {field}").unwrap();
        }
    }
    for (name, values) in enums() {
        writeln!(text, "enum {name}").unwrap();
        for (value, number) in values {
            writeln!(text, "  {number:2} {value}").unwrap();
        }
    }
    let open = ObjectBuilder::default().open_memory(OBJECT).expect("open the object");
    // the compiler has them in the order of their first use
    let mut maps: Vec<String> = open
        .maps()
        .filter_map(|map| {
            let name = map.name().to_string_lossy().into_owned();
            let pinned = name != "limiter" && name != "scratch_space" && !name.contains('.');
            let (kind, key, value) = (map.map_type(), map.key_size(), map.value_size());
            pinned.then(|| format!("map {name}: {kind:?}, key {key}, value {value}"))
        })
        .collect();
    maps.sort();
    writeln!(text, "{}", maps.join("\n")).unwrap();
    text
}

/// Maps are pinned under their version: who changes a layout moves `PG_ABI_VERSION`, or two builds on one node
/// would read each other's maps wrongly.
#[test]
fn layouts_are_those_of_their_version() {
    let file =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/abi/v{ABI_VERSION}.txt"));
    let contract = contract();
    if !file.exists() && env::var_os("PODGATE_WRITE_ABI").is_some() {
        fs::write(&file, &contract).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_else(|e| {
        panic!("read {}: {e} (a new version? write it with PODGATE_WRITE_ABI=1)", file.display())
    });
    let (old, new): (Vec<_>, Vec<_>) = (committed.lines().collect(), contract.lines().collect());
    let gone: Vec<_> = old.iter().filter(|line| !new.contains(line)).collect();
    let come: Vec<_> = new.iter().filter(|line| !old.contains(line)).collect();
    assert!(
        old == new,
        "the contract changed but PG_ABI_VERSION is still {ABI_VERSION}; gone {gone:#?}, new {come:#?}\n\
         A released version: move PG_ABI_VERSION in c/abi.h and ABI_VERSION in src/abi.rs, then run this \
         with PODGATE_WRITE_ABI=1. One that nobody has installed yet: delete {} and do the same. A number of \
         pg_reason or pg_stat that was not used yet is no other layout, nor is an enumerator's new name: write its line.",
        file.display(),
    );
}

/// Compiles `abi.h` with one more struct in it. A struct is laid out where something has its type.
fn compile_header_with(extra: &str) -> Result<(), String> {
    let guard = "#pragma clang diagnostic pop";
    let (inside, end) = ABI.rsplit_once(guard).expect("the header ends its -Wpadded region");
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("guarded.c");
    let text = format!("{inside}\n{extra}\n{guard}{end}").replace("#pragma once", "");
    fs::write(&source, text).unwrap();
    let include = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let output = Command::new(&clang)
        .args(["-target", "bpf", "-g", "-O2", "-c", "-o", "/dev/null", &include])
        .arg(Path::new(&source))
        .output()
        .unwrap_or_else(|e| panic!("run {clang:?}: {e} (the build needs it too)"));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(told) }
}

#[test]
fn the_header_refuses_hidden_padding() {
    assert_eq!(compile_header_with("struct pg_tight { __u32 a; __u32 b; } pg_tight;"), Ok(()));
    let told = compile_header_with("struct pg_gap { __u8 a; __u32 b; } pg_gap;").unwrap_err();
    assert!(told.contains("padding"), "{told}");
    let told = compile_header_with("struct pg_tail { __u32 a; __u8 b; } pg_tail;").unwrap_err();
    assert!(told.contains("padding"), "{told}");
}
