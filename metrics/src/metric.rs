//! What is promised about a metric, and how a program registers it.

use std::{marker::PhantomData, ops::Deref};

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

use crate::Label;

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A number that only grows, until the process restarts.
    Counter,
    /// A number that grows and shrinks.
    Gauge,
    /// Counts of observations in buckets, with their number and sum.
    Histogram,
}

impl Type {
    /// Returns the type as the text format and the documents write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The unit of a metric's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of things.
    Count,
    /// Seconds.
    Seconds,
    /// Seconds since 1970-01-01T00:00:00Z.
    UnixTime,
    /// 1 for yes, 0 for no.
    Boolean,
    /// Nats per token.
    Nats,
    /// Floating-point operations.
    Flop,
    /// Floating-point operations per second.
    FlopPerSecond,
    /// Bytes.
    Bytes,
    /// A share from 0 to 1.
    Ratio,
    /// Degrees Celsius.
    Celsius,
    /// Watts.
    Watts,
    /// A number without a unit.
    Number,
}

impl Unit {
    /// Returns the unit as the documents write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Seconds => "seconds",
            Self::UnixTime => "Unix time",
            Self::Boolean => "1 or 0",
            Self::Nats => "nats",
            Self::Flop => "FLOP",
            Self::FlopPerSecond => "FLOP/s",
            Self::Bytes => "bytes",
            Self::Ratio => "0 to 1",
            Self::Celsius => "°C",
            Self::Watts => "W",
            Self::Number => "number",
        }
    }
}

/// The promise about one metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contract {
    /// Its full name.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// The unit of its value.
    pub unit: Unit,
    /// Its labels.
    pub labels: &'static [Label],
    /// What it measures, in one sentence. It is the help text of the exposition.
    pub help: &'static str,
    /// More about it for the documents; may be empty.
    pub more: &'static str,
    /// The upper ends of the buckets of a histogram.
    pub buckets: &'static [f64],
    /// Whether it appears only after the first event that it counts.
    pub later: bool,
}

/// Marks a counter.
#[derive(Clone, Copy, Debug)]
pub enum Counter {}
/// Marks a gauge.
#[derive(Clone, Copy, Debug)]
pub enum Gauge {}
/// Marks a histogram.
#[derive(Clone, Copy, Debug)]
pub enum Histogram {}

/// A metric whose type the compiler knows.
#[derive(Clone, Copy, Debug)]
pub struct Metric<K> {
    contract: Contract,
    kind: PhantomData<K>,
}

impl<K> Deref for Metric<K> {
    type Target = Contract;

    fn deref(&self) -> &Contract {
        &self.contract
    }
}

impl<K> Metric<K> {
    pub(crate) const fn of_type(
        kind: Type,
        name: &'static str,
        unit: Unit,
        labels: &'static [Label],
        help: &'static str,
    ) -> Self {
        let contract = Contract { name, kind, unit, labels, help, more: "", buckets: &[], later: false };
        Self { contract, kind: PhantomData }
    }

    /// Returns the promise about this metric.
    pub const fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Adds text for the documents.
    pub(crate) const fn more(mut self, more: &'static str) -> Self {
        self.contract.more = more;
        self
    }

    /// Says that the metric appears only after the first event that it counts.
    pub(crate) const fn later(mut self) -> Self {
        self.contract.later = true;
        self
    }

    fn options(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn label_names(&self) -> Vec<&'static str> {
        self.labels.iter().map(|label| label.name).collect()
    }
}

/// Registers a collector and returns it.
fn registered<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl Metric<Counter> {
    pub(crate) const fn new(name: &'static str, unit: Unit, labels: &'static [Label], help: &'static str) -> Self {
        Self::of_type(Type::Counter, name, unit, labels, help)
    }

    /// Registers a counter without labels.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn single(&self, registry: &Registry) -> Result<IntCounter> {
        registered(registry, IntCounter::with_opts(self.options())?)
    }

    /// Registers a counter of fractions without labels.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn float(&self, registry: &Registry) -> Result<prometheus::Counter> {
        registered(registry, prometheus::Counter::with_opts(self.options())?)
    }

    /// Registers a counter with the labels of the contract.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn labelled(&self, registry: &Registry) -> Result<IntCounterVec> {
        registered(registry, IntCounterVec::new(self.options(), &self.label_names())?)
    }
}

impl Metric<Gauge> {
    pub(crate) const fn new(name: &'static str, unit: Unit, labels: &'static [Label], help: &'static str) -> Self {
        Self::of_type(Type::Gauge, name, unit, labels, help)
    }

    /// Registers a gauge of integers without labels.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn single(&self, registry: &Registry) -> Result<IntGauge> {
        registered(registry, IntGauge::with_opts(self.options())?)
    }

    /// Registers a gauge of fractions without labels.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn float(&self, registry: &Registry) -> Result<prometheus::Gauge> {
        registered(registry, prometheus::Gauge::with_opts(self.options())?)
    }

    /// Registers a gauge of integers with the labels of the contract.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn labelled(&self, registry: &Registry) -> Result<IntGaugeVec> {
        registered(registry, IntGaugeVec::new(self.options(), &self.label_names())?)
    }

    /// Registers a gauge of fractions with the labels of the contract.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn labelled_float(&self, registry: &Registry) -> Result<prometheus::GaugeVec> {
        registered(registry, self.unregistered_float()?)
    }

    /// Returns a gauge of fractions with the labels of the contract, for a collector that sets it when it is asked.
    ///
    /// # Errors
    /// If the name or a label is invalid.
    pub fn unregistered_float(&self) -> Result<prometheus::GaugeVec> {
        prometheus::GaugeVec::new(self.options(), &self.label_names())
    }
}

impl Metric<Histogram> {
    pub(crate) const fn new(name: &'static str, unit: Unit, labels: &'static [Label], help: &'static str) -> Self {
        Self::of_type(Type::Histogram, name, unit, labels, help)
    }

    /// Sets the upper ends of the buckets.
    pub(crate) const fn buckets(mut self, buckets: &'static [f64]) -> Self {
        self.contract.buckets = buckets;
        self
    }

    fn histogram_options(&self) -> HistogramOpts {
        HistogramOpts::new(self.name, self.help).buckets(self.buckets.to_vec())
    }

    /// Registers a histogram without labels.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn single(&self, registry: &Registry) -> Result<prometheus::Histogram> {
        registered(registry, prometheus::Histogram::with_opts(self.histogram_options())?)
    }

    /// Registers a histogram with the labels of the contract.
    ///
    /// # Errors
    /// If the registry has a metric of this name.
    pub fn labelled(&self, registry: &Registry) -> Result<HistogramVec> {
        registered(registry, HistogramVec::new(self.histogram_options(), &self.label_names())?)
    }
}

/// Declares the metrics of a program and the list `ALL` of them.
macro_rules! metrics {
    ($($const:ident = $type:ident($name:literal, $unit:ident, [$($label:ident),*], $help:literal)
        $(.$method:ident($($argument:expr)?))*;)*) => {
        $(
            #[doc = $help]
            pub static $const: $crate::Metric<$crate::$type> =
                $crate::Metric::<$crate::$type>::new($name, $crate::Unit::$unit, &[$($label),*], $help)
                    $(.$method($($argument)?))*;
        )*

        /// All metrics of the program, in the order of its documents.
        pub static ALL: &[&$crate::Contract] = &[$($const.contract()),*];
    };
}

pub(crate) use metrics;
