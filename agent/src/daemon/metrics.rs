//! The registry. Metrics are declared beside the code that moves them, each group with a `register`; this file
//! only collects the groups and writes the text form.

use prometheus::core::Collector;
use prometheus::{Encoder, Registry, TextEncoder};

use super::{audit, devices, events, http, launcher, observe, server, store, wakeups, watchdog};

/// Every group.
pub(crate) struct Metrics {
    registry: Registry,
    pub devices: devices::Metrics,
    pub events: events::Metrics,
    pub http: http::Metrics,
    pub launcher: launcher::Metrics,
    pub containers: observe::Metrics,
    pub api: server::Metrics,
    pub audit: audit::Metrics,
    pub store: store::Metrics,
    pub wakeups: wakeups::Wakeups,
    pub watchdog: watchdog::Metrics,
}

/// Registers a metric in `registry` and gives it back.
pub(crate) fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> prometheus::Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Metrics {
    /// Registers everything.
    ///
    /// `run`: the folder where monitors write what their probes counted.
    ///
    /// # Errors
    /// Two metrics of one name, or a name that is none.
    pub(crate) fn new(run: &std::path::Path) -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        Ok(Metrics {
            devices: devices::Metrics::new(&registry)?,
            events: events::Metrics::new(&registry)?,
            http: http::Metrics::new(&registry)?,
            launcher: launcher::Metrics::new(&registry)?,
            containers: observe::Metrics::new(&registry)?,
            api: server::Metrics::new(&registry)?,
            audit: audit::Metrics::new(&registry)?,
            store: store::Metrics::new(&registry)?,
            wakeups: wakeups::Wakeups::new(&registry, run)?,
            watchdog: watchdog::Metrics::new(&registry)?,
            registry,
        })
    }

    /// The text form, version 0.0.4.
    pub(crate) fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }

    /// Names and values of every sample, for tests.
    #[cfg(test)]
    pub(crate) fn samples(&self) -> Vec<(String, f64)> {
        let mut samples = Vec::new();
        for family in self.registry.gather() {
            for metric in family.get_metric() {
                let value = metric.get_counter().get_value()
                    + metric.get_gauge().get_value()
                    + metric.get_histogram().get_sample_count() as f64;
                samples.push((family.name().to_owned(), value));
            }
        }
        samples
    }
}
