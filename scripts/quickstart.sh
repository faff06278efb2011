#!/usr/bin/env bash
# First answers without training: the general student of models/pretrained/ beside the LLM that set-up brought, on the skills in
# data/home-robot. Leaves bundle/ and index/ in .quickstart/.
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=.quickstart
BIN=target/release
GGUF=.deps/models/SmolLM2-135M-Instruct.Q4_1.gguf

echo "== build (once, without libtorch)" >&2
cargo build --release
start=$SECONDS
rm -rf $OUT
mkdir -p $OUT
$BIN/export --onnx --student models/pretrained/general --llm $GGUF --precision int8 --out $OUT/bundle >/dev/null
$BIN/runtime index --bundle $OUT/bundle --documents data/home-robot/corpus.jsonl --out $OUT/index >/dev/null
for need in \
    "I cut my finger on the cheese grater and it won't stop bleeding" \
    "It's pitch black in the hallway and I can't find the step" \
    "My mouth is so dry after all that talking" \
    "Somebody is at the front gate and I'm in the bath"; do
    printf '\n> %s\n' "$need"
    $BIN/runtime query --bundle $OUT/bundle --index $OUT/index -k 3 "$need"
done
cat >&2 <<TEXT

$((SECONDS - start)) s after the build. Ask it yourself:
    $BIN/runtime query --bundle $OUT/bundle --index $OUT/index "..."
    $BIN/runtime serve --bundle $OUT/bundle --index $OUT/index        # a page on http://127.0.0.1:8080
TEXT
