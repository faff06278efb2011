#!/usr/bin/env bash
# Makes the general student of models/pretrained/general from start to end: latents on public sets and data/robot-skills, packed to
# 4 bits, distilled, packed. Each stage goes on where it was interrupted; finished ones are kept.
#
#   SETS=DIR scripts/general.sh [OUT]
#
# SETS holds the public sets in BEIR layout, by the names below (models/pretrained/general/README.md has sources and
# licences). The latents are for a GPU: 130,000 queries, a minute on an H200, some five hours on 2 cores (DEVICE=cpu, and
# LATENT_TOKENS=8192, which reads twice what a small memory cannot hold). TRAIN names another program than target/release/train,
# for example the one of `make train-for`.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${SETS:?set SETS to the folder that holds the public sets in BEIR layout}"
OUT=${1:-.general}
TRAIN=${TRAIN:-target/release/train}
MACHINE=(--device "${DEVICE:-cuda}" --dtype "${DTYPE:-bf16}" --threads "${THREADS:-0}")
LLM=$OUT/llm
mkdir -p "$OUT"

# stage OUTPUT COMMAND...
stage() {
    [ -e "$1" ] && return
    echo "== $1" >&2
    "${@:2}"
}

# sets NAME=WEIGHT...: as flags
sets() {
    for set in "$@"; do printf -- '--data\n%s/%s\n' "$SETS" "$set"; done
}

mapfile -t LATENTS < <(sets ecare-causes=1.2 event2mind-intents metatool-tools hwu64-intents=0.7 clinc150-intents=0.7 \
    alfred-next-steps=0.5 tldr-commands=0.6 strategyqa-facts entailmentbank-facts sealtools-apis=0.7 behavior-objects \
    bfcl-functions=0.7 theoremqa-theorems=0.7 calvin-skills)
# The predictor's maps learn fast: without the largest corpora, whose every text would be encoded.
mapfile -t MAPS < <(sets metatool-tools hwu64-intents=0.7 clinc150-intents=0.7 sealtools-apis=0.6 behavior-objects \
    bfcl-functions=0.7 theoremqa-theorems=0.7 calvin-skills)

stage "$LLM" $TRAIN import --from .deps/models/SmolLM2-135M-Instruct.Q4_1.gguf --out "$LLM"
stage "$OUT/latents" $TRAIN teacher --model "$LLM" --out "$OUT/latents" --data data/robot-skills=2 "${LATENTS[@]}" --cap 4000 \
    --dev-split dev,dev-unseen --latent-only --latent-layers 4,7,10 --latent-queries 512 --latent-documents 768 \
    --latent-temperature 0.03 --latent-tokens "${LATENT_TOKENS:-400000}" --negatives bm25 --lora-rank 0 --freeze-embeddings \
    --lr 4e-4 --warmup 60 --steps 252 --eval-every 42 --dev-queries 60 --dev-candidates 100 --resume "${MACHINE[@]}"
# Packing rounds: the student is distilled from what will be unpacked.
stage "$OUT/packed" $TRAIN pack --model "$OUT/latents" --base "$LLM" --base-name SmolLM2-135M-Instruct.Q4_1 --out "$OUT/packed"
stage "$OUT/teacher" $TRAIN import --from "$OUT/packed" --base "$LLM" --out "$OUT/teacher"
stage "$OUT/student" $TRAIN distill --teacher "$OUT/teacher" --out "$OUT/student" --data data/robot-skills=2.5 "${MAPS[@]}" \
    --cap 4200 --train-queries 4200 --dev-split dev,dev-unseen --layers 4,7,10 --target-queries 0 --steps 700 --eval-every 175 \
    --resume "${MACHINE[@]}"
stage "$OUT/general" $TRAIN pack --model "$OUT/student" --base "$LLM" --base-name SmolLM2-135M-Instruct.Q4_1 --out "$OUT/general"
echo "$OUT/general"
