"""LiteLLM."""
import litellm

from common import KEY, QUERIES, TEXTS, URL, check_indices, check_vectors, refuses

litellm.suppress_debug_info = True
common = {"api_key": KEY, "timeout": 120}


def vectors(model, texts, **more):
    answer = litellm.embedding(model=model, input=texts, **common, **more)
    return [item["embedding"] for item in answer.data]


# The model name chooses the side, with the name of the interface before it.
for end in ["", "-cosine"]:
    openai = {"api_base": f"{URL}/v1"}
    documents = vectors(f"openai/rabtriever-document{end}", TEXTS, **openai)
    for query in QUERIES:
        check_vectors(f"litellm openai/{end}", query, vectors(f"openai/rabtriever-query{end}", [query], **openai)[0], documents)

for model, base in [("cohere/rabtriever", f"{URL}/v2/rerank"), ("hosted_vllm/rabtriever", URL), ("jina_ai/rabtriever", f"{URL}/v1/rerank")]:
    for query in QUERIES:
        ranked = litellm.rerank(model=model, query=query, documents=TEXTS, top_n=5, api_base=base, **common)
        check_indices(f"litellm {model}", query, [result["index"] for result in ranked.results])

refuses("litellm", litellm.AuthenticationError, lambda: litellm.embedding(
    model="openai/rabtriever", input=["x"], api_base=f"{URL}/v1", api_key="wrong"), "key")
print("litellm: ok")
