"""What every client is held to: its vectors rank documents as the server itself does."""
import json
import os
import urllib.request

URL = os.environ["CLIENTS_URL"]
KEY = os.environ["CLIENTS_KEY"]
# As many texts as a slow machine encodes in some seconds; a client's own division into requests is tried with more requests.
COUNT = 12
QUERIES = ["I spilled my coffee", "it is dark in the hall"]


def get(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def contents(document):
    """The text that the server encodes of a document."""
    return "\n".join(part for part in [document["title"], document["text"]] if part)


# Spread over the index, and for each query the best one among them, so that the right order is nobody's guess.
TOTAL = get("/documents?limit=1")["total"]
RANKED = {query: [hit["id"] for hit in get("/query", {"query": query, "k": TOTAL})["results"]] for query in QUERIES}
_best = {RANKED[query][0] for query in QUERIES}
_all = get(f"/documents?limit={TOTAL}")["documents"]
_others = [document for document in _all if document["id"] not in _best]
DOCUMENTS = [document for document in _all if document["id"] in _best]
DOCUMENTS += _others[:: max(1, len(_others) // (COUNT - len(DOCUMENTS)))][: COUNT - len(DOCUMENTS)]
TEXTS = [contents(document) for document in DOCUMENTS]
IDS = [document["id"] for document in DOCUMENTS]


def expected(query):
    """The documents of this test as the server orders them."""
    return [id for id in RANKED[query] if id in IDS]


def check_order(who, query, ids):
    wanted = expected(query)[: len(ids)]
    if not ids or ids != wanted:
        raise SystemExit(f"{who}: {query!r} finds {ids}, the server orders them {wanted}")
    print(f"{who}: {query!r} ranks {len(ids)} documents as the server does")


def check_vectors(who, query, vector, vectors):
    if len(vectors) != len(IDS):
        raise SystemExit(f"{who}: {len(vectors)} vectors for {len(IDS)} documents")
    scores = [sum(a * b for a, b in zip(vector, other)) for other in vectors]
    check_order(who, query, [IDS[place] for place in sorted(range(len(IDS)), key=lambda place: -scores[place])])


def check_indices(who, query, indices):
    check_order(who, query, [IDS[index] for index in indices])


def refuses(who, kind, call, *words):
    """A refusal reaches the client as its own kind of error, with the server's sentence."""
    try:
        call()
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        if missing:
            raise SystemExit(f"{who}: {error!s} lacks {missing}")
        print(f"{who}: refuses with {kind.__name__}: {str(error)[:160]}")
        return error
    raise SystemExit(f"{who}: was not refused")
