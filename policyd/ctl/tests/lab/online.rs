//! The commands that ask policyd, inside a standing lab.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Standing, err, out};

impl Standing {
    fn podgatectl(&self, arguments: &[&str]) -> Output {
        self.inside(env!("CARGO_BIN_EXE_podgatectl")).args(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.podgatectl(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", err(&output));
        out(&output)
    }

    /// One datagram from a pod to ADDRESS/PORT; what comes of it is not the point.
    fn ping(&self, pod: &str, to: &str) {
        let status = self
            .inside("nsenter")
            .arg(format!("--net=/run/netns/{pod}"))
            .args(["bash", "-c", &format!("echo > /dev/udp/{to}")])
            .status()
            .unwrap();
        assert!(status.success());
    }
}

#[test]
fn asking_and_steering() {
    let lab = Standing::start("three-tier");

    let status = lab.says(&["status"]);
    assert!(status.contains("ready") && status.contains("5 enforced"), "{status}");
    let status = serde_json::from_str::<Value>(&lab.says(&["status", "-o", "json"])).unwrap();
    assert_eq!(status["endpoints"]["enforced"], 5);

    let endpoints = lab.says(&["endpoints", "--namespace", "shop"]);
    assert!(endpoints.contains("shop/db") && endpoints.contains("isolated by 3"), "{endpoints}");
    assert!(!endpoints.contains("other/batch"), "{endpoints}");

    let rules = lab.says(&["rules", "shop/db"]);
    assert!(rules.contains("ingress: isolated by shop/db, shop/deny-all"), "{rules}");
    assert!(rules.contains("TCP 5432") && rules.contains("shop/db ingress[0]"), "{rules}");
    assert_eq!(lab.podgatectl(&["rules", "shop/nobody"]).status.code(), Some(2));

    let explain = ["explain", "--from", "shop/web", "--to", "shop/db", "--port", "5432/TCP"];
    let text = lab.says(&explain);
    assert!(text.contains("shop/web -> shop/db on 5432/TCP: deny"), "{text}");
    assert_eq!(lab.podgatectl(&[&explain[..], &["--exit-code"]].concat()).status.code(), Some(1));

    let policies = lab.says(&["policies"]);
    assert!(policies.contains("shop/deny-all"), "{policies}");
    let top = lab.says(&["top"]);
    assert!(top.contains("shop/api ingress[0]"), "{top}");
}

#[test]
fn services_are_listed_explained_and_seen() {
    let lab = Standing::start("services");
    let status = lab.says(&["status"]);
    assert!(
        status.contains("8 addresses and ports translated to 14 endpoints, 0 degraded"),
        "{status}"
    );
    let listed = lab.says(&["services"]);
    assert!(listed.contains("infra/dns") && listed.contains("10.96.0.10:53/UDP"), "{listed}");
    assert!(listed.contains("infra/dns-2 (10.9.0.12:5353)"), "{listed}");
    let noted = listed.lines().find(|line| line.contains("shop/api")).unwrap();
    assert!(
        noted.contains("trafficDistribution PreferClose: the hints in the slices decide"),
        "{listed}"
    );
    let listed = lab.says(&["services", "--namespace", "shop", "-o", "json"]);
    let listed = serde_json::from_str::<Value>(&listed).unwrap();
    assert!(
        listed.as_array().unwrap().iter().all(|item| item["state"] == "translated"),
        "{listed}"
    );

    let explain = ["explain", "--from", "shop/web", "--to", "svc:shop/store", "--port", "5432"];
    let text = lab.says(&explain);
    assert!(text.contains("shop/web -> svc:shop/store on 5432/TCP: mixed"), "{text}");
    assert!(text.contains("-> 10.9.0.42:5432: denied at shop/store-archive"), "{text}");
    assert_eq!(lab.podgatectl(&[&explain[..], &["--exit-code"]].concat()).status.code(), Some(1));

    // cron may not ask for names: its denials name the endpoint and the service
    let mut observe = lab
        .inside(env!("CARGO_BIN_EXE_podgatectl"))
        .args(["observe", "--denied", "--of", "svc:infra/dns", "-n", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = send_until_read(&lab, &mut observe, ("shop.cron", "10.96.0.10/53"));
    assert!(observe.wait().unwrap().success());
    assert!(line.contains("deny") && line.contains("shop/cron:"), "{line}");
    assert!(line.contains("-> infra/dns-") && line.contains(":5353"), "{line}");
    assert!(line.contains("through svc:infra/dns 10.96.0.10:53"), "{line}");
}

#[test]
fn local_policies_come_and_go() {
    let lab = Standing::start("three-tier");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("local.yaml");
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {namespace: other, name: closed}\nspec: {podSelector: {}}\n";
    fs::write(&file, policy).unwrap();
    let file = file.display().to_string();
    let explain =
        ["explain", "--from", "shop/web", "--to", "other/batch", "--port", "80", "-o", "json"];
    let isolating = |lab: &Standing| {
        let answer = serde_json::from_str::<Value>(&lab.says(&explain)).unwrap();
        answer["gates"].as_array().unwrap().iter().any(|gate| {
            gate["pod"] == "other/batch" && gate["isolating"] == serde_json::json!(["other/closed"])
        })
    };

    assert!(!isolating(&lab));
    assert!(lab.says(&["apply", "-f", &file]).contains("other/closed created"));
    assert!(isolating(&lab));
    assert!(lab.says(&["apply", "-f", &file]).contains("other/closed replaced"));
    assert!(lab.says(&["delete", "-f", &file]).contains("other/closed deleted"));
    assert!(!isolating(&lab));
    let again = lab.podgatectl(&["delete", "other/closed"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(err(&again).contains("there is no local policy"), "{}", err(&again));

    fs::write(&file, policy.replace("podSelector", "podSelektor")).unwrap();
    let refused = lab.podgatectl(&["apply", "-f", &file]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(err(&refused).contains("podSelektor"), "{}", err(&refused));
}

#[test]
fn verdicts_are_seen_as_they_fall() {
    let lab = Standing::start("cidr-except");
    // intern is not isolated; crawler may not talk to it
    let mut observe = lab
        .inside(env!("CARGO_BIN_EXE_podgatectl"))
        .args(["observe", "--denied", "--of", "net/crawler", "-n", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = send_until_read(&lab, &mut observe, ("net.crawler", "10.20.0.6/7777"));
    assert!(observe.wait().unwrap().success());
    assert!(line.contains("deny") && line.contains("net/crawler:"), "{line}");
    assert!(line.contains("net/intern:7777") && line.contains("egress"), "{line}");

    assert!(lab.says(&["enforcement", "audit"]).contains("enforcement is audit"));
    assert!(lab.says(&["status"]).contains("audit"));
    assert!(lab.says(&["enforcement", "on"]).contains("enforcement is on"));
}

/// Sends denied packets until the first verdict is read, which is returned: when the listener is ready nobody can tell.
fn send_until_read(lab: &Standing, observe: &mut Child, (pod, to): (&str, &str)) -> String {
    let mut lines = BufReader::new(observe.stdout.take().unwrap());
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        // nobody waits for it any more where the test has failed
        let _ = tell.send(line);
    });
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        lab.ping(pod, to);
        match told.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => return line,
            Err(error) => assert!(Instant::now() < end, "no verdict was seen: {error}"),
        }
    }
}
