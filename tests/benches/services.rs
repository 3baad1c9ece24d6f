//! What a service costs real connections: podgate's translation at the gate against rules such as kube-proxy writes in
//! its iptables mode, in one run between the same two namespaces. Needs root.
//!
//! cargo bench --profile dev -p podgate-tests --bench services
//!
//! Everything is routed by the node, as packets to services are, and as kube-proxy needs it on the way back. Both ends run
//! on one CPU and rates are per second of its time: what else the machine does then matters little.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement that cannot go on fails"
)]

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Measurement, Trial};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::services::{Backend, Frontend};
use podgate_testkit::net::Net;
use podgate_testkit::sandbox;
use podgate_tests::netlab::{Lab, Pod, Policy};

/// How long each number is taken for, in each round.
const TIME: Duration = Duration::from_millis(250);
const ROUNDS: usize = 9;
const ENDPOINTS: u8 = 10;
/// How long the rules' list is; the service in its middle is measured.
const SERVICES: [u16; 3] = [1, 10, 100];
const SERVICE_PORT: u16 = 80;
const PORT: u16 = 8080;

fn main() -> ExitCode {
    sandbox::run(|| vec![Trial::bench("services against iptables rules", |_| Ok(Some(run())))])
}

/// Where service number `n` listens.
fn service(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(10, 96, high, low)
}

fn endpoint(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 100 + n)
}

/// Answers whoever connects: `c` once, `r` every byte, `t` when all has come.
fn serve(net: &Net) {
    let listener = net.run(|| TcpListener::bind(("0.0.0.0", PORT)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut kind = [0];
            if stream.read_exact(&mut kind).is_err() {
                continue;
            }
            if kind == *b"c" {
                // closed by the other side's reset
                let _ = stream.write_all(&kind);
                continue;
            }
            std::thread::spawn(move || {
                let mut block = vec![0; 1 << 18];
                while let Ok(length @ 1..) = stream.read(&mut block) {
                    if kind == *b"r" && stream.write_all(&block[..length]).is_err() {
                        return;
                    }
                }
                let _ = stream.write_all(b".");
            });
        }
    });
}

/// Seconds of CPU time that this process has had: both ends, and the network between them, which works on the sender's
/// time.
fn cpu_time() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Requests, connections and megabytes a second.
#[derive(Clone, Copy, Debug, Default)]
struct Rates([f64; 3]);

fn measure(client: &Net, to: SocketAddr) -> Rates {
    client.run(|| {
        let connect = |kind: &[u8]| {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))
                .unwrap_or_else(|e| panic!("connect to {to}: {e}"));
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(kind).unwrap();
            stream
        };
        let rate = |mut once: Box<dyn FnMut() -> f64 + '_>| {
            let (begun, before) = (Instant::now(), cpu_time());
            let mut done = 0.0;
            while begun.elapsed() < TIME {
                done += once();
            }
            done / (cpu_time() - before)
        };
        let mut talk = connect(b"r");
        let requests = rate(Box::new(|| {
            let mut byte = [7];
            talk.write_all(&byte).unwrap();
            talk.read_exact(&mut byte).unwrap();
            1.0
        }));
        let connections = rate(Box::new(|| {
            let mut stream = connect(b"c");
            stream.read_exact(&mut [0]).unwrap();
            let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, sockopt::Linger, &reset).unwrap();
            1.0
        }));
        let mut copy = connect(b"t");
        let block = vec![0x5a; 1 << 18];
        let megabytes = rate(Box::new(|| {
            copy.write_all(&block).unwrap();
            block.len() as f64 / 1e6
        }));
        copy.shutdown(std::net::Shutdown::Write).unwrap();
        copy.read_exact(&mut [0]).unwrap();
        Rates([requests, connections, megabytes])
    })
}

/// The node's own rules, as kube-proxy writes them: a list of services, a die per endpoint, one translation.
fn rules(services: u16) -> String {
    let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
    for n in 1..=services {
        writeln!(text, ":KUBE-SVC-{n} - [0:0]").unwrap();
        for e in 0..ENDPOINTS {
            writeln!(text, ":KUBE-SEP-{n}-{e} - [0:0]").unwrap();
        }
    }
    text += "-A PREROUTING -m comment --comment services -j KUBE-SERVICES\n";
    for n in 1..=services {
        let vip = service(n);
        writeln!(
            text,
            "-A KUBE-SERVICES -d {vip}/32 -p tcp -m comment --comment s{n} -m tcp --dport {SERVICE_PORT} -j KUBE-SVC-{n}"
        )
        .unwrap();
        for e in 0..ENDPOINTS {
            let die = match ENDPOINTS - e {
                1 => String::new(),
                left => format!(
                    "-m statistic --mode random --probability {:.8} ",
                    1.0 / f64::from(left)
                ),
            };
            writeln!(text, "-A KUBE-SVC-{n} {die}-j KUBE-SEP-{n}-{e}").unwrap();
            let to = endpoint(e);
            writeln!(
                text,
                "-A KUBE-SEP-{n}-{e} -p tcp -m tcp -j DNAT --to-destination {to}:{PORT}"
            )
            .unwrap();
        }
    }
    text + "COMMIT\n"
}

fn feed(net: &Net, program: &str, arguments: &[&str], text: &str) {
    let output = net.run(|| {
        let mut child = Command::new(program)
            .args(arguments)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("run {program}: {e} (Debian: apt-get install iptables)"));
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// With no other way to its neighbours than through the node.
fn route_through_node(lab: &Lab, pod: &Pod) {
    pod.net.ip(&format!(
        "address del {0}/24 dev eth0\naddress add {0}/32 dev eth0\nroute add 10.0.0.1 dev eth0\n\
         route add default via 10.0.0.1",
        pod.v4
    ));
    for which in ["all", "default", "br0"] {
        lab.node.sysctl(&format!("ipv4/conf/{which}/send_redirects"), "0");
    }
}

/// One row of the table.
struct Way {
    name: String,
    gated: bool,
    rules: Option<u16>,
    through_service: bool,
}

/// Prints the table; a request through podgate's service is the measurement.
fn run() -> Measurement {
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let lab = Lab::new(AttachMode::Clsact);
    let bare = lab.pod();
    let gated = lab.gated(&Policy::open());
    let server = lab.pod();
    for pod in [&bare, &gated, &server] {
        route_through_node(&lab, pod);
    }
    for e in 0..ENDPOINTS {
        server.net.ip(&format!("address add {}/32 dev eth0", endpoint(e)));
    }
    serve(&server.net);
    let most = SERVICES[SERVICES.len() - 1];
    for n in 1..=most {
        let frontend = Frontend { address: service(n).into(), port: SERVICE_PORT, protocol: 6 };
        let at = |e| Backend { address: endpoint(e).into(), port: PORT };
        let endpoints: Vec<_> = (0..ENDPOINTS).map(at).collect();
        lab.serve(n.into(), frontend, &endpoints);
    }

    let way = |name: &str, gated, rules, through_service| Way {
        name: name.into(),
        gated,
        rules,
        through_service,
    };
    let mut ways = vec![
        way("no gate, no rules, straight to the endpoint", false, None, false),
        way("gate, straight to the endpoint", true, None, false),
        way("gate, through a service of 100", true, None, true),
    ];
    for services in SERVICES {
        let name = format!("iptables rules, through a service of {services}");
        ways.push(way(&name, false, Some(services), true));
    }
    ways.push(way("gate, through a service of 100, beside rules", true, Some(most), true));

    // Round by round, so that a slow moment of the machine meets all alike; the median counts.
    let mut taken = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for (way, taken) in ways.iter().zip(&mut taken) {
            if let Some(services) = way.rules {
                feed(&lab.node, "iptables-restore", &[], &rules(services));
            }
            let to: SocketAddr = if way.through_service {
                let last = way.rules.unwrap_or(most);
                (service(last / 2 + 1), SERVICE_PORT).into()
            } else {
                (IpAddr::from(endpoint(0)), PORT).into()
            };
            let client = if way.gated { &gated } else { &bare };
            taken.push(measure(&client.net, to));
            if way.rules.is_some() {
                feed(&lab.node, "nft", &["flush", "ruleset"], "");
            }
        }
    }
    let median = |rates: &[Rates], of: usize| {
        let mut sorted: Vec<_> = rates.iter().map(|rates| rates.0[of]).collect();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    println!("{:52} requests          connections       MB, per second of CPU time", "");
    let first: Vec<f64> = (0..3).map(|of| median(&taken[0], of)).collect();
    for (way, rates) in ways.iter().zip(&taken) {
        let mut line = format!("{:52}", way.name);
        for (of, first) in first.iter().enumerate() {
            let rate = median(rates, of);
            write!(line, " {rate:8.0} x{:<6.2}", rate / first).unwrap();
        }
        println!("{line}");
    }
    let podgate: Vec<f64> = (0..3).map(|of| median(&taken[2], of)).collect();
    for (way, rates) in ways.iter().zip(&taken).filter(|(way, _)| way.rules.is_some() && !way.gated)
    {
        let ratio = |of: usize| podgate[of] / median(rates, of);
        println!(
            "podgate / {}: requests {:.2}, connections {:.2}, throughput {:.2}",
            way.name,
            ratio(0),
            ratio(1),
            ratio(2)
        );
    }
    Measurement { avg: (1e9 / podgate[0]) as u64, variance: 0 }
}
