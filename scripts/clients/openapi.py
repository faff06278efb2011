"""The description of the interface: what it promises is held, and a client made from it works."""
import importlib
import os
import subprocess
import sys

from common import KEY, QUERIES, RANKED, URL, get

BIN = os.path.dirname(sys.executable)
work = sys.argv[1]

# Bounded: a few seconds for each operation. Only what reads is called; documents of the caller's index are not changed.
subprocess.run(
    [
        f"{BIN}/schemathesis", "run", f"{URL}/openapi.json", "--url", URL, "-H", f"Authorization: Bearer {KEY}",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance",
        "--phases", "examples,coverage,fuzzing", "--max-examples", os.environ.get("CLIENTS_EXAMPLES", "8"), "--seed", "22",
        "--exclude-path-regex", "^/documents", "--request-timeout", "120", "--no-color", "--generation-database", "none",
    ],
    check=True,
    cwd=work,
)

subprocess.run(
    [f"{BIN}/openapi-python-client", "generate", "--fail-on-warning", "--url", f"{URL}/openapi.json", "--output-path", f"{work}/generated", "--overwrite", "--meta", "none"],
    check=True,
    # It formats what it wrote with the ruff that came with it.
    env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
)
sys.path.insert(0, work)
generated = importlib.import_module("generated")
client = generated.AuthenticatedClient(base_url=URL, token=KEY, timeout=120)
models = importlib.import_module("generated.models")


def operation(name):
    """The generated function of an operation, whichever tag it is filed under."""
    for folder, _, files in os.walk(f"{work}/generated/api"):
        if f"{name}.py" in files:
            return importlib.import_module(os.path.relpath(f"{folder}/{name}", work).replace(os.sep, "."))
    raise SystemExit(f"openapi: the generated client has no `{name}`")


answer = operation("query").sync_detailed(client=client, body=models.QueryRequest(query=QUERIES[0], k=3))
found = [hit["id"] if isinstance(hit, dict) else hit.id for hit in answer.parsed.to_dict()["results"]]
assert answer.status_code == 200 and found == RANKED[QUERIES[0]][:3], answer
answer = operation("stats").sync_detailed(client=client)
assert answer.parsed.to_dict()["documents"] == get("/stats")["documents"], answer
print("openapi: ok")
