//! `runtime serve`: the retriever behind HTTP.
//!
//! ```text
//! connections.rs  sockets: limits on connections and on slow headers, graceful shutdown
//! app.rs          what all requests share: the loaded retriever, the limits, the places for work
//! work.rs         a request's work: whether anybody still waits for it, and whether it can be done in time
//! batch.rs        queries that wait together are encoded together
//! extract.rs      what requests bring; texts.rs and role.rs are two kinds of it
//! embed.rs        vectors of texts, and rank.rs their order, whoever asks
//! routes          native.rs (our own), tei.rs, openai.rs, cohere.rs, jina.rs (other servers'), system.rs (page, metrics)
//! interface.rs    all of them in OpenAPI's terms
//! error.rs        why a request is refused; refusal.rs tells it in the shape of its route's clients
//! ```

mod app;
mod batch;
mod cohere;
mod connections;
mod embed;
mod error;
mod extract;
mod interface;
mod jina;
mod metrics;
mod native;
mod openai;
mod rank;
mod refusal;
mod role;
mod system;
mod tei;
mod texts;
mod work;

pub use self::app::{App, Limits, Paths};
pub use self::connections::{Connections, Signals, serve};
pub use self::role::{Defaults, Role, Similarity};

use self::error::{ApiError, Kind};
use self::refusal::Dialect;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::sync::Arc;
use std::time::Instant;

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let open = Router::new()
        .route("/", get(system::page))
        .route("/health", get(system::health))
        .route("/ping", get(system::ping))
        .route("/ready", get(system::ready))
        .route("/openapi.json", get(system::openapi));
    let keyed = Router::new()
        .route("/", post(tei::root))
        .route("/query", post(native::query))
        .route("/documents", post(native::add).get(native::list))
        .route("/documents/remove", post(native::remove))
        .route("/documents/{id}", get(native::get).delete(native::delete))
        .route("/fields", get(native::fields))
        .route("/stats", get(native::stats))
        .route("/embed", post(tei::embed))
        .route("/similarity", post(tei::similarity))
        .route("/rerank", post(tei::rerank))
        .route("/tokenize", post(tei::tokenize))
        .route("/info", get(tei::info))
        .route("/embeddings", post(openai::embeddings))
        .route("/models", get(openai::models))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{model}", get(openai::model))
        .route("/v1/embed", post(cohere::embed_v1))
        .route("/v2/embed", post(cohere::embed_v2))
        .route("/v1/rerank", post(cohere::rerank_v1))
        .route("/v2/rerank", post(cohere::rerank_v2))
        .route("/metrics", get(system::metrics))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), admitted));
    open.merge(keyed)
        .fallback(async || ApiError::new(Kind::NotFound, "no such path; GET /openapi.json lists them"))
        .method_not_allowed_fallback(async || {
            ApiError::new(Kind::Method, "the path takes another method; GET /openapi.json lists them")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), measured))
        .with_state(app)
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

/// Counts every request, by its route and not by what a client made up, bounds its time, and tells refusals as its route does.
async fn measured(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<axum::extract::MatchedPath>()
        .map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let dialect = Dialect::of(request.uri().path());
    let changes = route.starts_with("/documents") && request.method() != Method::GET;
    let started = Instant::now();
    let response = match tokio::time::timeout(app.limits.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) if changes => ApiError::unfinished(app.limits.timeout).into_response(),
        Err(_) => ApiError::timeout(app.limits.timeout).into_response(),
    };
    let response = refusal::told(response, dialect);
    app.metrics.request(&route, response.status().as_u16(), started.elapsed());
    response
}

/// Reads bytes as the body of every request that there is.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> bool {
        match extract::parse::<T>(bytes) {
            Ok(_) => true,
            Err(refused) => {
                // It is told to whoever sent it.
                let _ = refused.message.len();
                false
            }
        }
    }
    let _ = [
        read::<native::QueryRequest>(bytes),
        read::<native::AddRequest>(bytes),
        read::<native::RemoveRequest>(bytes),
        read::<tei::EmbedRequest>(bytes),
        read::<tei::SimilarityRequest>(bytes),
        read::<tei::RerankRequest>(bytes),
        read::<tei::TokenizeRequest>(bytes),
        read::<openai::EmbeddingsRequest>(bytes),
        read::<cohere::EmbedRequest>(bytes),
        read::<cohere::RerankRequest>(bytes),
    ];
}
