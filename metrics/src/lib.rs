//! The metric contract: name, type, unit, labels and help of every metric of both programs, as statics.
//!
//! The programs build their registries from these statics. Dashboards, alerts, scrape configurations and the tables of
//! `docs/` name them in queries of [`query`], so a metric that is renamed or removed no longer compiles there.
//! [`files::all`] returns the generated files. No I/O.

pub mod activator;
pub mod alerts;
pub mod controller;
pub mod dashboard;
pub mod dashboards;
pub mod files;
pub mod gpu;
pub mod label;
pub mod metric;
pub mod pages;
pub mod query;
pub mod scrape;
pub mod server;
pub mod trainer;

pub use label::Label;
pub use metric::{Contract, Counter, Gauge, Histogram, Metric, Type, Unit};

/// Returns the metrics of all programs.
pub fn all() -> impl Iterator<Item = &'static Contract> {
    [controller::ALL, server::ALL, activator::ALL, trainer::ALL, gpu::ALL].into_iter().flatten().copied()
}
