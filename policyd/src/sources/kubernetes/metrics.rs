//! The state of the watches, for Prometheus.

use std::fmt;

use podgate_policy::object::Kind;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::health::{Connection, Health, Watch};
use crate::metrics::families::{
    SOURCE_CONNECTED, SOURCE_ERRORS, SOURCE_LISTS, SOURCE_REFUSED, SOURCE_SILENCE,
};

/// Writes the metrics of one API server.
pub fn encode(server: &Health, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let watches = server.watches();
    let labels = |of: &Kind| [server.name().to_owned(), of.names().plural.to_owned()];
    // a watch without a value yet has no sample
    let gauges = |value: fn(&Watch) -> Option<f64>| {
        let sample =
            move |(of, watch): (&Kind, &Watch)| Some((labels(of), ConstGauge::new(value(watch)?)));
        watches.iter().filter_map(sample)
    };
    let counters = |value: fn(&Watch) -> u64| {
        watches.iter().map(move |(of, watch)| (labels(of), ConstCounter::new(value(watch))))
    };
    // of a kind that the server does not have there is nothing to be connected to
    let is_up = |watch: &Watch| {
        let is_up = f64::from(watch.connection == Connection::Up);
        (watch.connection != Connection::Absent).then_some(is_up)
    };
    SOURCE_CONNECTED.samples(encoder, gauges(is_up))?;
    let silence = |watch: &Watch| Some(watch.last_response?.elapsed().as_secs_f64());
    SOURCE_SILENCE.samples(encoder, gauges(silence))?;
    SOURCE_LISTS.samples(encoder, counters(|watch| watch.lists))?;
    SOURCE_ERRORS.samples(encoder, counters(|watch| watch.errors))?;
    let rejected =
        |watch: &Watch| Some(u32::try_from(watch.rejected.len()).map_or(f64::MAX, f64::from));
    SOURCE_REFUSED.samples(encoder, gauges(rejected))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::collector::Collector;
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug)]
    struct Server(Arc<Health>);

    impl Collector for Server {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode(&self.0, &mut encoder)
        }
    }

    #[test]
    fn each_watch_has_its_metrics() {
        let health = Arc::new(Health::new("kubernetes".into()));
        health.listing(Kind::Pod);
        health.responded(Kind::Pod);
        health.listing(Kind::Policy);
        health.failed(Kind::Policy, "list: refused".into());
        health.failed(Kind::Policy, "list: refused".into());
        let mut registry = Registry::with_prefix("podgate");
        registry.register_collector(Box::new(Server(health)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"podgate_source_connected{source="kubernetes",kind="pods"} 1.0"#,
            r#"podgate_source_connected{source="kubernetes",kind="policies"} 0.0"#,
            r#"podgate_source_connected{source="kubernetes",kind="services"} 0.0"#,
            r#"podgate_source_lists_total{source="kubernetes",kind="pods"} 1"#,
            r#"podgate_source_errors_total{source="kubernetes",kind="policies"} 2"#,
            r#"podgate_source_errors_total{source="kubernetes",kind="pods"} 0"#,
            r#"podgate_source_refused{source="kubernetes",kind="pods"} 0.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let silence = |kind: &str| {
            let start =
                format!("podgate_source_silence_seconds{{source=\"kubernetes\",kind=\"{kind}\"}}");
            text.lines().any(|line| line.starts_with(&start))
        };
        assert!(silence("pods") && !silence("policies"), "{text}");
    }
}
