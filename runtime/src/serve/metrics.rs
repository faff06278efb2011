//! Counters and times in Prometheus' terms.

use crate::retriever::Stats;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, which everything that scrapes can read.
    Classic,
    /// OpenMetrics.
    OpenMetrics,
}

impl Format {
    /// By a request's `Accept`: OpenMetrics where it is named and nothing that the classic format is, is wanted more.
    pub fn wanted(accept: &str) -> Self {
        let (mut classic, mut open) = (0.0f32, 0.0f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
            let kind = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse().ok()).unwrap_or(1.0);
            match kind.as_str() {
                "application/openmetrics-text" => open = open.max(weight),
                "text/plain" | "text/*" => classic = classic.max(weight),
                _ => {}
            }
        }
        if open > 0.0 && open >= classic { Self::OpenMetrics } else { Self::Classic }
    }

    /// What it is called.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

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

    /// As text.
    pub fn encode(&self, stats: &Stats, format: Format) -> String {
        self.documents.set(i64::try_from(stats.documents).unwrap_or(i64::MAX));
        self.generation.set(stats.generation.cast_signed());
        let mut told = String::new();
        // Writing into a string does not fail.
        let _ = match format {
            Format::OpenMetrics => text::encode(&mut told, &self.registry),
            Format::Classic => {
                // A comment there; it says, as in OpenMetrics, that the answer was not cut off.
                prometheus_text::encode(&mut told, &self.registry).and_then(|()| text::encode_eof(&mut told))
            }
        };
        told
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scraper that gets the other format than it can read drops all of it, and the graphs stay empty.
    #[test]
    fn who_scrapes_gets_what_it_can_read() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,*/*;q=0.1";
        assert_eq!(Format::wanted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::wanted("Application/OpenMetrics-Text; version=1.0.0"), Format::OpenMetrics);
        for classic in [
            "",
            "*/*",
            "text/plain;version=0.0.4",
            "text/html, */*;q=0.8",
            "text/plain, application/openmetrics-text;q=0.2",
            "application/openmetrics-text;q=0",
        ] {
            assert_eq!(Format::wanted(classic), Format::Classic, "{classic}");
        }
    }
}
