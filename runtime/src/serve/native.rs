//! Our own routes: queries, documents, what there is.

use super::app::App;
use super::error::{ApiError, Kind};
use super::extract::{Body, Parameters, Part};
use super::tei::ErrorBody;
use super::work::Job;
use crate::document::{Document, MOST_FIELDS};
use crate::filter::Filter;
use crate::ingest::{self, AddReport};
use crate::retriever::{Answer, Retriever, Stats, Wanted};
use crate::store;
use axum::Json;
use axum::extract::State;
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
    /// Most results; 5 by default.
    k: Option<usize>,
    /// Condition on metadata, in MongoDB's form.
    #[schema(value_type = Option<Object>, example = json!({"room": "kitchen", "floor": {"$gte": 1}}))]
    filter: Option<Filter>,
    /// Documents that the teacher reads anew, where one is loaded.
    rerank: Option<usize>,
    /// Tell what each score is made of.
    explain: Option<bool>,
}

/// Results where their number is not said.
const RESULTS: usize = 5;

/// An answer, with its question.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueryResponse {
    query: String,
    #[serde(flatten)]
    answer: Answer,
}

/// Documents that best answer a query, best first.
#[utoipa::path(
    post, path = "/query", request_body = QueryRequest,
    responses((status = 200, description = "Best first", body = QueryResponse))
)]
pub async fn query(
    State(app): State<Arc<App>>,
    Body(request): Body<QueryRequest>,
) -> Result<Json<QueryResponse>, ApiError> {
    let k = request.k.unwrap_or(RESULTS);
    app.within("results", k).map_err(|error| error.of("k"))?;
    app.work(move |job| {
        let QueryRequest { query, filter, rerank, explain, .. } = request;
        let wanted = Wanted { k, filter, explain: explain.unwrap_or(false) };
        let answer = match rerank.filter(|&candidates| candidates > 0) {
            None => ask(job, &query, wanted)?,
            Some(candidates) => ask_teacher(job, &query, wanted, candidates)?,
        };
        Ok(Json(QueryResponse { query, answer }))
    })
    .await
}

fn ask(job: &Job, text: &str, wanted: Wanted) -> Result<Answer, ApiError> {
    let retriever: &Retriever = &job.loaded.retriever;
    let started = Instant::now();
    let pass = retriever.encoder().query_pass(text)?;
    let tokenised = Instant::now();
    let embeddings = job.encode(&[pass])?;
    let queries = [retriever.encoder().fold_query(&embeddings[0])];
    let encoded = Instant::now();
    let mut answer = retriever.answer(&queries, &wanted)?.swap_remove(0);
    answer.timing.tokenise = milliseconds(tokenised - started);
    answer.timing.encode = milliseconds(encoded - tokenised);
    Ok(answer)
}

/// The student's best candidates, read anew by the teacher, one by one: between two, it is seen whether anybody still waits.
fn ask_teacher(job: &Job, text: &str, wanted: Wanted, candidates: usize) -> Result<Answer, ApiError> {
    let Some(reranker) = &job.loaded.reranker else {
        return Err(
            ApiError::validation("no reranker is loaded; start the server with --reranker").of("rerank")
        );
    };
    let most = job.app.limits.rerank;
    if candidates > most {
        let error =
            format!("rerank {candidates}: at most {most} documents are read for a query (--max-rerank)");
        return Err(ApiError::validation(error).of("rerank"));
    }
    let k = wanted.k;
    if k == 0 {
        return Err(crate::retriever::RetrieverError::ZeroResults.into());
    }
    let answer = ask(job, text, Wanted { k: candidates.max(k), ..wanted })?;
    answer.reranked(k, candidates, |contents| {
        job.wanted()?;
        Ok(reranker.scores(text, &[contents])?)
    })
}

fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A document.
#[derive(ToSchema)]
#[schema(as = Document)]
#[allow(dead_code, reason = "describes crate::document::Document")]
pub struct DocumentBody {
    /// Unique in the index.
    id: String,
    /// May be empty, where there is a text.
    #[schema(required = false)]
    title: String,
    /// May be empty, where there is a title.
    #[schema(required = false)]
    text: String,
    /// What it can be filtered by: field to value.
    #[schema(required = false, value_type = Object)]
    metadata: Map<String, Value>,
}

/// Documents to be added.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// Those to be added.
    #[schema(value_type = Vec<DocumentBody>, example = json!([{"id": "dry-floor", "title": "Dry the floor", "text": "The robot ...", "metadata": {"room": "kitchen"}}]))]
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

/// Adds documents, replaces changed ones, skips the rest; durable when answered. What was stored before a refusal stays, and
/// the same can be sent again.
#[utoipa::path(
    post, path = "/documents", request_body = AddRequest,
    responses(
        (status = 200, description = "Durable", body = AddResponse),
        (status = 409, description = "Another process changes the index", body = ErrorBody)
    )
)]
pub async fn add(
    State(app): State<Arc<App>>,
    Body(AddRequest { documents }): Body<AddRequest>,
) -> Result<Json<AddResponse>, ApiError> {
    app.within("documents", documents.len()).map_err(|error| error.of("documents"))?;
    app.change(move |job| {
        check(&documents).map_err(|error| error.of("documents"))?;
        let retriever = &job.loaded.retriever;
        let mut sum = AddReport::default();
        // Each is durable for itself; between two, it is seen whether anybody still waits.
        for documents in documents.chunks(ingest::BATCH) {
            job.wanted()?;
            let AddReport { added, replaced, unchanged } = retriever.add(documents)?;
            sum = AddReport {
                added: sum.added + added,
                replaced: sum.replaced + replaced,
                unchanged: sum.unchanged + unchanged,
            };
        }
        let AddReport { added, replaced, unchanged } = sum;
        let generation = retriever.stats()?.generation;
        Ok(Json(AddResponse { added, replaced, unchanged, generation }))
    })
    .await
}

/// Refuses what cannot be added before anything is.
fn check(documents: &[Document]) -> Result<(), ApiError> {
    if let Some(document) = documents.iter().find(|document| document.id.is_empty()) {
        return Err(ApiError::validation(format!("the id of {:?} is empty", document.text)));
    }
    if let Some(Document { id, .. }) = documents.iter().find(|document| document.contents().is_empty()) {
        let error = format!("document `{id}` has neither title nor text; there is nothing to encode");
        return Err(ApiError::validation(error));
    }
    if let Some(document) = documents.iter().find(|document| document.fields() > MOST_FIELDS) {
        let (id, fields) = (&document.id, document.fields());
        let error = format!("document `{id}` has {fields} metadata fields, at most {MOST_FIELDS} are taken");
        return Err(ApiError::validation(error));
    }
    match store::duplicate_id(documents) {
        Some(id) => Err(crate::retriever::RetrieverError::Duplicate { id: id.to_owned() }.into()),
        None => Ok(()),
    }
}

/// A page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Documents before it.
    #[serde(default)]
    #[param(default = 0)]
    offset: usize,
    /// Most documents in it.
    #[serde(default = "fifty")]
    #[param(default = 50)]
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
    #[schema(value_type = Vec<DocumentBody>)]
    documents: Vec<Document>,
}

/// Documents in the order in which they came.
#[utoipa::path(get, path = "/documents", params(Page), responses((status = 200, description = "A page", body = ListResponse)))]
pub async fn list(
    State(app): State<Arc<App>>,
    Parameters(Page { offset, limit }): Parameters<Page>,
) -> Result<Json<ListResponse>, ApiError> {
    app.within("documents", limit)?;
    app.work(move |job| {
        let documents = job.loaded.retriever.documents(offset, limit)?;
        Ok(Json(ListResponse { total: job.loaded.retriever.stats()?.documents, documents }))
    })
    .await
}

/// One document.
#[utoipa::path(
    get, path = "/documents/{id}", params(("id" = String, Path, description = "The document")),
    responses((status = 200, description = "The document", body = DocumentBody), (status = 404, description = "Unknown", body = ErrorBody))
)]
pub async fn get(State(app): State<Arc<App>>, Part(id): Part<String>) -> Result<Json<Document>, ApiError> {
    app.work(move |job| {
        let found = job.loaded.retriever.document(&id)?;
        found.map(Json).ok_or_else(|| absent(&id))
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
    responses(
        (status = 200, description = "Durable", body = RemoveResponse),
        (status = 404, description = "Unknown", body = ErrorBody),
        (status = 409, description = "Another process changes the index", body = ErrorBody)
    )
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    Part(id): Part<String>,
) -> Result<Json<RemoveResponse>, ApiError> {
    app.change(move |job| match job.loaded.retriever.remove(&[&id])? {
        0 => Err(absent(&id)),
        removed => Ok(Json(RemoveResponse { removed })),
    })
    .await
}

/// Removes documents; durable when answered.
#[utoipa::path(
    post, path = "/documents/remove", request_body = RemoveRequest,
    responses(
        (status = 200, description = "Durable", body = RemoveResponse),
        (status = 409, description = "Another process changes the index", body = ErrorBody)
    )
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    Body(RemoveRequest { ids }): Body<RemoveRequest>,
) -> Result<Json<RemoveResponse>, ApiError> {
    app.within("ids", ids.len())?;
    app.change(move |job| Ok(Json(RemoveResponse { removed: job.loaded.retriever.remove(&ids)? }))).await
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
    app.work(|job| {
        let (mut fields, mut truncated) = (Map::new(), false);
        for (name, values) in job.loaded.retriever.facets(VALUES + 1)? {
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
#[derive(Debug, Serialize, ToSchema)]
pub struct StatsResponse {
    #[serde(flatten)]
    stats: Stats,
    reranker: bool,
    version: &'static str,
}

/// Number of documents and what they are encoded with.
#[utoipa::path(get, path = "/stats", responses((status = 200, description = "Numbers", body = StatsResponse)))]
pub async fn stats(State(app): State<Arc<App>>) -> Result<Json<StatsResponse>, ApiError> {
    app.look(|loaded| {
        let (stats, reranker) = (loaded.retriever.stats()?, loaded.reranker.is_some());
        Ok(Json(StatsResponse { stats, reranker, version: env!("CARGO_PKG_VERSION") }))
    })
    .await
}

fn absent(id: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("there is no document `{id}`"))
}
