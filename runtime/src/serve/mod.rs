//! `runtime serve`: the retriever behind HTTP.
//!
//! ```text
//! connections.rs  sockets: limits on connections and on slow headers, graceful shutdown
//! app.rs          what all requests share: the loaded retriever, the limits, the work a request may do
//! batch.rs        queries that wait together are encoded together
//! routes          own.rs (query, documents), embeddings.rs and rerank.rs (shapes of text-embeddings-inference, OpenAI, Cohere)
//! error.rs        every refusal is {"error", "error_type"}
//! ```

mod app;
mod batch;
mod connections;
mod embeddings;
mod error;
mod metrics;
mod own;
mod rerank;

pub use self::app::{App, Limits, Paths};
pub use self::connections::{Connections, Signals, serve};

use self::error::ApiError;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use models::files::sha256;
use std::sync::{Arc, LazyLock};
use std::time::Instant;
use utoipa::OpenApi;

/// The page at `/`.
const PAGE: &str = include_str!("../../web/page.html");

/// The interface in OpenAPI's terms.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Rabtriever",
        description = "Retrieval by judgement: documents that answer a query, not those that look like it."
    ),
    paths(
        own::query,
        own::add,
        own::list,
        own::get,
        own::delete,
        own::remove,
        own::fields,
        own::stats,
        embeddings::embed,
        embeddings::openai,
        rerank::tei,
        rerank::cohere_v1,
        rerank::cohere_v2,
        health,
        ready,
        metrics_text
    )
)]
struct Interface;

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let open = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/openapi.json", get(openapi));
    let keyed = Router::new()
        .route("/query", post(own::query))
        .route("/documents", post(own::add).get(own::list))
        .route("/documents/remove", post(own::remove))
        .route("/documents/{id}", get(own::get).delete(own::delete))
        .route("/fields", get(own::fields))
        .route("/stats", get(own::stats))
        .route("/embed", post(embeddings::embed))
        .route("/v1/embeddings", post(embeddings::openai))
        .route("/rerank", post(rerank::tei))
        .route("/v1/rerank", post(rerank::cohere_v1))
        .route("/v2/rerank", post(rerank::cohere_v2))
        .route("/metrics", get(metrics_text))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), admitted));
    open.merge(keyed)
        .fallback(async || ApiError::NotFound("no such path; GET /openapi.json lists them".into()))
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), measured))
        .with_state(app)
}

async fn page() -> Response {
    // Documents are other people's texts: nothing runs here but what this program brought.
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash = |tag: &str| format!("'sha256-{}'", STANDARD.encode(sha256(block(PAGE, tag).as_bytes())));
        format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash("script"),
            hash("style")
        )
    });
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(PAGE)).into_response()
}

/// What stands between a tag and its end; the page has one of each.
fn block<'a>(page: &'a str, tag: &str) -> &'a str {
    let after = page.split_once(&format!("<{tag}>")).map_or("", |(_, after)| after);
    after.split_once(&format!("</{tag}>")).map_or("", |(block, _)| block)
}

async fn openapi() -> Response {
    axum::Json(Interface::openapi()).into_response()
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "Alive")))]
async fn health() -> &'static str {
    "ok"
}

/// Whether requests are answered: not while the server is stopping.
#[utoipa::path(get, path = "/ready", responses((status = 200, description = "Ready"), (status = 503, description = "Stopping")))]
async fn ready(State(app): State<Arc<App>>) -> Result<&'static str, ApiError> {
    if app.is_stopping() { Err(ApiError::Stopping) } else { Ok("ok") }
}

/// Counters and times in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "OpenMetrics text")))]
async fn metrics_text(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let stats = Arc::clone(&app).look(|loaded| Ok(loaded.retriever.stats()?)).await?;
    let text = app.metrics.encode(&stats);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// Who may ask: whoever knows the key, and without a key, whoever means this machine. Without that, any web page could
/// reach a server on this machine under a name of its own choosing.
async fn admitted(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    app.admits(text(header::AUTHORIZATION), text(header::HOST))?;
    Ok(next.run(request).await)
}

/// Counts every request, by its route and not by what a client made up.
async fn measured(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<axum::extract::MatchedPath>()
        .map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let started = Instant::now();
    let mut response = match tokio::time::timeout(app.limits.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::Timeout(app.limits.timeout).into_response(),
    };
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    app.metrics.request(&route, response.status().as_u16(), started.elapsed());
    response
}

/// Reads bytes as the body of every request that there is.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> bool {
        match axum::Json::<T>::from_bytes(bytes) {
            Ok(_) => true,
            Err(refused) => {
                // It is told to whoever sent it.
                let _ = refused.body_text();
                false
            }
        }
    }
    let _ = [
        read::<own::QueryRequest>(bytes),
        read::<own::AddRequest>(bytes),
        read::<own::RemoveRequest>(bytes),
        read::<embeddings::EmbedRequest>(bytes),
        read::<embeddings::OpenAiRequest>(bytes),
        read::<rerank::TeiRequest>(bytes),
        read::<rerank::CohereRequest>(bytes),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy that names other blocks than the page has leaves the page dead.
    #[test]
    fn the_page_has_one_script_and_one_style() {
        for tag in ["script", "style"] {
            assert!(block(PAGE, tag).len() > 500, "{tag}");
            assert_eq!(PAGE.matches(&format!("<{tag}")).count(), 1, "{tag}");
        }
    }

    /// A route that the description lacks, or a description of a route that is gone, misleads whoever generates a client.
    #[test]
    fn the_description_lists_the_routes() {
        let described: Vec<String> = Interface::openapi().paths.paths.keys().cloned().collect();
        let mut routes: Vec<&str> = include_str!("mod.rs")
            .split(".route(\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .filter(|route| route.starts_with('/') && !["/", "/openapi.json"].contains(route))
            .collect();
        routes.sort_unstable();
        assert_eq!(described, routes);
    }
}
