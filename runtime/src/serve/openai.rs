//! OpenAI's routes.

use super::app::App;
use super::embed::{self, Format, Numbers, Wanted};
use super::error::{ApiError, Kind};
use super::extract::{Body, Part};
use super::role::{Asked, Word};
use super::texts::Texts;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// A refusal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiRefusal)]
pub struct ErrorBody {
    error: ErrorObject,
}

/// What OpenAI's clients show of a refusal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiError)]
pub struct ErrorObject {
    /// One sentence.
    message: String,
    /// `invalid_request_error`, `rate_limit_error`, `server_error`.
    r#type: &'static str,
    /// The field that is to blame.
    param: Option<String>,
    /// `invalid_api_key`, `rate_limit_exceeded`, `model_not_found`, ...
    code: Option<&'static str>,
}

impl ErrorBody {
    /// What it is told as here.
    pub fn of(error: &ApiError, status: StatusCode) -> Self {
        Self { error: ErrorObject::of(error, status) }
    }
}

impl ErrorObject {
    /// What it is told as here.
    pub fn of(error: &ApiError, status: StatusCode) -> Self {
        let r#type = match error.kind {
            Kind::Overloaded => "rate_limit_error",
            _ if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let code = match error.kind {
            Kind::WrongKey | Kind::NoKey => Some("invalid_api_key"),
            Kind::Overloaded => Some("rate_limit_exceeded"),
            Kind::TooLarge => Some("request_too_large"),
            Kind::Timeout | Kind::Unfinished => Some("timeout"),
            Kind::NotFound if error.field.as_deref() == Some("model") => Some("model_not_found"),
            _ => None,
        };
        Self { message: error.message.clone(), r#type, param: error.field.clone(), code }
    }
}

/// Texts to embed; fields of OpenAI's that mean nothing here are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EmbeddingsRequest {
    input: Texts,
    /// Told back. A name that ends in -query or -document says which side of the score the texts are on; -cosine behind it asks
    /// for vectors whose cosine ranks as `/query` does.
    #[schema(example = "rabtriever-document")]
    model: Option<String>,
    encoding_format: Option<Format>,
    /// Only the full length is possible.
    dimensions: Option<usize>,
    /// As NVIDIA's and Voyage's clients send it: `query`, `passage` or `document`. Not OpenAI's.
    input_type: Option<Word>,
    /// As Jina's clients send it: `retrieval.query`, `retrieval.passage`. Not OpenAI's.
    task: Option<Word>,
}

/// Embeddings.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingsResponse {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

/// One text's embedding.
#[derive(Debug, Serialize, ToSchema)]
pub struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

/// Tokens read.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Embeddings, as OpenAI gives them.
#[utoipa::path(
    post, path = "/v1/embeddings", request_body = EmbeddingsRequest,
    responses((status = 200, description = "A vector for each text", body = EmbeddingsResponse))
)]
pub async fn embeddings(
    State(app): State<Arc<App>>,
    Body(request): Body<EmbeddingsRequest>,
) -> Result<Json<EmbeddingsResponse>, ApiError> {
    let EmbeddingsRequest { input: Texts(texts), model, encoding_format, dimensions, input_type, task } =
        request;
    embed::some(&app, texts.len(), "input")?;
    let name = model.as_deref();
    let asked = Asked::of_model(name).and(name, input_type, "input_type")?.and(name, task, "task")?;
    let wanted =
        Wanted { side: asked.or(&app.defaults), truncate: true, end: None, dimensions, field: "input" };
    let (vectors, tokens) = Arc::clone(&app).work(move |job| embed::vectors(job, &texts, wanted)).await?;
    let format = encoding_format.unwrap_or_default();
    let embedding =
        |(index, vector)| Embedding { object: "embedding", index, embedding: format.write(vector) };
    let data = vectors.into_iter().enumerate().map(embedding).collect();
    let usage = Usage { prompt_tokens: tokens, total_tokens: tokens };
    let model = model.unwrap_or_else(|| app.defaults.model.clone());
    Ok(Json(EmbeddingsResponse { object: "list", data, model, usage }))
}

/// What can be asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelsResponse {
    object: &'static str,
    data: Vec<Model>,
}

/// A name that the model can be asked for by.
#[derive(Debug, Serialize, ToSchema)]
pub struct Model {
    id: String,
    object: &'static str,
    /// When the bundle was put there, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
}

fn all(app: &App) -> Vec<Model> {
    let loaded = app.loaded();
    let model = |id| Model { id, object: "model", created: loaded.created, owned_by: "rabtriever" };
    app.defaults.names(loaded.has_cosine()).into_iter().map(model).collect()
}

/// Names that the model can be asked for by: which side of the score texts are on, and how vectors will be compared.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, description = "Names", body = ModelsResponse)))]
pub async fn models(State(app): State<Arc<App>>) -> Json<ModelsResponse> {
    Json(ModelsResponse { object: "list", data: all(&app) })
}

/// One of them.
#[utoipa::path(
    get, path = "/v1/models/{model}", params(("model" = String, Path, description = "The name")),
    responses((status = 200, description = "The name is served", body = Model))
)]
pub async fn model(State(app): State<Arc<App>>, Part(name): Part<String>) -> Result<Json<Model>, ApiError> {
    let found = all(&app).into_iter().find(|model| model.id == name);
    found.map(Json).ok_or_else(|| {
        let error = format!("there is no model `{name}`; GET /v1/models lists the names");
        ApiError::new(Kind::NotFound, error).of("model")
    })
}
