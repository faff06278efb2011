#!/bin/bash
# OpenAI's Python client spreads its own waits between repeated requests by chance, but what a server asks for with Retry-After
# it obeys to the millisecond: clients that were refused together come back together. A server has to spread them itself.
# Expected: with Retry-After, eight clients wait within 10 ms of each other; without, they do not. Seen with openai 3.57.0.
set -euo pipefail
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT
python3 -m venv "$WORK/venv"
"$WORK/venv/bin/pip" -q install openai==3.57.0
"$WORK/venv/bin/python" - <<'PY'
import json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import openai

came = {}

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_POST(self):
        now = time.monotonic()
        self.rfile.read(int(self.headers["content-length"]))
        kind, client = self.path.split("/")[1:3]
        first = (kind, client) not in came
        came.setdefault((kind, client), []).append(now)
        body = {"error": {"message": "busy"}} if first else {
            "object": "list", "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1},
            "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}]}
        data = json.dumps(body).encode()
        self.send_response(429 if first else 200)
        if first and kind == "told":
            self.send_header("Retry-After", "1")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
waits = {}
import openai._base_client as base
plain = base.SyncAPIClient._calculate_retry_timeout
for kind in ("told", "untold"):
    waits[kind] = []
    def watched(self, *args, kind=kind, **more):
        waits[kind].append(plain(self, *args, **more))
        return waits[kind][-1]
    base.SyncAPIClient._calculate_retry_timeout = watched
    def ask(client):
        base_url = f"http://127.0.0.1:{server.server_port}/{kind}/{client}"
        openai.OpenAI(base_url=base_url, api_key="none").embeddings.create(model="m", input="x", encoding_format="float")
    threads = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
spread = {kind: max(all_) - min(all_) for kind, all_ in waits.items()}
print(f"openai {openai.__version__}: waits of eight clients differ by {spread['told'] * 1000:.1f} ms with Retry-After, "
      f"by {spread['untold'] * 1000:.1f} ms without")
sys.exit(not (len(waits["told"]) == len(waits["untold"]) == 8 and spread["told"] < 0.01 < spread["untold"]))
PY
