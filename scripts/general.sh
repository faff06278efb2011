#!/usr/bin/env bash
# Makes the general student of models/pretrained/general from start to end: latents on public sets, latents once more with
# data/robot-skills, packed to 4 bits, distilled, packed. Each stage goes on where it was interrupted; finished ones are kept.
#
#   SETS=DIR scripts/general.sh [OUT]
#
# SETS holds the public sets in BEIR layout, by the names below (models/pretrained/general/README.md has sources and
# licences). THREADS and DTYPE (bf16 where the processor has AVX512-BF16 or AMX, else f32) are for the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${SETS:?set SETS to the folder that holds the public sets in BEIR layout}"
OUT=${1:-.general}
TRAIN=target/release/train
MACHINE=(--dtype "${DTYPE:-bf16}" --threads "${THREADS:-0}")
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

mapfile -t FIRST < <(sets ecare-causes=1.3 event2mind-intents metatool-tools hwu64-intents=0.8 clinc150-intents=0.8 \
    alfred-next-steps=0.7 tldr-commands=0.7 strategyqa-facts entailmentbank-facts sealtools-apis=0.8 behavior-objects \
    bfcl-functions theoremqa-theorems calvin-skills)
mapfile -t SECOND < <(sets ecare-causes event2mind-intents metatool-tools hwu64-intents=0.7 clinc150-intents=0.7 \
    alfred-next-steps=0.5 tldr-commands=0.5 strategyqa-facts=0.7 entailmentbank-facts sealtools-apis=0.6 behavior-objects \
    bfcl-functions=0.7 theoremqa-theorems=0.7 calvin-skills)
# The predictor's maps learn fast: without the largest corpora, whose every text would be encoded.
mapfile -t THIRD < <(sets ecare-causes metatool-tools hwu64-intents=0.7 clinc150-intents=0.7 alfred-next-steps=0.5 \
    sealtools-apis=0.6 behavior-objects bfcl-functions=0.7 theoremqa-theorems=0.7 calvin-skills)
LATENT=(--latent-only --latent-layers 4,7,10 --latent-queries 48 --latent-temperature 0.05 --negatives bm25
    --lora-rank 0 --freeze-embeddings --dev-queries 24 --resume)

stage "$LLM" $TRAIN import --from .deps/models/SmolLM2-135M-Instruct.Q4_1.gguf --out "$LLM"
stage "$OUT/first" $TRAIN teacher --model "$LLM" --out "$OUT/first" "${FIRST[@]}" --cap 4000 "${LATENT[@]}" \
    --latent-documents 56 --lr 1e-4 --warmup 40 --decay constant --steps 450 --save-every 50 "${MACHINE[@]}"
stage "$OUT/second" $TRAIN teacher --model "$OUT/first" --out "$OUT/second" --data data/robot-skills=2.5 "${SECOND[@]}" \
    --cap 3000 --dev-split dev,dev-unseen "${LATENT[@]}" --latent-documents 60 --lr 1.2e-4 --warmup 10 --steps 420 \
    --save-every 40 "${MACHINE[@]}"
# Packing rounds: the student is distilled from what will be unpacked.
stage "$OUT/packed" $TRAIN pack --model "$OUT/second" --base "$LLM" --base-name SmolLM2-135M-Instruct.Q4_1 --out "$OUT/packed"
stage "$OUT/teacher" $TRAIN import --from "$OUT/packed" --base "$LLM" --out "$OUT/teacher"
stage "$OUT/student" $TRAIN distill --teacher "$OUT/teacher" --out "$OUT/student" --data data/robot-skills=2.5 "${THIRD[@]}" \
    --cap 4200 --train-queries 4200 --dev-split dev,dev-unseen --layers 4,7,10 --target-queries 0 --steps 700 --eval-every 175 \
    --resume "${MACHINE[@]}"
stage "$OUT/general" $TRAIN pack --model "$OUT/student" --base "$LLM" --base-name SmolLM2-135M-Instruct.Q4_1 --out "$OUT/general"
echo "$OUT/general"
