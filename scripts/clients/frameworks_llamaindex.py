"""LlamaIndex."""
import openai
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.embeddings.cohere import CohereEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

from common import IDS, KEY, QUERIES, RANKED, TOTAL, URL, check_order, check_vectors, get, refuses
from common import TEXTS as WRITTEN

# LlamaIndex's embeddings for OpenAI send spaces for line breaks, which is another text to the server. Here every part gets such
# texts, and what /rerank makes of the same texts is right.
TEXTS = [text.replace("\n", " ") for text in WRITTEN]
for query in QUERIES:
    ranks = get("/rerank", {"query": query, "texts": TEXTS, "raw_scores": True})
    RANKED[query] = [IDS[rank["index"]] for rank in ranks]


def side(model):
    # 10 texts in a request unless told otherwise; 10 attempts are many for a server of one's own.
    return OpenAILikeEmbedding(model_name=model, api_base=f"{URL}/v1", api_key=KEY, embed_batch_size=50, timeout=120, max_retries=2)


class Rabtriever(BaseEmbedding):
    """OpenAILikeEmbedding sends queries and documents alike: a model name for each tells them apart."""

    queries: BaseEmbedding
    documents: BaseEmbedding

    def __init__(self, similarity=""):
        super().__init__(
            model_name="rabtriever",
            queries=side(f"rabtriever-query{similarity}"),
            documents=side(f"rabtriever-document{similarity}"),
            embed_batch_size=50,
        )

    def _get_query_embedding(self, query):
        return self.queries.get_query_embedding(query)

    async def _aget_query_embedding(self, query):
        return await self.queries.aget_query_embedding(query)

    def _get_text_embedding(self, text):
        return self.documents.get_text_embedding(text)

    def _get_text_embeddings(self, texts):
        return self.documents.get_text_embedding_batch(texts)


# An index of LlamaIndex's own compares by cosine.
nodes = [TextNode(id_=id, text=text) for id, text in zip(IDS, TEXTS)]
index = VectorStoreIndex(nodes, embed_model=Rabtriever("-cosine"))
retriever = index.as_retriever(similarity_top_k=5)
for query in QUERIES:
    check_order("llama-index, OpenAI-like", query, [found.node.node_id for found in retriever.retrieve(query)])
plain = Rabtriever()
vectors = plain.get_text_embedding_batch(TEXTS)
for query in QUERIES:
    check_vectors("llama-index, OpenAI-like, by inner product", query, plain.get_query_embedding(query), vectors)
refuses("llama-index, OpenAI-like", openai.NotFoundError, lambda: OpenAILikeEmbedding(
    model_name="rabtriever", api_base=f"{URL}/v3", api_key=KEY, max_retries=0).get_query_embedding("x"), "no such path")

# It takes no names of models but Cohere's own; the server takes any. Queries and documents it tells apart by itself.
cohere = CohereEmbedding(api_key=KEY, base_url=URL, model_name="embed-english-v3.0", embed_batch_size=50, timeout=120)
vectors = cohere.get_text_embedding_batch(TEXTS)
for query in QUERIES:
    check_vectors("llama-index, Cohere", query, cohere.get_query_embedding(query), vectors)

# text-embeddings-inference's part sends no role: what it embeds are documents, unless the server is told otherwise.
tei = TextEmbeddingsInference(model_name="rabtriever", base_url=URL, auth_token=KEY, embed_batch_size=50, timeout=120)
vectors = tei.get_text_embedding_batch(TEXTS)
for query in QUERIES:
    check_vectors("llama-index, text-embeddings-inference for documents", query, plain.get_query_embedding(query), vectors)

scored = [NodeWithScore(node=node, score=0.0) for node in nodes]
# Unlike its embedding part, this one sends the token as it is, without `Bearer`.
rerankers = {
    "Cohere reranker": CohereRerank(api_key=KEY, base_url=URL, model="rabtriever", top_n=5),
    "text-embeddings-inference reranker": TextEmbeddingInference(base_url=URL, auth_token=f"Bearer {KEY}", top_n=5, timeout=120),
}
for who, reranker in rerankers.items():
    for query in QUERIES:
        found = reranker.postprocess_nodes(scored, query_bundle=QueryBundle(query))
        check_order(f"llama-index, {who}", query, [node.node.node_id for node in found])

# Its filters are taken as they are dumped. No document of a test index has this field: none may be found, all by its opposite.
for operator, expected in [(FilterOperator.EQ, 0), (FilterOperator.NE, TOTAL)]:
    filters = MetadataFilters(filters=[MetadataFilter(key="test_of_clients", value="x", operator=operator)])
    found = get("/query", {"query": QUERIES[0], "k": TOTAL, "filter": filters.model_dump(mode="json")})["results"]
    assert len(found) == expected, (operator, len(found))
print("llamaindex: ok")
