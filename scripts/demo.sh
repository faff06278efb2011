#!/usr/bin/env bash
# The whole chain on a real language model and the sample corpus: answers without training, trained from there, and the papers' way
# from the LLM alone: import, teach, distil, export, index, ask, measure.
# Leaves llm/ general/ trained/ teacher/ student/, bundle/ and index/ of `trained`, general-bundle/ and general-index/, and report.md
# in .demo/.
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

answers() { # answers STUDENT BUNDLE INDEX: what a student makes of five needs
    stage "export $1" "$2" $BIN/export --onnx --student $DEMO/$1 --out "$2"
    stage "index $1" "$3" $BIN/runtime index --bundle "$2" --documents $DATA/corpus.jsonl --out "$3"
    local need
    for need in \
        "I cut my finger on the cheese grater and it won't stop bleeding" \
        "It's pitch black in the hallway and I can't find the step" \
        "My mouth is so dry after all that talking" \
        "The toddler has emptied the whole toy box all over the living room" \
        "Somebody is at the front gate and I'm in the bath"; do
        stage "query: $need" - $BIN/runtime query --bundle "$2" --index "$3" -k 3 "$need"
    done
}

# 1. Nothing trained: the general student of models/pretrained/, as `make quickstart` has it.
stage import $DEMO/llm $BIN/train import --from $GGUF --out $DEMO/llm
stage "general: import" $DEMO/general $BIN/train import --from models/pretrained/general --base $DEMO/llm --out $DEMO/general
answers general $DEMO/general-bundle $DEMO/general-index

# 2. Trained on the data from there: its LLM stays, its predictor goes on.
stage "trained: distill" $DEMO/trained $BIN/train distill --teacher $DEMO/general --start $DEMO/general --data $DATA \
    --out $DEMO/trained --dev-split dev,dev-unseen --target-queries 0 --steps 300 --eval-every 50
answers trained $DEMO/bundle $DEMO/index

# 3. The papers' chain from the LLM alone: a reranker is taught, and its frozen self is the student.
# Sized for 15 minutes on 2 cores without bf16 hardware; a teacher worth shipping wants ten times the steps.
stage teacher $DEMO/teacher $BIN/train teacher --model $DEMO/llm --data $DATA --out $DEMO/teacher \
    --lora-rank 0 --lr 1e-4 --steps 24 --warmup 3 --batch-queries 6 --batch-documents 5 \
    --dev-queries 12 --dev-candidates 10 --save-every 0
stage distill $DEMO/student $BIN/train distill --teacher $DEMO/teacher --data $DATA --out $DEMO/student \
    --dev-split dev,dev-unseen --target-queries 120 --candidates 6

# All test queries against all skills for what is fast; rerankers read every pair, so there all systems rank 20 skills
# (the right one and 19 drawn) for 20 queries of each split.
for student in general trained student; do
    stage "eval $student, whole corpus" - $BIN/train eval --data $DATA --split test,test-unseen --bm25 --student $DEMO/$student \
        --json $DEMO/eval-$student.json --runs $DEMO/runs-$student
done
stage "eval, with teachers" - $BIN/train eval --data $DATA --split test,test-unseen --bm25 --student $DEMO/student \
    --zero-shot $DEMO/llm --teacher $DEMO/teacher --pool 20 --sample 20 --json $DEMO/eval-teachers.json
# What training gained: all in one table, each against the general student.
mkdir $DEMO/runs
for split in test test-unseen; do
    cp $DEMO/runs-student/$split-bm25.trec $DEMO/runs/bm25.trec
    for student in general trained student; do
        cp $DEMO/runs-$student/$split-student.trec $DEMO/runs/$student.trec
    done
    stage "table, $split" - $BIN/train significance --data $DATA --split $split --baseline general \
        $DEMO/runs/{general,trained,student,bm25}.trec
done
printf '| all | %s | | |\n' $((SECONDS - start)) >> $REPORT
echo >&2
cat $REPORT
