//! How the watches stand, for Prometheus.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::health::{Health, Link, Watch};

/// Writes the metrics of one API server.
pub fn encode(server: &Health, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let watches = server.watches();
    let mut each = |name: &str,
                    help: &str,
                    unit: Option<&Unit>,
                    kind: MetricType,
                    value: &dyn Fn(&Watch) -> Option<Value>| {
        let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
        for (of, watch) in &watches {
            let labels = [("source", server.name()), ("kind", of.plural())];
            match value(watch) {
                Some(Value::Gauge(value)) => {
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
                Some(Value::Counter(value)) => {
                    ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
                }
                // nothing to say yet
                None => {}
            }
        }
        Ok(())
    };
    each(
        "source_connected",
        "Whether the API server answers for this kind of object",
        None,
        MetricType::Gauge,
        &|watch| Some(Value::Gauge(f64::from(watch.link == Link::Up))),
    )?;
    each(
        "source_silence",
        "Since the API server last said anything about this kind of object",
        Some(&Unit::Seconds),
        MetricType::Gauge,
        &|watch| Some(Value::Gauge(watch.heard?.elapsed().as_secs_f64())),
    )?;
    each(
        "source_lists",
        "Lists that were begun: one at the start, then whenever a watch could not go on where it was",
        None,
        MetricType::Counter,
        &|watch| Some(Value::Counter(watch.lists)),
    )?;
    each("source_errors", "Lists and watches that failed", None, MetricType::Counter, &|watch| {
        Some(Value::Counter(watch.errors))
    })?;
    each("source_refused", "Objects that cannot be read", None, MetricType::Gauge, &|watch| {
        Some(Value::Gauge(u32::try_from(watch.refused.len()).map_or(f64::MAX, f64::from)))
    })
}

enum Value {
    Gauge(f64),
    Counter(u64),
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::collector::Collector;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::sources::Kind;

    #[derive(Debug)]
    struct Server(Arc<Health>);

    impl Collector for Server {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode(&self.0, &mut encoder)
        }
    }

    #[test]
    fn each_watch_says_how_it_stands() {
        let health = Arc::new(Health::new("kubernetes".into()));
        health.listing(Kind::Pod);
        health.heard(Kind::Pod);
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
