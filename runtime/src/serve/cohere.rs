//! Cohere's routes, versions 1 and 2. Their clients say unasked which side of the score a text is on.

use super::app::App;
use super::embed::{self, End, Wanted};
use super::error::{ApiError, Kind};
use super::extract::Body;
use super::jina::TextObject;
use super::openai;
use super::rank::{self, Ranked};
use super::role::{Asked, Word};
use super::texts::Text;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use models::files::sha256_parts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

/// A refusal: `message` for Cohere's clients, and beside it what vLLM's and LiteLLM's read, which ask on these routes too.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereRefusal)]
pub struct ErrorBody {
    /// One sentence.
    message: String,
    error: openai::ErrorObject,
}

impl ErrorBody {
    /// What it is told as here.
    pub fn of(error: &ApiError, status: StatusCode) -> Self {
        Self { message: error.message.clone(), error: openai::ErrorObject::of(error, status) }
    }
}

/// About the answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereMeta)]
pub struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
}

/// Version of Cohere's interface.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApiVersion {
    version: &'static str,
    is_experimental: bool,
}

/// Costs nothing, and is part of the shape.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct BilledUnits {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    input_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    search_units: Option<u32>,
}

impl Meta {
    fn new(version: &'static str, billed_units: BilledUnits) -> Self {
        Self { api_version: ApiVersion { version, is_experimental: false }, billed_units }
    }
}

/// The same request has the same id: nothing here is random.
fn id<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut id = sha256_parts(parts.into_iter().map(str::as_bytes));
    id.truncate(32);
    id
}

/// Texts to embed; fields of Cohere's that mean nothing here are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CohereEmbedRequest)]
pub struct EmbedRequest {
    texts: Option<Vec<Text>>,
    /// Version 2: the texts as lists of contents, of which only text is read.
    inputs: Option<Vec<Input>>,
    /// Only texts are read.
    images: Option<Vec<String>>,
    /// A name that ends in -cosine asks for vectors whose cosine ranks as `/query` does.
    #[schema(example = "rabtriever")]
    model: Option<String>,
    /// `search_query` or `search_document`; the server's default is the latter, unless it was started otherwise.
    input_type: Option<Word>,
    /// `float` (the default) and `base64`.
    embedding_types: Option<Vec<EmbeddingType>>,
    truncate: Option<Truncate>,
    /// Only the full length is possible.
    output_dimension: Option<usize>,
}

/// One text of several contents.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CohereInput)]
pub struct Input {
    content: Vec<Text>,
}

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingType {
    /// As numbers.
    Float,
    /// As little-endian 32-bit floats in base64.
    Base64,
}

/// What becomes of texts longer than the prompt allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Truncate {
    /// They are refused.
    None,
    /// Their beginning is dropped.
    Start,
    /// Their end is dropped.
    End,
}

/// Embeddings: of version 1 without `embedding_types`, a list of vectors, else by type.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereEmbedResponse)]
pub struct EmbedResponse {
    response_type: ResponseType,
    id: String,
    texts: Vec<String>,
    embeddings: Embeddings,
    meta: Meta,
}

/// Which of the two shapes it is.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseType {
    /// A list of vectors.
    EmbeddingsFloats,
    /// By type.
    EmbeddingsByType,
}

/// A vector for each text.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Embeddings {
    /// A list of vectors.
    Floats(Vec<Vec<f32>>),
    /// By type, those that were asked for.
    ByType(ByType),
}

/// Vectors as they were asked for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereEmbeddings)]
pub struct ByType {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    float: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    base64: Option<Vec<String>>,
}

/// Embeddings, as Cohere's version 1 gives them.
#[utoipa::path(
    post, path = "/v1/embed", operation_id = "cohere_embed_v1", request_body = EmbedRequest,
    responses((status = 200, description = "A vector for each text", body = EmbedResponse))
)]
pub async fn embed_v1(
    State(app): State<Arc<App>>,
    Body(request): Body<EmbedRequest>,
) -> Result<Json<EmbedResponse>, ApiError> {
    embedded(app, request, "1").await
}

/// Embeddings, as Cohere's version 2 gives them.
#[utoipa::path(
    post, path = "/v2/embed", operation_id = "cohere_embed_v2", request_body = EmbedRequest,
    responses((status = 200, description = "A vector for each text", body = EmbedResponse))
)]
pub async fn embed_v2(
    State(app): State<Arc<App>>,
    Body(request): Body<EmbedRequest>,
) -> Result<Json<EmbedResponse>, ApiError> {
    embedded(app, request, "2").await
}

async fn embedded(
    app: Arc<App>,
    request: EmbedRequest,
    version: &'static str,
) -> Result<Json<EmbedResponse>, ApiError> {
    let EmbedRequest {
        texts,
        inputs,
        images,
        model,
        input_type,
        embedding_types,
        truncate,
        output_dimension,
    } = request;
    if images.is_some_and(|images| !images.is_empty()) {
        return Err(ApiError::validation("`images`: only texts are embedded here").of("images"));
    }
    let (texts, field) = match (texts, inputs) {
        (Some(texts), None) => (texts.into_iter().map(|Text(text)| text).collect(), "texts"),
        (None, Some(inputs)) => (inputs.into_iter().map(Input::text).collect(), "inputs"),
        (Some(_), Some(_)) => {
            return Err(ApiError::validation("both `texts` and `inputs` are given; send one").of("inputs"));
        }
        (None, None) => return Err(ApiError::validation("missing field `texts`").of("texts")),
    };
    let texts: Arc<[String]> = Vec::into(texts);
    embed::some(&app, texts.len(), field)?;
    let asked = Asked::of_model(model.as_deref()).and(model.as_deref(), input_type, "input_type")?;
    let end = match truncate {
        Some(Truncate::Start) => Some(End::Left),
        Some(Truncate::End) => Some(End::Right),
        Some(Truncate::None) | None => None,
    };
    let truncate = truncate != Some(Truncate::None);
    let wanted = Wanted { side: asked.or(&app.defaults), truncate, end, dimensions: output_dimension, field };
    let asked = Arc::clone(&texts);
    let (vectors, tokens) = app.work(move |job| embed::vectors(job, &asked, wanted)).await?;
    let types = embedding_types.unwrap_or_default();
    let (response_type, embeddings) = if types.is_empty() && version == "1" {
        (ResponseType::EmbeddingsFloats, Embeddings::Floats(vectors))
    } else {
        let base64 = types.contains(&EmbeddingType::Base64);
        let float = types.is_empty() || types.contains(&EmbeddingType::Float);
        let base64 = base64.then(|| vectors.iter().map(|vector| embed::base64(vector)).collect());
        (
            ResponseType::EmbeddingsByType,
            Embeddings::ByType(ByType { float: float.then_some(vectors), base64 }),
        )
    };
    let id = id(texts.iter().map(String::as_str));
    let meta = Meta::new(version, BilledUnits { input_tokens: Some(tokens), ..BilledUnits::default() });
    Ok(Json(EmbedResponse { response_type, id, texts: texts.to_vec(), embeddings, meta }))
}

impl Input {
    fn text(self) -> String {
        self.content.into_iter().map(|Text(text)| text).collect::<Vec<_>>().join("\n")
    }
}

/// A text, or an object with one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a text, or an object with one")]
#[schema(as = CohereDocument)]
pub enum Document {
    /// A text.
    Text(String),
    /// An object; `rank_fields` says which fields are read, `text` without it.
    #[schema(value_type = Object)]
    Object(Map<String, Value>),
}

/// Documents to rank; fields of Cohere's that mean nothing here are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CohereRerankRequest)]
pub struct RerankRequest {
    query: String,
    documents: Vec<Document>,
    top_n: Option<usize>,
    /// Version 1: whether documents are told back.
    return_documents: Option<bool>,
    /// Version 1: fields of documents that are read, in this order.
    rank_fields: Option<Vec<String>>,
}

/// Documents, best first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereRerankResponse)]
pub struct RerankResponse {
    id: String,
    results: Vec<Rank>,
    meta: Meta,
}

/// One document's place.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereRank)]
pub struct Rank {
    index: usize,
    /// Probability that the document answers the query.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    document: Option<TextObject>,
}

/// Ranks documents, as Cohere's version 1 does.
#[utoipa::path(
    post, path = "/v1/rerank", operation_id = "cohere_rerank_v1", request_body = RerankRequest,
    responses((status = 200, description = "Best first", body = RerankResponse))
)]
pub async fn rerank_v1(
    State(app): State<Arc<App>>,
    Body(request): Body<RerankRequest>,
) -> Result<Json<RerankResponse>, ApiError> {
    reranked(app, request, "1").await
}

/// Ranks documents, as Cohere's version 2 does.
#[utoipa::path(
    post, path = "/v2/rerank", operation_id = "cohere_rerank_v2", request_body = RerankRequest,
    responses((status = 200, description = "Best first", body = RerankResponse))
)]
pub async fn rerank_v2(
    State(app): State<Arc<App>>,
    Body(request): Body<RerankRequest>,
) -> Result<Json<RerankResponse>, ApiError> {
    reranked(app, RerankRequest { return_documents: None, ..request }, "2").await
}

async fn reranked(
    app: Arc<App>,
    request: RerankRequest,
    version: &'static str,
) -> Result<Json<RerankResponse>, ApiError> {
    let RerankRequest { query, documents, top_n, return_documents, rank_fields } = request;
    let fields = rank_fields.filter(|fields| !fields.is_empty()).unwrap_or_else(|| vec!["text".into()]);
    let mut texts = Vec::with_capacity(documents.len());
    for (place, document) in documents.into_iter().enumerate() {
        texts.push(document.text(place, &fields)?);
    }
    let texts: Arc<[String]> = texts.into();
    let id = id(std::iter::once(query.as_str()).chain(texts.iter().map(String::as_str)));
    let ranked = rank::ranked(app, query, Arc::clone(&texts), "documents").await?;
    let told = return_documents.unwrap_or(false);
    let rank = |Ranked { index, probability, .. }| Rank {
        index,
        relevance_score: probability,
        document: told.then(|| TextObject { text: texts[index].clone() }),
    };
    let results = ranked.into_iter().take(top_n.unwrap_or(usize::MAX)).map(rank).collect();
    let meta = Meta::new(version, BilledUnits { search_units: Some(1), ..BilledUnits::default() });
    Ok(Json(RerankResponse { id, results, meta }))
}

impl Document {
    /// What of it is read: a field that is not there is none, but not all of them.
    fn text(self, place: usize, fields: &[String]) -> Result<String, ApiError> {
        let object = match self {
            Self::Text(text) => return Ok(text),
            Self::Object(object) => object,
        };
        let read: Vec<&str> = fields.iter().filter_map(|field| object.get(field)?.as_str()).collect();
        if read.is_empty() {
            let error =
                format!("document {place}, counted from 0, has no text in the field {}", fields.join(", "));
            return Err(ApiError::new(Kind::Validation, error).of("documents"));
        }
        Ok(read.join("\n"))
    }
}
