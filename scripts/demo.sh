#!/usr/bin/env bash
# The whole chain on a real language model and the sample corpus: import, teach, distil, export, index, ask, measure.
# Leaves llm/ teacher/ student/ bundle/ index/ and report.md in .demo/.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=data/home-robot
DEMO=.demo
REPORT=$DEMO/report.md
GGUF=.deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
BIN=target/release

stage() { # stage NAME OUTPUT COMMAND...
    local name=$1 output=$2
    shift 2
    python3 scripts/stage.py "$REPORT" "$name" "$output" -- "$@"
}

echo "== build (once)" >&2
cargo build --release
cargo build --release -p train
rm -rf $DEMO
mkdir -p $DEMO
start=$SECONDS
printf '| stage | seconds | peak memory MB | on disk MB |\n| --- | ---: | ---: | ---: |\n' > $REPORT

stage import $DEMO/llm $BIN/train import --from $GGUF --out $DEMO/llm
# Sized for 15 minutes on 2 cores without bf16 hardware; a teacher worth shipping wants ten times the steps.
stage teacher $DEMO/teacher $BIN/train teacher --model $DEMO/llm --data $DATA --out $DEMO/teacher \
    --lora-rank 0 --lr 1e-4 --steps 24 --warmup 3 --batch-queries 6 --batch-documents 5 \
    --dev-queries 12 --dev-candidates 10 --save-every 0
stage distill $DEMO/student $BIN/train distill --teacher $DEMO/teacher --data $DATA --out $DEMO/student \
    --dev-split dev,dev-unseen --target-queries 120 --candidates 6
stage export $DEMO/bundle $BIN/export --onnx --student $DEMO/student --out $DEMO/bundle
stage index $DEMO/index $BIN/runtime index --bundle $DEMO/bundle --documents $DATA/corpus.jsonl --out $DEMO/index

ask() {
    stage "query: $1" - $BIN/runtime query --bundle $DEMO/bundle --index $DEMO/index -k 3 "$1"
}
ask "I cut my finger on the cheese grater and it won't stop bleeding"
ask "It's pitch black in the hallway and I can't find the step"
ask "My mouth is so dry after all that talking"
ask "The toddler has emptied the whole toy box all over the living room"
ask "Somebody is at the front gate and I'm in the bath"

# All test queries against all skills for what is fast; rerankers read every pair, so there all systems rank 20 skills
# (the right one and 19 drawn) for 20 queries of each split.
stage "eval, whole corpus" - $BIN/train eval --data $DATA --split test,test-unseen --bm25 --student $DEMO/student \
    --json $DEMO/eval.json --runs $DEMO/runs
stage "eval, with teachers" - $BIN/train eval --data $DATA --split test,test-unseen --bm25 --student $DEMO/student \
    --zero-shot $DEMO/llm --teacher $DEMO/teacher --pool 20 --sample 20 --json $DEMO/eval-teachers.json
printf '| all | %s | | |\n' $((SECONDS - start)) >> $REPORT
echo >&2
cat $REPORT
