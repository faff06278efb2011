#!/usr/bin/env bash
# Packs what scripts/cuda/check.sh needs on a GPU machine without network: `train`, the LLM and data, as pieces of at most 48 MiB
# with their digests. The machine brings PyTorch itself, of the version that `train` was built with.
#
#   scripts/cuda/pack.sh [OUT]          (default: .cuda-pack)
#
# TRAIN names another program than target/release/train, for example the one of `make train-for TORCH=2.11`.
set -euo pipefail
cd "$(dirname "$0")/../.."

OUT=${1:-.cuda-pack}
TRAIN=${TRAIN:-target/release/train}
GGUF=.deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
PIECE=48m

for file in "$TRAIN" "$GGUF"; do
    if [ ! -f "$file" ]; then
        echo "pack: $file is not there: run \`make setup\` and build \`train\` first" >&2
        exit 1
    fi
done

STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
mkdir -p "$STAGE/data"
cp "$TRAIN" "$STAGE/train"
strip "$STAGE/train"
cp "$GGUF" "$STAGE/llm.gguf"
cp -r data/home-robot "$STAGE/data/"
cp scripts/cuda/check.py scripts/compare_transformers.py "$STAGE/"
# A release of tch fits one of PyTorch: check.py holds the machine's to it.
{ grep -ao 'tch-0\.[0-9]*' "$STAGE/train" || true; } | sort -u >"$STAGE/built-with"

rm -rf "$OUT.new"
mkdir -p "$OUT.new"
# The model is as good as random bytes: only the rest is worth compressing.
tar -C "$STAGE" -cf - llm.gguf | split -b $PIECE -d -a 2 - "$OUT.new/llm.tar."
tar -C "$STAGE" -cf - --exclude=./llm.gguf . | xz -T0 -6 | split -b $PIECE -d -a 2 - "$OUT.new/rest.tar.xz."
cp scripts/cuda/check.sh "$OUT.new/"
(cd "$OUT.new" && sha256sum llm.tar.* rest.tar.xz.* >SHA256SUMS)
rm -rf "$OUT"
mv "$OUT.new" "$OUT"
du -h "$OUT"/* >&2
echo "$OUT"
