"""The vendors' own clients of Python, and Prometheus' parsers."""
import urllib.request

import cohere
import openai
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from common import KEY, QUERIES, TEXTS, URL, check_indices, check_vectors, refuses

# --- openai ---
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, timeout=120, max_retries=2)
names = [model.id for model in client.models.list()]
assert {"rabtriever", "rabtriever-query", "rabtriever-document"} <= set(names), names
assert client.models.retrieve("rabtriever-query").id == "rabtriever-query"
for end in ["", "-cosine"]:
    answer = client.embeddings.create(model=f"rabtriever-document{end}", input=TEXTS)
    assert [item.index for item in answer.data] == list(range(len(TEXTS))) and answer.usage.total_tokens > len(TEXTS)
    vectors = [item.embedding for item in answer.data]
    for query in QUERIES:
        vector = client.embeddings.create(model=f"rabtriever-query{end}", input=query).data[0].embedding
        check_vectors(f"openai{end}", query, vector, vectors)
plain = client.embeddings.create(model="rabtriever-query", input=QUERIES[0], encoding_format="float").data[0].embedding
packed = client.embeddings.create(model="rabtriever-query", input=QUERIES[0]).data[0].embedding
assert plain == packed or max(abs(a - b) for a, b in zip(plain, packed)) < 1e-5, "base64 and float differ"
refuses("openai", openai.UnprocessableEntityError, lambda: client.embeddings.create(model="rabtriever", input=[[1, 2]]), "text")
refuses("openai", openai.UnprocessableEntityError, lambda: client.embeddings.create(model="rabtriever", input="x", dimensions=3), "dimensions")
refuses("openai", openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list(), "key")
refuses("openai", openai.NotFoundError, lambda: client.models.retrieve("gpt-4"), "/v1/models")

# --- cohere ---
client = cohere.ClientV2(api_key=KEY, base_url=URL, timeout=120)
vectors = client.embed(model="rabtriever", input_type="search_document", texts=TEXTS, embedding_types=["float"]).embeddings.float_
for query in QUERIES:
    found = client.embed(model="rabtriever", input_type="search_query", texts=[query], embedding_types=["float"])
    check_vectors("cohere v2", query, found.embeddings.float_[0], vectors)
    ranked = client.rerank(model="rabtriever", query=query, documents=TEXTS, top_n=5)
    assert len(ranked.results) == 5
    check_indices("cohere v2 rerank", query, [result.index for result in ranked.results])
refuses("cohere", cohere.UnauthorizedError, lambda: cohere.ClientV2(api_key="wrong", base_url=URL).embed(
    model="rabtriever", input_type="search_query", texts=["x"], embedding_types=["float"]), "key")
client = cohere.Client(api_key=KEY, base_url=URL, timeout=120)
vectors = client.embed(model="rabtriever", input_type="search_document", texts=TEXTS).embeddings
for query in QUERIES:
    check_vectors("cohere v1", query, client.embed(model="rabtriever", input_type="search_query", texts=[query]).embeddings[0], vectors)
    ranked = client.rerank(model="rabtriever", query=query, documents=[{"text": text} for text in TEXTS], return_documents=True)
    check_indices("cohere v1 rerank", query, [result.index for result in ranked.results])
    assert ranked.results[0].document.text == TEXTS[ranked.results[0].index]

# --- huggingface_hub, which speaks to text-embeddings-inference ---
client = InferenceClient(model=URL, token=KEY, timeout=120)
vectors = [client.feature_extraction(text, prompt_name="document")[0] for text in TEXTS]
for query in QUERIES:
    check_vectors("huggingface_hub", query, client.feature_extraction(query, prompt_name="query")[0], vectors)
similar = client.sentence_similarity(QUERIES[0], other_sentences=TEXTS)
check_indices("huggingface_hub sentence_similarity", QUERIES[0], sorted(range(len(TEXTS)), key=lambda place: -similar[place]))
refuses("huggingface_hub", HfHubHTTPError, lambda: client.feature_extraction("x", prompt_name="clustering"), "422")


# --- Prometheus ---
def metrics(accept):
    request = urllib.request.Request(f"{URL}/metrics", headers={"Authorization": f"Bearer {KEY}", "Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


for accept, kind, read in [
    ("text/plain;version=0.0.4", "text/plain", parser.text_string_to_metric_families),
    ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", "application/openmetrics-text",
     openmetrics_parser.text_string_to_metric_families),
]:
    content_type, text = metrics(accept)
    assert content_type.startswith(kind), (accept, content_type)
    families = {family.name: family for family in read(text)}
    counted = [sample for family in families.values() for sample in family.samples if sample.labels.get("route", sample.labels.get("path", "")) == "/v1/embeddings"]
    assert any(sample.value >= 4 for sample in counted), f"{kind}: nothing counts the requests to /v1/embeddings"
    print(f"prometheus: {kind}: {len(families)} families")
print("plain: ok")
