//! SIGKILL at random moments while policies change: what both states allow is never refused, what both
//! refuse is never allowed, and the next policyd finds its way from wherever the last one was stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use podgate_testkit::wait::eventually;

use crate::node::{on_a_node, pod, policy};

const ROUNDS: u64 = 12;

#[test]
fn killed_at_random_it_neither_opens_nor_closes_anything_it_should_not() {
    on_a_node(|node| {
        let pods = [
            pod("shop/web", "app: web", "10.0.0.1"),
            pod("shop/api", "app: api", "10.0.0.2"),
            pod("shop/other", "app: other", "10.0.0.3"),
        ];
        node.manifest("pods.yaml", &pods.concat());
        // 80 from web is always allowed; 443 from web and 81 from other come and go; the rest never
        let always = policy("shop/always", "app: api", "app: web", 80);
        let more = policy("shop/more", "app: api", "app: web", 443);
        let other = policy("shop/other", "app: api", "app: other", 81);
        let states = [
            always.clone(),
            format!("{always}{more}"),
            format!("{always}{more}{other}"),
            format!("{always}{other}"),
        ];
        node.manifest("policies.yaml", &states[0]);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let mut policyd = node.policyd();
        node.ready();

        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut looks = 0;
                while !done.load(Ordering::Relaxed) {
                    // the maps are read in several steps: a finding counts if it is found again
                    let wrong = || {
                        !node.allows(&api, "10.0.0.1", 6, 80)
                            || node.allows(&api, "10.0.0.3", 6, 80)
                            || node.allows(&api, "10.0.0.9", 6, 443)
                            || node.allows(&api, "10.0.0.1", 17, 80)
                    };
                    if wrong() && wrong() && wrong() {
                        return Err(format!("after {looks} looks"));
                    }
                    looks += 1;
                }
                Ok(looks)
            });
            let mut random = 0x2545_f491_4f6c_dd1d_u64;
            for _ in 0..ROUNDS {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                node.manifest("policies.yaml", &states[(random % 4) as usize]);
                // from before the file is read to after the commit
                std::thread::sleep(Duration::from_millis(random % 90));
                policyd.kill();
                policyd = node.policyd();
            }
            let settled = Instant::now();
            node.manifest("policies.yaml", &states[3]);
            node.ready();
            eventually("the last state is in force", || {
                let right = node.allows(&api, "10.0.0.1", 6, 80)
                    && !node.allows(&api, "10.0.0.1", 6, 443)
                    && node.allows(&api, "10.0.0.3", 6, 81);
                right.then_some(())
            });
            eprintln!("settled after {:?}", settled.elapsed());
            done.store(true, Ordering::Relaxed);
            let looks = watch.join().unwrap().expect("a verdict that neither state gives");
            assert!(looks > 0);
        });
    });
}
