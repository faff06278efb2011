#!/usr/bin/env python3
"""Makes metrics.json: what pytrec_eval says of made-up judgements and scores.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install pytrec-eval-terrier==0.5.11
    /tmp/venv/bin/python tests/golden/make_metrics.py

Besides the cases that are named there are some drawn from a seed, with gains from -1 to 3 (of many below -1 pytrec_eval
crashes) and scores that tie. MRR@10 is recip_rank over the first ten documents, which trec_eval has no name for; its order
(ties by document id, descending) decides which ten these are. `means` are over all judged queries, those that the run lacks as
0 (trec_eval's -c).
"""

import json
import random
from pathlib import Path

import pytrec_eval

QRELS = {
    "graded": {"mop": 3, "rag": 1, "lamp": 0},
    "negative": {"mop": -1, "rag": 1, "lamp": -2},
    "nothing": {"mop": 0, "rag": 0},
    "against": {"mop": -1},
    "tied": {"rag": 1, "lamp": 2},
    "tied-with-unjudged": {"m": 1},
    "lost": {"not-in-the-corpus": 1, "mop": 1},
    "deep": {"d11": 1, "d03": 2},
    "never-asked": {"mop": 1},
    "never-asked-and-nothing": {"mop": 0},
}
RUN = {
    "graded": {"rag": 3.0, "broom": 2.0, "mop": 1.0},
    "negative": {"mop": 3.0, "rag": 2.0, "lamp": 1.0},
    "nothing": {"mop": 1.0, "rag": 0.5},
    "against": {"mop": 2.0, "rag": 1.0},
    "tied": {"mop": 1.0, "rag": 1.0, "lamp": 1.0, "broom": 1.0},
    "tied-with-unjudged": {letter: 0.5 for letter in "abcdefghijklmnopqrstuvwxyz"},
    "lost": {"rag": 2.0, "mop": 1.0},
    "deep": {"d%02d" % place: float(-place) for place in range(1, 13)},
    "unjudged": {"mop": 1.0},
}
draw = random.Random(22)
for number in range(40):
    documents = ["x%d" % document for document in range(draw.randint(1, 30))]
    judged = draw.sample(documents, draw.randint(1, len(documents)))
    QRELS["drawn-%02d" % number] = {document: draw.choice([-1, 0, 0, 1, 1, 2, 3]) for document in judged}
    ranked = draw.sample(documents, draw.randint(1, len(documents)))
    RUN["drawn-%02d" % number] = {document: draw.randint(-4, 4) / 4 for document in ranked}

MEASURES = {"recall.1,3,10", "ndcg_cut.10"}
NAMES = {"recall_1": "Recall@1", "recall_3": "Recall@3", "recall_10": "Recall@10", "ndcg_cut_10": "nDCG@10"}


def first_ten(scores):
    return dict(sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)[:10])


def at_level(level):
    def of(measures, run):
        return pytrec_eval.RelevanceEvaluator(QRELS, measures, relevance_level=level).evaluate(run)

    reciprocal = of({"recip_rank"}, {query: first_ten(scores) for query, scores in RUN.items()})
    queries = {
        query: {**{NAMES[name]: value for name, value in values.items()}, "MRR@10": reciprocal[query]["recip_rank"]}
        for query, values in sorted(of(MEASURES, RUN).items())
    }
    columns = [*NAMES.values(), "MRR@10"]
    means = {name: sum(values[name] for values in queries.values()) / len(QRELS) for name in columns}
    return {"queries": queries, "means": means}


expected = {level: at_level(level) for level in (1, 2, 3)}
with open(Path(__file__).with_name("metrics.json"), "w") as file:
    json.dump({"qrels": QRELS, "run": RUN, "expected": expected}, file, indent=1)
    file.write("\n")
