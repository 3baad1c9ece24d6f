//! A cluster comes up, its pods talk, and it goes without a trace.

use anyhow::Result;
use podgate_tests::cluster::{Cluster, Options};

#[test]
fn a_cluster_comes_up_and_goes() -> Result<()> {
    let started = std::time::Instant::now();
    let cluster = Cluster::start(Options::default())?;
    println!("up after {:?}", started.elapsed());
    println!("{}", cluster.kubectl(&["get", "nodes,pods,services", "-A", "-o", "wide"])?);
    if let Ok(seconds) = std::env::var("PODGATE_CLUSTER_HOLD") {
        std::thread::sleep(std::time::Duration::from_secs(seconds.parse()?));
    }
    cluster.finish()
}
