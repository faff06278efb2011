"""LangChain."""
import openai
from langchain_cohere import CohereEmbeddings, CohereRerank
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

from common import IDS, KEY, QUERIES, TEXTS, URL, check_order, check_vectors, refuses


def side(model):
    # Token ids of OpenAI's tokenizer mean nothing to the server: it takes texts. 100 of them in a request are answered in time.
    return OpenAIEmbeddings(
        model=model, base_url=f"{URL}/v1", api_key=KEY, check_embedding_ctx_length=False, chunk_size=100, timeout=120, max_retries=2
    )


class Rabtriever(Embeddings):
    """OpenAIEmbeddings sends queries and documents alike: a model name for each tells them apart."""

    def __init__(self, similarity=""):
        self.queries, self.documents = side(f"rabtriever-query{similarity}"), side(f"rabtriever-document{similarity}")

    def embed_query(self, text):
        return self.queries.embed_query(text)

    def embed_documents(self, texts):
        return self.documents.embed_documents(texts)


embeddings = Rabtriever()
vectors = embeddings.embed_documents(TEXTS)
for query in QUERIES:
    check_vectors("langchain-openai", query, embeddings.embed_query(query), vectors)

# LangChain's store in memory compares by cosine, as Chroma and others do unless told otherwise.
store = InMemoryVectorStore(Rabtriever("-cosine"))
store.add_documents([Document(text, id=id) for id, text in zip(IDS, TEXTS)])
for query in QUERIES:
    check_order("langchain in a store that compares by cosine", query, [found.id for found in store.similarity_search(query, k=5)])

embeddings = CohereEmbeddings(model="rabtriever", base_url=URL, cohere_api_key=KEY, request_timeout=120)
vectors = embeddings.embed_documents(TEXTS)
for query in QUERIES:
    check_vectors("langchain-cohere", query, embeddings.embed_query(query), vectors)

reranker = CohereRerank(model="rabtriever", base_url=URL, cohere_api_key=KEY, top_n=5)
for query in QUERIES:
    ranked = reranker.compress_documents([Document(text, metadata={"id": id}) for id, text in zip(IDS, TEXTS)], query)
    check_order("langchain-cohere reranker", query, [document.metadata["id"] for document in ranked])

# Without check_embedding_ctx_length=False token ids are sent, where tiktoken has its files; the refusal tells the way out.
refuses(
    "langchain-openai", openai.UnprocessableEntityError,
    lambda: side("rabtriever-document").client.create(model="rabtriever-document", input=[[9906, 1917]]), "check_embedding_ctx_length",
)
print("langchain: ok")
