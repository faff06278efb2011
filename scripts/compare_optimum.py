#!/usr/bin/env python3
"""Our encoder graphs beside optimum-onnx's of the same LLM, in one process of ONNX Runtime, taking turns.

    optimum-cli export onnx --model LLM --task feature-extraction optimum/fp32
    optimum-cli onnxruntime quantize --avx512_vnni --onnx_model optimum/fp32 -o optimum/int8
    python3 scripts/compare_optimum.py --theirs optimum/fp32/model.onnx --theirs optimum/int8/model_quantized.onnx \\
        --ours fp32 --ours int8

Needs onnxruntime (and optimum-onnx for the files); not part of `make setup`. A length counts a pass's tokens, prompt included:
theirs read all of them, ours hold the prompt's keys and values and read the rest. Ratios are to the file named last with --theirs.
"""
import argparse
import json
import pathlib
import resource
import time

import numpy
import onnxruntime


# Turns of each graph and length.
ROUNDS = 4


class Graph:
    """A session and what makes its inputs for one text of so many tokens."""

    def __init__(self, name, file, options, manifest=None):
        self.name, self.manifest = name, manifest
        start = time.perf_counter()
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.load_seconds = time.perf_counter() - start
        files = [file, file.with_name(file.name + "_data")]
        self.megabytes = sum(part.stat().st_size for part in files if part.exists()) / 1e6
        self.seconds = {}

    def inputs(self, tokens):
        prefixes = self.manifest["encoder"]["prefixes"] if self.manifest else []
        read = tokens - (len(prefixes[0]) if prefixes else 0)
        ids = numpy.random.default_rng(0).integers(1000, 20000, (1, read), dtype=numpy.int64)
        values = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
        values["position_ids"] = numpy.arange(read, dtype=numpy.int64)[None]
        values["pooling_mask"] = numpy.ones_like(ids)
        values["prefix"] = numpy.zeros(1, dtype=numpy.int64)
        wanted = [port.name for port in self.session.get_inputs()]
        return {name: values[name] for name in wanted}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", type=pathlib.Path, action="append", required=True, help="ONNX file")
    parser.add_argument("--ours", type=pathlib.Path, action="append", required=True, help="bundle directory")
    parser.add_argument("--lengths", default="16,32,64,128,512")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each graph and length")
    args = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    graphs = [Graph("optimum " + file.parent.name, file, options) for file in args.theirs]
    for bundle in args.ours:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        graphs.append(Graph("ours " + bundle.name, bundle / "encoder.onnx", options, manifest))
    base = graphs[len(args.theirs) - 1]
    lengths = [int(length) for length in args.lengths.split(",")]
    for length in lengths:
        runs = {graph.name: [] for graph in graphs}
        values = {graph.name: graph.inputs(length) for graph in graphs}
        for graph in graphs:
            graph.session.run(None, values[graph.name])
        for _ in range(ROUNDS):
            for graph in graphs:
                # The threads of the graph before spin for a while after their last run.
                time.sleep(0.1)
                end = time.perf_counter() + args.seconds / ROUNDS
                while time.perf_counter() < end:
                    start = time.perf_counter()
                    graph.session.run(None, values[graph.name])
                    runs[graph.name].append(time.perf_counter() - start)
        for graph in graphs:
            graph.seconds[length] = float(numpy.median(runs[graph.name]))
    print(f"ONNX Runtime {onnxruntime.__version__}, {args.threads} threads, one text, medians; ratios to {base.name}\n")
    print("| tokens | " + " | ".join(graph.name for graph in graphs) + " |")
    print("| ---: |" + " ---: |" * len(graphs))
    for length in lengths:
        cells = [f"{1e3 * g.seconds[length]:.1f} ms, {g.seconds[length] / base.seconds[length]:.2f}x" for g in graphs]
        print(f"| {length} | " + " | ".join(cells) + " |")
    print("| MB | " + " | ".join(f"{graph.megabytes:.1f}" for graph in graphs) + " |")
    print("| seconds to load | " + " | ".join(f"{graph.load_seconds:.2f}" for graph in graphs) + " |")
    print(f"\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB resident at most, all graphs together")


if __name__ == "__main__":
    main()
