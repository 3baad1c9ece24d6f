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
