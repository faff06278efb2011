#!/bin/bash
# LlamaIndex's parts send something else than they were given. Its embeddings for OpenAI-like servers turn line breaks into
# spaces, which is another text: a vector made through them is not the one that the server makes of the document as it is. And
# of its two parts for text-embeddings-inference one puts `Bearer` before the token and the other does not.
# Expected: "a\nb" arrives as "a b"; the embedding part says "Bearer t", the reranking part "t".
# Seen with llama-index-embeddings-openai-like 0.4.0, -embeddings-text-embeddings-inference 0.6.0, -postprocessor-tei-rerank 0.6.0.
set -euo pipefail
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT
python3 -m venv "$WORK/venv"
"$WORK/venv/bin/pip" -q install llama-index-embeddings-openai-like==0.4.0 \
    llama-index-embeddings-text-embeddings-inference==0.6.0 llama-index-postprocessor-tei-rerank==0.6.0
"$WORK/venv/bin/python" - <<'PY'
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

came = {}

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        came[self.path] = (body, self.headers["authorization"])
        data = json.dumps({
            "/embeddings": {"object": "list", "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1},
                            "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}]},
            "/embed": [[1.0]],
            "/rerank": [{"index": 0, "score": 1.0}],
        }[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
OpenAILikeEmbedding(model_name="m", api_base=url, api_key="t").get_text_embedding("a\nb")
TextEmbeddingsInference(model_name="m", base_url=url, auth_token="t").get_text_embedding("a\nb")
node = NodeWithScore(node=TextNode(text="a"), score=0.0)
TextEmbeddingInference(base_url=url, auth_token="t").postprocess_nodes([node], query_bundle=QueryBundle("q"))
text, tokens = came["/embeddings"][0]["input"], (came["/embed"][1], came["/rerank"][1])
print(f"OpenAI-like sends {text}; the tokens of text-embeddings-inference's parts are {tokens}")
sys.exit(not (text == ["a b"] and tokens == ("Bearer t", "t")))
PY
