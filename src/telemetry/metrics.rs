//! The recorder behind the `metrics` crate and its Prometheus text. No thread, no listener of its own: the API
//! serves the text, and nothing runs while nobody asks.

use std::{path::Path, sync::OnceLock};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::telemetry::{events, process};

/// Answers of an API on the same box: from under a millisecond to the longest job.
const SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Frames that go through the voice detector together.
const BATCHES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Handle to the process's metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    prometheus: PrometheusHandle,
}

impl Metrics {
    /// The recorder, installed at the first call; every later call returns the same one.
    pub fn install() -> Metrics {
        static METRICS: OnceLock<Metrics> = OnceLock::new();
        METRICS
            .get_or_init(|| {
                let recorder = PrometheusBuilder::new()
                    .set_buckets(SECONDS)
                    .and_then(|it| it.set_buckets_for_metric(Matcher::Suffix("_batch_size".to_owned()), BATCHES))
                    .unwrap_or_default()
                    .build_recorder();
                let prometheus = recorder.handle();
                if metrics::set_global_recorder(recorder).is_err() {
                    log::error!("metrics stay empty: another recorder is installed");
                }
                Metrics { prometheus }
            })
            .clone()
    }

    /// Everything counted so far, in Prometheus' text format. What has not happened yet is shown as zero.
    pub fn render(&self) -> String {
        events::ready();
        self.upkeep();
        self.prometheus.render() + &process::render(Path::new("/proc/self"))
    }

    /// Sorts waiting samples into their buckets; until then each takes memory.
    pub(super) fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_gives_the_same_metrics() {
        let first = Metrics::install();
        let second = Metrics::install();
        metrics::counter!("vigia_test_installs_total").increment(1);
        assert!(first.render().contains("vigia_test_installs_total 1"));
        assert!(second.render().contains("vigia_test_installs_total 1"));
    }

    #[test]
    fn the_process_itself_is_shown() {
        assert!(Metrics::install().render().contains("\nprocess_resident_memory_bytes "));
    }
}
