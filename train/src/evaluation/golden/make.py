#!/usr/bin/env python3
"""Makes pytrec_eval.json: what pytrec_eval says of made-up judgements and scores.

pip install pytrec_eval-terrier==0.5.11, then run this in its folder. MRR@10 is recip_rank over the first ten documents, which
trec_eval has no name for; its order (ties by document id, descending) decides which ten these are.
"""

import json

import pytrec_eval

QRELS = {
    "graded": {"mop": 3, "rag": 1, "lamp": 0},
    "negative": {"mop": -1, "rag": 1, "lamp": -2},
    "nothing": {"mop": 0, "rag": 0},
    "against": {"mop": -1},
    "tied": {"rag": 1, "lamp": 2},
    "lost": {"not-in-the-corpus": 1, "mop": 1},
    "deep": {"d11": 1, "d03": 2},
    "never-asked": {"mop": 1},
}
RUN = {
    "graded": {"rag": 3.0, "broom": 2.0, "mop": 1.0},
    "negative": {"mop": 3.0, "rag": 2.0, "lamp": 1.0},
    "nothing": {"mop": 1.0, "rag": 0.5},
    "against": {"mop": 2.0, "rag": 1.0},
    "tied": {"mop": 1.0, "rag": 1.0, "lamp": 1.0, "broom": 1.0},
    "lost": {"rag": 2.0, "mop": 1.0},
    "deep": {"d%02d" % place: float(-place) for place in range(1, 13)},
    "unjudged": {"mop": 1.0},
}
MEASURES = {"recall.1,3,10", "ndcg_cut.10"}
NAMES = {"recall_1": "Recall@1", "recall_3": "Recall@3", "recall_10": "Recall@10", "ndcg_cut_10": "nDCG@10"}


def first_ten(scores):
    return dict(sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)[:10])


expected = {}
for level in (1, 2):
    of = lambda measures: pytrec_eval.RelevanceEvaluator(QRELS, measures, relevance_level=level)
    reciprocal = of({"recip_rank"}).evaluate({query: first_ten(scores) for query, scores in RUN.items()})
    expected[level] = {
        query: {**{NAMES[name]: value for name, value in values.items()}, "MRR@10": reciprocal[query]["recip_rank"]}
        for query, values in sorted(of(MEASURES).evaluate(RUN).items())
    }
with open("pytrec_eval.json", "w") as file:
    json.dump({"qrels": QRELS, "run": RUN, "expected": expected}, file, indent=1)
    file.write("\n")
