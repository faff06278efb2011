//! Our own routes: queries, documents, what there is.

use super::app::App;
use super::error::{ApiError, Body, ErrorBody, Parameters, Part};
use crate::document::{Document, MOST_FIELDS};
use crate::filter::Filter;
use crate::ingest::AddReport;
use crate::retriever::{Answer, Retriever, Stats, Wanted};
use axum::Json;
use axum::extract::State;
use models::prompt::PromptError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Instant;
use utoipa::{IntoParams, ToSchema};

/// Values of a field that `/fields` tells.
const VALUES: usize = 50;

/// A question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryRequest {
    /// What is needed.
    #[schema(example = "I spilled my coffee")]
    query: String,
    /// Most results.
    #[serde(default = "five")]
    k: usize,
    /// Condition on metadata, in MongoDB's form.
    #[schema(value_type = Option<Object>, example = json!({"room": "kitchen", "floor": {"$gte": 1}}))]
    filter: Option<Filter>,
    /// Documents that the teacher reads anew, where one is loaded.
    rerank: Option<usize>,
    /// Tell what each score is made of.
    #[serde(default)]
    explain: bool,
}

fn five() -> usize {
    5
}

/// An answer, with its question.
#[derive(Debug, Serialize)]
pub struct QueryResponse {
    query: String,
    #[serde(flatten)]
    answer: Answer,
}

/// Documents that best answer a query, best first.
#[utoipa::path(
    post, path = "/query", request_body = QueryRequest,
    responses(
        (status = 200, description = "`results` (id, title, text, metadata, score, probability), `timing_ms`, `path`", body = Object),
        (status = 422, description = "Not possible", body = ErrorBody),
        (status = 429, description = "All places are taken", body = ErrorBody)
    )
)]
pub async fn query(
    State(app): State<Arc<App>>,
    Body(request): Body<QueryRequest>,
) -> Result<Json<QueryResponse>, ApiError> {
    app.within("results", request.k)?;
    let work = move |loaded: &Arc<super::app::Loaded>, app: &App| {
        let QueryRequest { query, k, filter, rerank, explain } = request;
        let wanted = Wanted { k, filter, explain };
        let answer = match rerank.filter(|&candidates| candidates > 0) {
            None => ask(app, loaded, &query, wanted)?,
            Some(candidates) => {
                let Some(reranker) = &loaded.reranker else {
                    let error = "no reranker is loaded; start the server with --reranker";
                    return Err(ApiError::Validation(error.into()));
                };
                if candidates > app.limits.rerank {
                    let most = app.limits.rerank;
                    let error = format!("rerank {candidates}: at most {most} documents are read for a query");
                    return Err(ApiError::Validation(error));
                }
                loaded.retriever.query_reranked(&query, wanted, reranker, candidates)?
            }
        };
        Ok(Json(QueryResponse { query, answer }))
    };
    app.work(work).await
}

fn ask(app: &App, loaded: &Arc<super::app::Loaded>, text: &str, wanted: Wanted) -> Result<Answer, ApiError> {
    let retriever: &Retriever = &loaded.retriever;
    let started = Instant::now();
    let pass = retriever.encoder().query_pass(text)?;
    let tokenised = Instant::now();
    let embeddings = app.encode(loaded, vec![pass])?;
    let queries = [retriever.encoder().fold_query(&embeddings[0])];
    let encoded = Instant::now();
    let mut answer = retriever.answer(&queries, &wanted)?.swap_remove(0);
    answer.timing.tokenise = milliseconds(tokenised - started);
    answer.timing.encode = milliseconds(encoded - tokenised);
    Ok(answer)
}

fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Documents to be added.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// `id`, `title`, `text`, `metadata`.
    #[schema(value_type = Vec<Object>, example = json!([{"id": "dry-floor", "title": "Dry the floor", "text": "The robot ...", "metadata": {"room": "kitchen"}}]))]
    documents: Vec<Document>,
}

/// What became of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct AddResponse {
    added: usize,
    replaced: usize,
    unchanged: usize,
    /// Number of the index's last change.
    generation: u64,
}

/// Adds documents, replaces changed ones, skips the rest; durable when answered.
#[utoipa::path(
    post, path = "/documents", request_body = AddRequest,
    responses(
        (status = 200, description = "Durable", body = AddResponse),
        (status = 409, description = "Another process changes the index", body = ErrorBody),
        (status = 422, description = "Not possible", body = ErrorBody)
    )
)]
pub async fn add(
    State(app): State<Arc<App>>,
    Body(AddRequest { documents }): Body<AddRequest>,
) -> Result<Json<AddResponse>, ApiError> {
    app.within("documents", documents.len())?;
    app.change(move |loaded, _| {
        if let Some(document) = documents.iter().find(|document| document.id.is_empty()) {
            return Err(ApiError::Validation(format!("the id of {:?} is empty", document.text)));
        }
        if let Some(Document { id, .. }) = documents.iter().find(|document| document.contents().is_empty()) {
            let error = format!("document `{id}` has neither title nor text; there is nothing to encode");
            return Err(ApiError::Validation(error));
        }
        if let Some(document) = documents.iter().find(|document| document.fields() > MOST_FIELDS) {
            let (id, fields) = (&document.id, document.fields());
            let error =
                format!("document `{id}` has {fields} metadata fields, at most {MOST_FIELDS} are taken");
            return Err(ApiError::Validation(error));
        }
        let AddReport { added, replaced, unchanged } = loaded.retriever.add(&documents)?;
        let generation = loaded.retriever.stats()?.generation;
        Ok(Json(AddResponse { added, replaced, unchanged, generation }))
    })
    .await
}

/// A page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Documents before it.
    #[serde(default)]
    offset: usize,
    /// Most documents in it.
    #[serde(default = "fifty")]
    limit: usize,
}

fn fifty() -> usize {
    50
}

/// Some of the documents.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListResponse {
    /// Of all of them.
    total: usize,
    #[schema(value_type = Vec<Object>)]
    documents: Vec<Document>,
}

/// Documents in the order in which they came.
#[utoipa::path(get, path = "/documents", params(Page), responses((status = 200, description = "A page", body = ListResponse)))]
pub async fn list(
    State(app): State<Arc<App>>,
    Parameters(Page { offset, limit }): Parameters<Page>,
) -> Result<Json<ListResponse>, ApiError> {
    app.within("documents", limit)?;
    app.work(move |loaded, _| {
        let documents = loaded.retriever.documents(offset, limit)?;
        Ok(Json(ListResponse { total: loaded.retriever.stats()?.documents, documents }))
    })
    .await
}

/// One document.
#[utoipa::path(
    get, path = "/documents/{id}", params(("id" = String, Path, description = "The document")),
    responses((status = 200, description = "The document", body = Object), (status = 404, description = "Unknown", body = ErrorBody))
)]
pub async fn get(State(app): State<Arc<App>>, Part(id): Part<String>) -> Result<Json<Document>, ApiError> {
    app.work(move |loaded, _| {
        let found = loaded.retriever.document(&id)?;
        found.map(Json).ok_or_else(|| ApiError::NotFound(format!("there is no document `{id}`")))
    })
    .await
}

/// Documents to be removed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    ids: Vec<String>,
}

/// How many were there.
#[derive(Debug, Serialize, ToSchema)]
pub struct RemoveResponse {
    removed: usize,
}

/// Removes a document; durable when answered.
#[utoipa::path(
    delete, path = "/documents/{id}", params(("id" = String, Path, description = "The document")),
    responses((status = 200, description = "Durable", body = RemoveResponse), (status = 404, description = "Unknown", body = ErrorBody))
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    Part(id): Part<String>,
) -> Result<Json<RemoveResponse>, ApiError> {
    app.change(move |loaded, _| match loaded.retriever.remove(&[&id])? {
        0 => Err(ApiError::NotFound(format!("there is no document `{id}`"))),
        removed => Ok(Json(RemoveResponse { removed })),
    })
    .await
}

/// Removes documents; durable when answered.
#[utoipa::path(
    post, path = "/documents/remove", request_body = RemoveRequest,
    responses((status = 200, description = "Durable", body = RemoveResponse))
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    Body(RemoveRequest { ids }): Body<RemoveRequest>,
) -> Result<Json<RemoveResponse>, ApiError> {
    app.within("ids", ids.len())?;
    app.change(move |loaded, _| Ok(Json(RemoveResponse { removed: loaded.retriever.remove(&ids)? }))).await
}

/// What documents can be filtered by.
#[derive(Debug, Serialize, ToSchema)]
pub struct FieldsResponse {
    /// Field to value to number of documents; values that are not text as JSON.
    #[schema(value_type = Object, example = json!({"room": {"kitchen": 12, "bath": 3}}))]
    fields: Map<String, Value>,
    /// Whether a field has more values than are told.
    truncated: bool,
}

/// Metadata fields with their commonest values.
#[utoipa::path(get, path = "/fields", responses((status = 200, description = "Fields", body = FieldsResponse)))]
pub async fn fields(State(app): State<Arc<App>>) -> Result<Json<FieldsResponse>, ApiError> {
    app.work(|loaded, _| {
        let (mut fields, mut truncated) = (Map::new(), false);
        for (name, values) in loaded.retriever.facets(VALUES + 1)? {
            truncated |= values.len() > VALUES;
            let text = |value: Value| match value {
                Value::String(text) => text,
                value => value.to_string(),
            };
            let values = values.into_iter().take(VALUES).map(|(value, count)| (text(value), count.into()));
            fields.insert(name, Value::Object(values.collect()));
        }
        Ok(Json(FieldsResponse { fields, truncated }))
    })
    .await
}

/// What is loaded.
#[derive(Debug, Serialize)]
pub struct StatsResponse {
    #[serde(flatten)]
    stats: Stats,
    reranker: bool,
    version: &'static str,
}

/// Number of documents and what they are encoded with.
#[utoipa::path(get, path = "/stats", responses((status = 200, description = "Numbers", body = Object)))]
pub async fn stats(State(app): State<Arc<App>>) -> Result<Json<StatsResponse>, ApiError> {
    app.look(|loaded| {
        let (stats, reranker) = (loaded.retriever.stats()?, loaded.reranker.is_some());
        Ok(Json(StatsResponse { stats, reranker, version: env!("CARGO_PKG_VERSION") }))
    })
    .await
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        Self::Validation(models::error::sentence(&error))
    }
}
