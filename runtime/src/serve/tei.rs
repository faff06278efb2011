//! text-embeddings-inference's routes. As there, unknown fields are ignored, and `null` is what is not set.

use super::app::App;
use super::embed::{self, End, Wanted};
use super::error::{ApiError, Kind};
use super::extract::Body;
use super::jina;
use super::rank::{self, Ranked};
use super::role::{Asked, Word};
use super::texts::{Text, Texts};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use models::manifest::Precision;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

/// A refusal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Refusal)]
pub struct ErrorBody {
    /// One sentence.
    error: String,
    /// `Validation`, `Overloaded`, `Backend`, ...
    error_type: &'static str,
}

impl ErrorBody {
    /// What it is told as here.
    pub fn of(error: &ApiError) -> Self {
        let error_type = match error.kind {
            Kind::Malformed => "Malformed",
            Kind::Validation | Kind::TooLarge => "Validation",
            Kind::NoKey | Kind::WrongKey => "Unauthorized",
            Kind::Host => "Forbidden",
            Kind::NotFound => "NotFound",
            Kind::Method => "Method",
            Kind::Overloaded => "Overloaded",
            Kind::Timeout | Kind::Unfinished => "Timeout",
            Kind::Stopping | Kind::Unavailable => "Unhealthy",
            Kind::Busy => "Busy",
            Kind::Backend => "Backend",
        };
        Self { error: error.message.clone(), error_type }
    }
}

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EmbedRequest {
    inputs: Texts,
    /// Whether texts longer than the prompt allows may be cut, as they are by default; otherwise they are refused.
    truncate: Option<bool>,
    /// Which end is cut is the prompt's to say; `Left` is refused where it cuts the other.
    truncation_direction: Option<End>,
    /// `query` or `document`; the server's default is `document`, unless it was started otherwise.
    prompt_name: Option<Word>,
    /// Scale vectors to length 1; false by default, unlike there. The ranking by the cosine of plain vectors is not that of
    /// `/query`: a `prompt_name` that ends in -cosine gives vectors of length 1 that rank as it does.
    normalize: Option<bool>,
    /// Only the full length is possible.
    dimensions: Option<usize>,
}

/// Embeddings, as text-embeddings-inference gives them.
#[utoipa::path(
    post, path = "/embed", request_body = EmbedRequest,
    responses((status = 200, description = "A vector for each text", body = Vec<Vec<f32>>))
)]
pub async fn embed(
    State(app): State<Arc<App>>,
    Body(request): Body<EmbedRequest>,
) -> Result<Json<Vec<Vec<f32>>>, ApiError> {
    Ok(Json(embedded(app, request).await?))
}

async fn embedded(app: Arc<App>, request: EmbedRequest) -> Result<Vec<Vec<f32>>, ApiError> {
    let Texts(texts) = request.inputs;
    embed::some(&app, texts.len(), "inputs")?;
    let asked = Asked::default().and(None, request.prompt_name, "prompt_name")?;
    let wanted = Wanted {
        side: asked.or(&app.defaults),
        truncate: request.truncate.unwrap_or(true),
        end: request.truncation_direction,
        dimensions: request.dimensions,
        field: "inputs",
    };
    let (mut vectors, _) = app.work(move |job| embed::vectors(job, &texts, wanted)).await?;
    if request.normalize.unwrap_or(false) {
        vectors.iter_mut().for_each(|vector| embed::normalise(vector));
    }
    Ok(vectors)
}

/// A text and others to compare it with.
#[derive(Debug, Deserialize, ToSchema)]
pub struct SimilarityRequest {
    inputs: SimilarityInputs,
}

/// The texts.
#[derive(Debug, Deserialize, ToSchema)]
pub struct SimilarityInputs {
    /// What is looked for.
    source_sentence: String,
    /// What is found.
    sentences: Vec<Text>,
}

/// How well each sentence answers the source sentence, by the student: a calibrated probability, which ranks as `/query`
/// does. There, it is the cosine of two vectors of one kind.
#[utoipa::path(
    post, path = "/similarity", request_body = SimilarityRequest,
    responses((status = 200, description = "A number for each sentence, in their order", body = Vec<f32>))
)]
pub async fn similarity(
    State(app): State<Arc<App>>,
    Body(request): Body<SimilarityRequest>,
) -> Result<Json<Vec<f32>>, ApiError> {
    Ok(Json(similar(app, request.inputs).await?))
}

async fn similar(app: Arc<App>, inputs: SimilarityInputs) -> Result<Vec<f32>, ApiError> {
    let SimilarityInputs { source_sentence, sentences } = inputs;
    let texts: Vec<String> = sentences.into_iter().map(|Text(text)| text).collect();
    embed::some(&app, texts.len(), "inputs")?;
    app.work(move |job| {
        let scores = rank::student(job, &source_sentence, &texts, "sentences")?;
        Ok(scores.into_iter().map(|(_, probability)| probability).collect())
    })
    .await
}

/// Texts to rank: `texts`, and the answer is text-embeddings-inference's; or `documents`, and it is that of Jina, vLLM and
/// Infinity, who have this route too.
#[derive(Debug, Deserialize, ToSchema)]
pub struct RerankRequest {
    query: String,
    texts: Option<Vec<Text>>,
    /// `log p(T) - log p(F)` instead of a probability.
    raw_scores: Option<bool>,
    return_text: Option<bool>,
    documents: Option<Vec<Text>>,
    /// With `documents`: most of them in the answer.
    top_n: Option<usize>,
    /// With `documents`: whether they are told back, as they are by default.
    return_documents: Option<bool>,
    /// With `documents`: told back.
    model: Option<String>,
}

/// One text's place.
#[derive(Debug, Serialize, ToSchema)]
pub struct Rank {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    text: Option<String>,
}

/// Both answers of `/rerank`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum RerankResponse {
    /// For `texts`.
    Texts(Vec<Rank>),
    /// For `documents`.
    Documents(jina::RerankResponse),
}

/// Ranks texts, best first, as text-embeddings-inference does (`texts`) or as Jina, vLLM and Infinity do (`documents`).
#[utoipa::path(
    post, path = "/rerank", operation_id = "tei_rerank", request_body = RerankRequest,
    responses((status = 200, description = "Best first", body = RerankResponse))
)]
pub async fn rerank(
    State(app): State<Arc<App>>,
    Body(request): Body<RerankRequest>,
) -> Result<Json<RerankResponse>, ApiError> {
    Ok(Json(reranked(app, request).await?))
}

async fn reranked(app: Arc<App>, request: RerankRequest) -> Result<RerankResponse, ApiError> {
    let RerankRequest { query, texts, raw_scores, return_text, documents, top_n, return_documents, model } =
        request;
    let raw = raw_scores.unwrap_or(false);
    let given = match (texts, documents) {
        (Some(texts), None) => texts,
        (None, Some(documents)) => {
            let wanted =
                jina::Wanted { raw, top_n, return_documents: return_documents.unwrap_or(true), model };
            return Ok(RerankResponse::Documents(jina::reranked(app, query, documents, wanted).await?));
        }
        (Some(_), Some(_)) => {
            let error = "both `texts` and `documents` are given; send `texts` for an answer as text-embeddings-inference \
                 gives it, or `documents` for one as Jina and vLLM do";
            return Err(ApiError::validation(error).of("documents"));
        }
        (None, None) => {
            return Err(ApiError::validation("missing field `texts` (or `documents`)").of("texts"));
        }
    };
    let texts: Arc<[String]> = given.into_iter().map(|Text(text)| text).collect();
    let ranked = rank::ranked(app, query, Arc::clone(&texts), "texts").await?;
    let rank = |Ranked { index, score, probability }| Rank {
        index,
        score: if raw { score } else { probability },
        text: return_text.unwrap_or(false).then(|| texts[index].clone()),
    };
    Ok(RerankResponse::Texts(ranked.into_iter().map(rank).collect()))
}

/// What `POST /` takes: `inputs` as in `/embed`, `inputs` with a `source_sentence` as in `/similarity`, or `query` as in
/// `/rerank`. Deployed models are asked there, by clients that know nothing but an address.
#[derive(Debug)]
pub struct RootRequest;

impl PartialSchema for RootRequest {
    fn schema() -> RefOr<Schema> {
        let routes = [EmbedRequest::name(), SimilarityRequest::name(), RerankRequest::name()];
        routes
            .iter()
            .fold(OneOfBuilder::new(), |all, name| all.item(Ref::from_schema_name(name.as_ref())))
            .into()
    }
}

impl ToSchema for RootRequest {}

/// What `POST /` answers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum RootResponse {
    /// As `/rerank` does.
    Rerank(RerankResponse),
    /// As `/similarity` does.
    Similarity(Vec<f32>),
    /// As `/embed` does.
    Embed(Vec<Vec<f32>>),
}

/// `/embed`, `/similarity` or `/rerank`, by what is sent: text-embeddings-inference's root, where Hugging Face's clients ask.
#[utoipa::path(
    post, path = "/", request_body = RootRequest,
    responses((status = 200, description = "As the route that is meant answers", body = RootResponse))
)]
pub async fn root(
    State(app): State<Arc<App>>,
    Body(request): Body<serde_json::Map<String, serde_json::Value>>,
) -> Response {
    let answer = async {
        // Not read as an untagged enum: which field is wrong is told by the route that is meant.
        Ok(if request.contains_key("query") {
            RootResponse::Rerank(reranked(app, read(request)?).await?)
        } else if request.get("inputs").is_some_and(serde_json::Value::is_object) {
            RootResponse::Similarity(similar(app, read::<SimilarityRequest>(request)?.inputs).await?)
        } else {
            RootResponse::Embed(embedded(app, read(request)?).await?)
        })
    };
    let answer: Result<RootResponse, ApiError> = answer.await;
    answer.map(Json).into_response()
}

fn read<T: serde::de::DeserializeOwned>(
    request: serde_json::Map<String, serde_json::Value>,
) -> Result<T, ApiError> {
    super::extract::read(serde_json::Value::Object(request))
}

/// What is served.
#[derive(Debug, Serialize, ToSchema)]
pub struct InfoResponse {
    model_id: String,
    /// Digest of what the vectors depend on.
    model_sha: String,
    model_dtype: &'static str,
    served_model_name: String,
    model_type: ModelType,
    max_concurrent_requests: usize,
    /// Tokens of a document that are read.
    max_input_length: usize,
    max_batch_tokens: usize,
    max_batch_requests: usize,
    /// Most texts of a request.
    max_client_batch_size: usize,
    auto_truncate: bool,
    tokenization_workers: usize,
    version: &'static str,
    sha: Option<&'static str>,
    docker_label: Option<&'static str>,
}

/// What kind of model it is: the name of its kind, and what is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelType {
    embedding: EmbeddingModel,
}

/// One that embeds.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingModel {
    /// How a text's tokens become one vector.
    pooling: &'static str,
}

/// What is served, as text-embeddings-inference tells it.
#[utoipa::path(get, path = "/info", responses((status = 200, description = "Model and limits", body = InfoResponse)))]
pub async fn info(State(app): State<Arc<App>>) -> Json<InfoResponse> {
    let loaded = app.loaded();
    let bundle = loaded.retriever.encoder().bundle();
    let (manifest, model) = (&bundle.manifest, &app.defaults.model);
    Json(InfoResponse {
        model_id: model.clone(),
        model_sha: manifest.document_digest.clone(),
        model_dtype: match manifest.encoder.precision {
            Precision::Fp32 => "float32",
            Precision::Fp16 => "float16",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        },
        served_model_name: model.clone(),
        model_type: ModelType { embedding: EmbeddingModel { pooling: "mean" } },
        max_concurrent_requests: app.limits.requests,
        max_input_length: bundle.prompter.template().document.max_tokens,
        max_batch_tokens: crate::encoder::TOKENS_PER_BATCH,
        max_batch_requests: app.limits.batch,
        max_client_batch_size: app.limits.items,
        auto_truncate: true,
        tokenization_workers: app.limits.requests,
        version: env!("CARGO_PKG_VERSION"),
        sha: None,
        docker_label: None,
    })
}

/// Texts to take apart.
#[derive(Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    inputs: Texts,
}

/// A token of a text.
#[derive(Debug, Serialize, ToSchema)]
pub struct SimpleToken {
    id: u32,
    /// The part of the text that it stands for.
    text: String,
    special: bool,
    /// First byte of that part.
    start: usize,
    /// First byte behind it.
    stop: usize,
}

/// Tokens of each text, without the prompt and before anything is cut off.
#[utoipa::path(
    post, path = "/tokenize", request_body = TokenizeRequest,
    responses((status = 200, description = "Tokens of each text", body = Vec<Vec<SimpleToken>>))
)]
pub async fn tokenize(
    State(app): State<Arc<App>>,
    Body(TokenizeRequest { inputs: Texts(texts) }): Body<TokenizeRequest>,
) -> Result<Json<Vec<Vec<SimpleToken>>>, ApiError> {
    embed::some(&app, texts.len(), "inputs")?;
    app.work(move |job| {
        let prompter = &job.loaded.retriever.encoder().bundle().prompter;
        let mut all = Vec::with_capacity(texts.len());
        for text in &texts {
            job.wanted()?;
            let token = |token: models::prompt::Token| {
                let (id, start, stop) = (token.id, token.bytes.start, token.bytes.end);
                let part = text.as_bytes().get(token.bytes).unwrap_or_default();
                // Texts are data: no token of theirs is a special one.
                SimpleToken {
                    id,
                    text: String::from_utf8_lossy(part).into_owned(),
                    special: false,
                    start,
                    stop,
                }
            };
            all.push(prompter.tokens(text)?.into_iter().map(token).collect());
        }
        Ok(Json(all))
    })
    .await
}
