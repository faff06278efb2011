#!/usr/bin/env python3
"""The checks of scripts/cuda/check.sh, by the commands that a user types; writes report.json and report.md.

Losses and scores are held to those of the CPU in f32 at the same seed. Times are taken while nothing else runs; the CPU's runs
follow, all at once.
"""

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

STEPS = 20
# Small enough for the CPU that it is compared with.
TEACHER = ["--steps", str(STEPS), "--batch-queries", "3", "--batch-documents", "3", "--lr", "1e-4", "--warmup", "2"]
TEACHER += ["--dev-queries", "4", "--dev-candidates", "4"]
KINDS = {
    "all weights": ["--lora-rank", "0"],
    "adapters": ["--lora-rank", "8", "--lora-dropout", "0"],
    "checkpointing": ["--lora-rank", "0", "--checkpointing"],
    "latent loss": ["--lora-rank", "0", "--latent-only", "--latent-layers", "4,7,10", "--latent-queries", "8"]
    + ["--latent-documents", "12"],
}
DISTILL = ["--target-queries", "24", "--candidates", "4", "--layers", "4,7,10", "--steps", "60", "--eval-every", "60"]
# Which PyTorch a release of tch fits.
FITTING = {"tch-0.24": "2.11", "tch-0.26": "2.13"}
LARGE = [2048, 1024, 512, 256, 64]


class Check:
    def __init__(self, args):
        self.args, self.rows, self.failed = args, [], []
        self.work, self.out = Path(args.work), Path(args.out)
        self.report = {"checks": self.rows}
        self.background = []

    # --- running ---------------------------------------------------------------------------------------------------------

    def command(self, *words):
        return [self.args.train, *[str(word) for word in words]]

    def run(self, *words, env=None, expect=0):
        """Runs `train`; its output, seconds. Raises with the last line where it ends otherwise than expected."""
        started = time.monotonic()
        done = subprocess.run(
            self.command(*words), env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, text=True, timeout=600,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", check=False,
        )
        seconds = time.monotonic() - started
        if (done.returncode == 0) != (expect == 0):
            raise RuntimeError(f"exit {done.returncode}: {last_line(done.stdout)}")
        return done.stdout, seconds

    def start(self, *words):
        """The same in the background, for the CPU's runs."""
        log = (self.work / f"log-{len(self.background)}").open("w+")
        child = subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.background.append((child, log, time.monotonic()))
        return len(self.background) - 1

    def wait(self, place):
        child, log, started = self.background[place]
        code = child.wait(timeout=600)
        seconds = time.monotonic() - started
        log.seek(0)
        if code != 0:
            raise RuntimeError(f"on the CPU: exit {code}: {last_line(log.read())}")
        return seconds

    def check(self, name, needs_gpu, what):
        """Runs one check and writes down what it returns: (passed, figures, a sentence)."""
        if self.args.only and not re.search(self.args.only, name):
            return None
        if needs_gpu and not self.gpu:
            self.rows.append({"check": name, "result": "no GPU", "told": "no GPU"})
            return None
        started = time.monotonic()
        try:
            passed, figures, told = what()
            result = "passed" if passed else "FAILED"
        except Exception as error:  # whatever it is, the other checks go on
            passed, figures, told, result = False, {}, str(error) or type(error).__name__, "FAILED"
        seconds = round(time.monotonic() - started, 1)
        self.rows.append({"check": name, "result": result, "told": told, "seconds": seconds, **figures})
        print(f"{result:8} {seconds:6.1f} s  {name}: {told}", flush=True)
        if not passed:
            self.failed.append(name)
        self.write()
        return passed

    # --- the machine -------------------------------------------------------------------------------------------------------

    def machine(self):
        self.report["date"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        self.report["cpu"] = f"{cpu_name()}, {os.cpu_count()} cores"
        fields = "name,driver_version,compute_cap,memory.total"
        card = query(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
        self.report["cards"] = [dict(zip(fields.split(","), line.split(", "))) for line in card.splitlines()]
        torch = query([sys.executable, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())"])
        self.report["pytorch"] = torch.split(" ")[0] if torch else "not importable"
        built = Path(__file__).with_name("built-with")
        wanted = [FITTING[tch] for tch in built.read_text().split() if tch in FITTING] if built.exists() else []
        if torch and wanted and not torch.startswith(wanted[0] + "."):
            sys.exit(
                f"check: train was built for PyTorch {wanted[0]}, and this Python has {self.report['pytorch']}: name another with "
                "PYTHON=, or pack a train that `make train-for` built for it"
            )
        self.gpu = bool(self.report["cards"]) and torch.endswith("True")
        self.cards = len(self.report["cards"])
        print(json.dumps({k: v for k, v in self.report.items() if k != "checks"}), flush=True)

    # --- checks ------------------------------------------------------------------------------------------------------------

    def import_llm(self):
        llm = self.work / "llm"
        if Path(self.args.llm).is_dir():
            llm = Path(self.args.llm)
            seconds = 0.0
        else:
            _, seconds = self.run("import", "--from", self.args.llm, "--out", llm)
        self.llm = llm
        return True, {"import_seconds": round(seconds, 1)}, f"{seconds:.1f} s"

    def step(self, batch, tokens, dtype, repeats=8):
        name = f"step-{batch}x{tokens}-{dtype}"
        json_file = self.work / f"{name}.json"
        with Memory() as memory:
            self.run(
                "bench", "step", "--model", self.llm, "--device", "cuda", "--dtype", dtype, "--batch", batch,
                "--tokens", tokens, "--repeats", repeats, "--json", json_file,
            )
        numbers = json.loads(json_file.read_text())
        numbers["tokens_per_second"] = batch * tokens / numbers["full_seconds"]
        numbers["memory_mb"] = memory.most
        return numbers, json_file

    def small_step(self, dtype):
        def of():
            numbers, file = self.step(8, 128, dtype)
            told = describe(numbers)
            theirs = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("compare_transformers.py")), "--model", str(self.llm)]
                + ["--device", "cuda", "--dtype", dtype, "--repeats", "8", "--ours", str(file)],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=300,
            )
            ratio = re.search(r"ratio +([\d.]+)", theirs.stdout)
            if ratio is None:
                return True, numbers, f"{told}; transformers: {last_line(theirs.stdout)}"
            numbers["speed_against_transformers"] = float(ratio.group(1))
            return True, numbers, f"{told}; {ratio.group(1)} times the speed of transformers"

        return of

    def large_step(self):
        refused = []
        for batch in LARGE:
            try:
                numbers, file = self.step(batch, 128, "bf16", repeats=3)
            except RuntimeError as error:
                if "ran out of memory" not in str(error):
                    raise
                refused.append(batch)
                self.report.setdefault("out_of_memory", str(error).split(": ", 1)[-1])
                continue
            numbers["did_not_fit"] = refused
            theirs = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("compare_transformers.py")), "--model", str(self.llm)]
                + ["--device", "cuda", "--dtype", "bf16", "--batch", str(batch), "--repeats", "3", "--ours", str(file)],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=300,
            )
            ratio = re.search(r"ratio +([\d.]+)", theirs.stdout)
            beside = f"{ratio.group(1)} times the speed of transformers" if ratio else f"transformers: {last_line(theirs.stdout)}"
            if ratio:
                numbers["speed_against_transformers"] = float(ratio.group(1))
            return True, numbers, f"{describe(numbers)}; {beside}"
        return False, {}, "no batch fitted"

    def out_of_memory(self):
        """One sentence, and nothing of libtorch's frames."""
        told = self.report.get("out_of_memory")
        if told is None:
            output, _ = self.run(
                "bench", "step", "--model", self.llm, "--device", "cuda", "--dtype", "f32", "--batch", 16384,
                "--tokens", 512, "--repeats", 1, expect=2,
            )
            told = last_line(output)
        return "ran out of memory" in told and "\n" not in told, {}, told

    def missing_device(self):
        output, _ = self.run("bench", "step", "--model", self.llm, "--device", "cuda:97", expect=2)
        told = last_line(output)
        return "cuda:97" in told and output.count("\n") <= 1, {}, told

    def scores(self, name, device, dtype, env=None):
        runs = self.work / f"runs-{name}"
        words = ["eval", "--data", self.args.data, "--split", "test", "--zero-shot", self.llm, "--sample", 50, "--pool", 8]
        words += ["--device", device, "--dtype", dtype, "--runs", runs]
        return words, runs

    def parity(self, name, dtype, bound, env=None):
        def of():
            words, runs = self.scores(name, "cuda", dtype)
            _, seconds = self.run(*words, env=env)
            ours, reference = read_runs(runs), read_runs(self.reference)
            if ours.keys() != reference.keys() or not ours:
                return False, {}, "other queries than on the CPU"
            worst = max(abs(ours[q][d] - reference[q][d]) for q in ours for d in ours[q])
            same = sum(best(ours[q]) == best(reference[q]) for q in ours)
            pairs = inversions = 0
            for query in ours:
                documents = sorted(ours[query])
                for i, a in enumerate(documents):
                    for b in documents[i + 1 :]:
                        pairs += 1
                        apart = (ours[query][a] - ours[query][b]) * (reference[query][a] - reference[query][b])
                        inversions += apart < 0
            figures = {"largest_error": worst, "first_agrees": same, "queries": len(ours), "pairs_in_order": 1 - inversions / pairs}
            told = f"largest error {worst:.2g} of log-probability, first document agrees on {same} of {len(ours)} queries, "
            told += f"{100 * figures['pairs_in_order']:.2f} % of pairs in the same order, {seconds:.1f} s"
            return worst <= bound, figures, told

        return of

    def teach(self, kind, device, out, *more):
        words = ["teacher", "--model", self.llm, "--data", self.args.data, "--out", out, "--device", device]
        if "--stop-after" not in more and "--resume" not in more:
            more = ("--save-every", "0", *more)
        return [*words, *TEACHER, *KINDS[kind], *more]

    def losses(self, kind, place):
        def of():
            out = self.work / f"teacher-cuda-{kind.replace(' ', '-')}"
            _, seconds = self.run(*self.teach(kind, "cuda", out, "--dtype", "f32"))
            cpu_seconds = self.wait(place)
            ours, theirs = read_losses(out), read_losses(self.work / f"teacher-cpu-{kind.replace(' ', '-')}")
            apart = [abs(a - b) for a, b in zip(ours, theirs)]
            figures = {"largest_loss_difference": max(apart), "seconds": round(seconds, 1), "losses": [ours[0], ours[-1]]}
            told = f"losses differ from the CPU's by at most {max(apart):.2g} over {len(ours)} steps "
            told += f"({ours[0]:.3f} to {ours[-1]:.3f}), {seconds:.1f} s (CPU {cpu_seconds:.1f} s, beside other runs)"
            return len(ours) == len(theirs) == STEPS and max(apart) < 2e-2, figures, told

        return of

    def resume(self):
        whole, parts = self.work / "whole", self.work / "parts"
        more = ["--dtype", "bf16"]
        self.run(*self.teach("all weights", "cuda", whole, *more))
        self.run(*self.teach("all weights", "cuda", parts, *more, "--stop-after", "10"))
        self.run(*self.teach("all weights", "cuda", parts, *more, "--resume"))
        digests = [sha256(folder / "model.safetensors") for folder in (whole, parts)]
        same = digests[0] == digests[1]
        losses = [read_losses(folder) for folder in (whole, parts)]
        apart = max(abs(a - b) for a, b in zip(*losses))
        told = "the same bytes as without the interruption" if same else f"other bytes, losses differ by at most {apart:.2g}"
        return same or apart < 1e-2, {"same_bytes": same, "largest_loss_difference": apart}, told

    def torchrun(self, processes):
        def of():
            out = self.work / f"torchrun-{processes}"
            words = self.teach("all weights", "cuda", out, "--dtype", "f32", "--accumulate", str(processes))
            command = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", str(processes)]
            started = time.monotonic()
            done = subprocess.run(
                [*command, "--master-port", "29517", *self.command(*words)], text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, check=False, timeout=300,
            )
            seconds = time.monotonic() - started
            if done.returncode != 0:
                words = [line for line in done.stdout.splitlines() if line.startswith("train: ")]
                raise RuntimeError((words or [last_line(done.stdout)])[-1])
            if processes > 1:
                return True, {}, f"{seconds:.1f} s"
            alone = read_losses(self.work / "teacher-cuda-all-weights")
            apart = max(abs(a - b) for a, b in zip(alone, read_losses(out)))
            return apart < 1e-3, {"largest_loss_difference": apart}, f"losses as without it within {apart:.2g}, {seconds:.1f} s"

        return of

    def distill(self):
        teacher, student = self.work / "teacher-cuda-all-weights", self.work / "student"
        words = ["distill", "--teacher", teacher, "--data", self.args.data, *DISTILL]
        _, seconds = self.run(*words, "--out", student, "--device", "cuda")
        of = ["eval", "--data", self.args.data, "--student", student, "--json"]
        _, eval_seconds = self.run(*of, self.work / "eval.json", "--device", "cuda")
        _, cpu_seconds = self.run(*words, "--out", self.work / "student-cpu", "--device", "cpu", "--dtype", "f32")
        _, cpu_eval = self.run(*of, self.work / "eval-cpu.json", "--device", "cpu", "--dtype", "f32")
        ndcg = [find_number(json.loads((self.work / name).read_text()), "nDCG@10") for name in ("eval.json", "eval-cpu.json")]
        figures = {"distill_seconds": seconds, "eval_seconds": eval_seconds, "cpu_distill_seconds": cpu_seconds}
        figures.update({"cpu_eval_seconds": cpu_eval, "ndcg_of_cuda_bf16_and_cpu_f32": ndcg})
        told = f"distill {seconds:.1f} s (CPU {cpu_seconds:.1f} s), eval {eval_seconds:.1f} s (CPU {cpu_eval:.1f} s), "
        told += f"the one student's nDCG@10 is {ndcg[0]:.3f}"
        return all(math.isfinite(value) for value in ndcg), figures, told

    def latent_rate(self):
        out = self.work / "latent-rate"
        self.run(
            "teacher", "--model", self.llm, "--data", self.args.data, "--out", out, "--device", "cuda", "--dtype", "bf16",
            *KINDS["latent loss"][:5], "--latent-queries", "384", "--latent-documents", "480", "--latent-tokens", "200000",
            "--freeze-embeddings", "--steps", "30", "--warmup", "5", "--lr", "1e-4", "--dev-queries", "8", "--save-every", "0",
        )
        rates = [record["tokens_per_second"] for record in read_records(out) if "tokens_per_second" in record]
        rate = sorted(rates[5:])[len(rates[5:]) // 2]
        return True, {"latent_tokens_per_second": rate}, f"{rate:.0f} tokens a second, batches of 384 queries"

    def everything(self):
        self.machine()
        self.check("import", False, self.import_llm)
        # Times first, while nothing else runs.
        for dtype in ("f32", "bf16"):
            self.check(f"step of 8 x 128 tokens, {dtype}", True, self.small_step(dtype))
        self.check("largest step of 128 tokens, bf16", True, self.large_step)
        self.check("latent loss, rate", True, self.latent_rate)
        self.check("out of memory is one sentence", True, self.out_of_memory)
        self.check("a GPU that is not there is one sentence", False, self.missing_device)
        wanted = not self.args.only or re.search(self.args.only, "losses of forward parity")
        places = {}
        if wanted:
            words, self.reference = self.scores("cpu", "cpu", "f32")
            reference = self.start(*words, "--threads", 4)
            for kind in KINDS:
                out = self.work / f"teacher-cpu-{kind.replace(' ', '-')}"
                more = ("--dtype", "f32", "--threads", max(1, (os.cpu_count() or 4) // 5))
                places[kind] = self.start(*self.teach(kind, "cpu", out, *more))
        for kind in KINDS:
            self.check(f"losses of {STEPS} steps, {kind}", True, self.losses(kind, places.get(kind)))
        self.check("resume", True, self.resume)
        self.check("torchrun, one process, NCCL", True, self.torchrun(1))
        if self.cards > 1:
            self.check("torchrun, two processes, NCCL", True, self.torchrun(2))
        if wanted:
            self.check("forward on the CPU", False, lambda: (True, {}, f"{self.wait(reference):.0f} s beside other runs"))
        self.check("forward, f32", True, self.parity("f32", "f32", 1e-3))
        tf32 = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
        self.check("forward, f32 with TF32 products", True, self.parity("tf32", "f32", 0.2, tf32))
        self.check("forward, bf16", True, self.parity("bf16", "bf16", 1.0))
        if self.gpu or not self.args.only:
            self.check("distill and eval", True, self.distill)
        for child, _, _ in self.background:
            child.wait()
        self.rows.append({"check": "ONNX Runtime on CUDA and TensorRT", "result": "not run", "told": self.onnxruntime()})
        self.write()
        print(f"{len(self.failed)} failed" if self.failed else "all passed", flush=True)
        return 1 if self.failed else 0

    def onnxruntime(self):
        found = query([sys.executable, "-c", "import onnxruntime as o; print(o.__version__, ','.join(o.get_available_providers()))"])
        if not found:
            return "this Python has no ONNX Runtime"
        version, providers = found.split(" ")
        return f"ONNX Runtime {version} is here with {providers}" + ("" if "CUDA" in providers else ": no GPU build")

    def write(self):
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "report.json").write_text(json.dumps(self.report, indent=1) + "\n")
        cards = ", ".join(f"{card['name']} (driver {card['driver_version']})" for card in self.report["cards"]) or "no GPU"
        lines = [f"{self.report['date']}, {cards}, PyTorch {self.report['pytorch']}, {self.report['cpu']}", ""]
        lines += ["| check | result | |", "| --- | --- | --- |"]
        lines += [f"| {row['check']} | {row['result']} | {row['told']} |" for row in self.rows]
        (self.out / "report.md").write_text("\n".join(lines) + "\n")


class Memory:
    """The most memory that the first card's programs held, MB, read four times a second."""

    def __enter__(self):
        self.most, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.25):
            used = query(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"])
            self.most = max(self.most, int(used or 0))

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def describe(numbers):
    told = f"{numbers['full_seconds'] * 1e3:.1f} ms, {numbers['tokens_per_second']:.0f} tokens a second at batch {numbers['batch']}, "
    told += f"{100 * numbers['utilisation']:.0f} % of the card's {numbers['product_flops'] / 1e12:.0f} TFLOP/s, {numbers['memory_mb']} MB"
    return f"{told}, adapters {numbers['lora_seconds'] * 1e3:.1f} ms"


def query(command):
    try:
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return "unknown processor"


def last_line(output):
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def read_runs(folder):
    """Query to document to score, of all run files in a folder."""
    scores = {}
    for file in folder.rglob("*"):
        if file.is_file():
            for line in file.read_text().splitlines():
                words = line.split()
                scores.setdefault(words[0], {})[words[2]] = float(words[4])
    return scores


def best(scores):
    return max(sorted(scores), key=scores.get)


def read_records(folder):
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def read_losses(folder):
    return [record["loss"] for record in read_records(folder) if record["split"] == "train"]


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def find_number(value, name):
    """The first number of that name anywhere in a JSON value."""
    if isinstance(value, dict):
        if isinstance(value.get(name), (int, float)):
            return value[name]
        value = list(value.values())
    for part in value if isinstance(value, list) else []:
        found = find_number(part, name)
        if math.isfinite(found):
            return found
    return math.nan


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "llm", "data", "work", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--only", help="regular expression: only the checks whose names it finds")
    return Check(parser.parse_args()).everything()


if __name__ == "__main__":
    sys.exit(main())
