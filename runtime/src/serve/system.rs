//! The page, and what watches the server.

use super::app::App;
use super::error::ApiError;
use super::interface::Interface;
use super::metrics::Format;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use models::files::sha256;
use std::sync::{Arc, LazyLock};
use utoipa::OpenApi;

/// The page at `/`.
const PAGE: &str = include_str!("../../web/page.html");

/// The page.
pub async fn page() -> Response {
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

/// The interface in OpenAPI's terms.
pub async fn openapi() -> Response {
    axum::Json(Interface::openapi()).into_response()
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "Alive", body = String, content_type = "text/plain")))]
pub async fn health() -> &'static str {
    "ok"
}

/// Whether the process is alive, by the name under which SageMaker asks.
#[utoipa::path(get, path = "/ping", responses((status = 200, description = "Alive", body = String, content_type = "text/plain")))]
pub async fn ping() -> &'static str {
    "ok"
}

/// Whether requests are answered: not while the server is stopping.
#[utoipa::path(
    get, path = "/ready",
    responses(
        (status = 200, description = "Ready", body = String, content_type = "text/plain"),
        (status = 503, description = "Stopping", body = super::tei::ErrorBody)
    )
)]
pub async fn ready(State(app): State<Arc<App>>) -> Result<&'static str, ApiError> {
    if app.is_stopping() { Err(ApiError::stopping()) } else { Ok("ok") }
}

/// Counters and times for Prometheus: its classic text format, or OpenMetrics where `Accept` prefers that.
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, description = "Counters and times", content(
        (String = "text/plain"), (String = "application/openmetrics-text")
    )))
)]
pub async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let stats = Arc::clone(&app).look(|loaded| Ok(loaded.retriever.stats()?)).await?;
    // A list may come in several headers.
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::wanted(&accepted.collect::<Vec<_>>().join(","));
    let text = app.metrics.encode(&stats, format);
    Ok(([(header::CONTENT_TYPE, format.content_type()), (header::VARY, "Accept")], text).into_response())
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
}
