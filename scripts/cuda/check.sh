#!/usr/bin/env bash
# Proves `train` on this machine's GPU, without network: forward passes, training, resuming, several processes, memory, distilling,
# each against the CPU; and what a step costs beside Hugging Face transformers. Writes report.json and report.md. On one H100 it
# takes some four minutes.
#
#   check.sh [OUT]                      (default: report; run it in the folder that pack.sh made)
#
# PYTHON is a Python that holds PyTorch (default: python3). TRAIN names a `train` that is there already; then nothing is unpacked,
# and LLM (a GGUF file or model directory) and DATA (a BEIR folder) have to be named too. Without a GPU all lines about it say so.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
OUT=${1:-report}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

if [ -z "${TRAIN:-}" ]; then
    (cd "$HERE" && sha256sum --quiet --check SHA256SUMS)
    WORK=${WORK:-$(mktemp -d)}
    cat "$HERE"/llm.tar.* | tar -C "$WORK" -xf -
    cat "$HERE"/rest.tar.xz.* | xz -d | tar -C "$WORK" -xf -
    TRAIN=$WORK/train LLM=$WORK/llm.gguf DATA=$WORK/data/home-robot CHECK=$WORK/check.py
else
    : "${LLM:?name the LLM, a GGUF file or a model directory}" "${DATA:?name a data set in BEIR layout}"
    CHECK=$HERE/check.py
    WORK=${WORK:-$(mktemp -d)}
fi

# PyTorch's own libraries, wherever its wheel was installed; they find NVIDIA's beside them.
LIBRARIES=$("$PYTHON" - <<'PYTHON'
import importlib.util, os, sys
spec = importlib.util.find_spec("torch")
if spec is None:
    sys.exit("check: this Python has no PyTorch: name one that has, PYTHON=/path/to/python3")
print(os.path.join(os.path.dirname(spec.origin), "lib"))
PYTHON
)
export LD_LIBRARY_PATH="$LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$PYTHON" "$CHECK" --train "$TRAIN" --llm "$LLM" --data "$DATA" --work "$WORK" --out "$OUT" ${ONLY:+--only "$ONLY"}
