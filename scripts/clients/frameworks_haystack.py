"""Haystack."""
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import CohereDocumentEmbedder, CohereTextEmbedder
from haystack_integrations.components.rankers.cohere import CohereRanker

from common import IDS, KEY, QUERIES, TEXTS, TOTAL, URL, check_order, get

key = Secret.from_token(KEY)
documents = [Document(id=id, content=text) for id, text in zip(IDS, TEXTS)]


def try_pair(who, of_documents, of_queries, similarity):
    store = InMemoryDocumentStore(embedding_similarity_function=similarity)
    store.write_documents(of_documents.run(documents=documents)["documents"])
    retriever = InMemoryEmbeddingRetriever(store, top_k=5)
    for query in QUERIES:
        found = retriever.run(query_embedding=of_queries.run(text=query)["embedding"])["documents"]
        check_order(who, query, [document.id for document in found])


# Two components for the two sides: each gets the model name of its side. raise_on_failure: documents without vectors are no index.
for end, similarity in [("", "dot_product"), ("-cosine", "cosine")]:
    openai = {"api_key": key, "api_base_url": f"{URL}/v1", "timeout": 120, "max_retries": 2}
    try_pair(
        f"haystack, OpenAI, {similarity}",
        OpenAIDocumentEmbedder(model=f"rabtriever-document{end}", raise_on_failure=True, **openai),
        OpenAITextEmbedder(model=f"rabtriever-query{end}", **openai),
        similarity,
    )
# Cohere's components send their sides by themselves.
cohere = {"api_key": key, "api_base_url": URL, "model": "rabtriever", "timeout": 120}
try_pair("haystack, Cohere", CohereDocumentEmbedder(**cohere), CohereTextEmbedder(**cohere), "dot_product")
ranker = CohereRanker(model="rabtriever", api_key=key, api_base_url=URL, top_k=5)
for query in QUERIES:
    check_order("haystack, Cohere ranker", query, [document.id for document in ranker.run(query=query, documents=documents)["documents"]])

# Its filters are taken as they are. No document of a test index has this field: none may be found, all by its opposite.
for operator, expected in [("==", 0), ("!=", TOTAL)]:
    condition = {"field": "meta.test_of_clients", "operator": operator, "value": "x"}
    for filter in [condition, {"operator": "AND", "conditions": [condition]}]:
        found = get("/query", {"query": QUERIES[0], "k": TOTAL, "filter": filter})["results"]
        assert len(found) == expected, (filter, len(found))
print("haystack: ok")
