#!/usr/bin/env python3
"""Holds ONNX files to the rules of the ONNX checker, types and shapes inferred: check_onnx.py FILE...

The `onnx` package comes from `make setup-python-tests`; run with PYTHONPATH=.deps/python.
"""
import sys

import onnx


def main():
    for file in sys.argv[1:]:
        # By path: external data is looked up beside the file.
        onnx.checker.check_model(file, full_check=True)
        model = onnx.load(file, load_external_data=False)
        opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
        print(f"{file}: {len(model.graph.node)} nodes, {opsets}")


if __name__ == "__main__":
    main()
