#!/usr/bin/env bash
# ONNX Runtime and external data behind links: which layouts open depends on the version.
#
# A graph keeps its weights in a file beside it (external data). Where that file is a link, as in the Hugging Face hub's cache,
# in Kubernetes volumes and after GNU stow, it was expected to be followed like any other. Seen, with the same three folders:
#   1.23.2  opens all of them
#   1.24.1  refuses every link that leads out of the folder ("External data path ... escapes")
#   1.26.0  opens the hub's cache (graph and data both link into one folder), still refuses data that alone is a link
# Exits non-zero where any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/layouts.py" <<'PY'
import os, sys
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

root, expected = sys.argv[1], sys.argv[2].split(",")
for folder in ("whole", "blobs", "cache/snapshot", "lone", "elsewhere"):
    os.makedirs(os.path.join(root, folder))
weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "weights")
shape = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])
graph = helper.make_graph([helper.make_node("MatMul", ["x", "weights"], ["y"])], "g", [shape("x")], [shape("y")], [weights])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
whole = os.path.join(root, "whole", "model.onnx")
onnx.save_model(model, whole, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
copy = lambda name, to: open(os.path.join(root, to), "wb").write(open(os.path.join(root, "whole", name), "rb").read())
for name, blob in (("model.onnx", "blobs/1"), ("model.onnx_data", "blobs/2")):
    copy(name, blob)
    os.symlink(os.path.join("..", "..", blob), os.path.join(root, "cache/snapshot", name))
copy("model.onnx", "lone/model.onnx")
copy("model.onnx_data", "elsewhere/data")
os.symlink(os.path.join("..", "elsewhere", "data"), os.path.join(root, "lone", "model.onnx_data"))

def outcome(folder):
    try:
        onnxruntime.InferenceSession(os.path.join(root, folder, "model.onnx"), providers=["CPUExecutionProvider"])
        return "opens"
    except Exception as error:
        assert "External data path" in str(error), error
        return "refused"

found = [outcome(folder) for folder in ("whole", "cache/snapshot", "lone")]
print(f"onnxruntime {onnxruntime.__version__}: whole {found[0]}, hub's cache {found[1]}, data alone a link {found[2]}")
sys.exit(found != expected)
PY

changed=0
check() { # check VERSION OUTCOMES
    python3 -m venv "$work/$1"
    "$work/$1/bin/pip" -q install "onnxruntime==$1" onnx==1.19.1 numpy
    "$work/$1/bin/python" "$work/layouts.py" "$work/folders-$1" "$2" || { echo "changed: expected $2"; changed=1; }
}
check 1.23.2 opens,opens,opens
check 1.24.1 opens,refused,refused
check 1.26.0 opens,opens,refused
exit $changed
