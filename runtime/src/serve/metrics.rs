//! Counters and times in Prometheus' terms.

use crate::retriever::Stats;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

/// All metrics of a server.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    duration: Family<Route, Histogram>,
    encode: Histogram,
    batch: Histogram,
    places: Gauge,
    documents: Gauge,
    generation: Gauge,
}

impl Metrics {
    /// All zero.
    pub fn new() -> Self {
        fn seconds() -> Histogram {
            Histogram::new(exponential_buckets(0.001, 2.0, 15))
        }
        let mut registry = Registry::with_prefix("rabtriever");
        let requests = Family::<Answered, Counter>::default();
        let duration = Family::<Route, Histogram>::new_with_constructor(seconds);
        let (encode, batch) = (seconds(), Histogram::new(exponential_buckets(1.0, 2.0, 8)));
        let (places, documents, generation) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("request", "Requests answered", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time to an answer, the body included",
            Unit::Seconds,
            duration.clone(),
        );
        registry.register_with_unit(
            "encode_duration",
            "Time to encode a request's texts, waiting included",
            Unit::Seconds,
            encode.clone(),
        );
        registry.register("batch_size", "Texts encoded together", batch.clone());
        registry.register("queue_size", "Requests worked on or waiting for it", places.clone());
        registry.register("documents", "Documents in the index", documents.clone());
        registry.register("generation", "Number of the index's last change", generation.clone());
        Self { registry, requests, duration, encode, batch, places, documents, generation }
    }

    /// A request was answered.
    pub fn request(&self, route: &str, status: u16, time: Duration) {
        let route = route.to_owned();
        self.requests.get_or_create(&Answered { route: route.clone(), status }).inc();
        self.duration.get_or_create(&Route { route }).observe(time.as_secs_f64());
    }

    /// A request's texts were encoded, so many texts together with those of others.
    pub fn encoded(&self, together: usize, time: Duration) {
        self.encode.observe(time.as_secs_f64());
        self.batch.observe(together as f64);
    }

    /// So many places are taken.
    pub fn places(&self, taken: usize) {
        self.places.set(i64::try_from(taken).unwrap_or(i64::MAX));
    }

    /// OpenMetrics text.
    pub fn encode(&self, stats: &Stats) -> String {
        self.documents.set(i64::try_from(stats.documents).unwrap_or(i64::MAX));
        self.generation.set(stats.generation.cast_signed());
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
