#!/usr/bin/env python3
"""Encode documents on a Ray cluster, a shard a task, and merge the shards into an index: a Ray Data job around
`runtime encode` and `runtime index --from`.

Bundle, documents and --out have to be on a disk that all nodes share, under the same paths; so does the runtime program, or
it is on every node's PATH. A task whose node dies is started on another one and goes on with what the dead one had written;
running the whole job again costs nothing for shards that are whole.

    python encode_ray.py --bundle bundle --documents corpus.jsonl --shards 64 --out shards --index index
"""

import argparse
import os
import signal
import socket
import subprocess
import sys

import ray

# prctl(PR_SET_PDEATHSIG): a program whose worker has been killed must not go on beside the one that takes its place.
PR_SET_PDEATHSIG = 1


def die_with_parent():
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def shard_file(out, number, of):
    return os.path.join(out, "shard-%05d-of-%05d.safetensors" % (number, of))


def encode(row, runtime, bundle, documents, out, of, more):
    """One task: one shard. What `runtime` says becomes part of the row, or of the error."""
    number = int(row["id"]) + 1
    command = [runtime, "encode", "--bundle", bundle, "--documents", documents]
    command += ["--shard", "%d/%d" % (number, of), "--out", shard_file(out, number, of)] + more
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=die_with_parent)
    said = done.stderr.strip().splitlines()[-1:] or ["(it said nothing)"]
    if done.returncode != 0:
        raise RuntimeError("shard %d/%d: exit code %d: %s" % (number, of, done.returncode, said[0]))
    return {"shard": number, "node": socket.gethostname(), "said": said[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="bundle directory")
    parser.add_argument("--documents", required=True, help="all documents, as `runtime index` takes them")
    parser.add_argument("--shards", required=True, type=int, help="number of shards; a few for each node that will work")
    parser.add_argument("--out", required=True, help="directory of the shards")
    parser.add_argument("--index", help="index to make of them in the end")
    parser.add_argument("--runtime", default="runtime", help="the program (default: from PATH)")
    parser.add_argument("--address", default="auto", help="the cluster (default: the one this machine belongs to)")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a task (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a task (default: 0)")
    parser.add_argument("more", nargs="*", help="behind --: flags for every `runtime encode`, e.g. --provider cuda")
    args = parser.parse_args()
    if args.shards < 1:
        parser.error("--shards %d: at least 1 is needed" % args.shards)
    if args.documents == "-":
        parser.error("--documents -: every node reads the documents, so they have to be a file")

    paths = {name: os.path.abspath(getattr(args, name)) for name in ("bundle", "documents", "out")}
    os.makedirs(paths["out"], exist_ok=True)
    runtime = os.path.abspath(args.runtime) if os.sep in args.runtime else args.runtime
    more = args.more or ["--threads", str(max(1, int(args.cpus)))]

    ray.init(address=args.address)
    # One row a task. Ray Data begins it again as often as its node dies; one that fails by itself ends the job.
    shards = ray.data.range(args.shards, override_num_blocks=args.shards)
    settings = {"runtime": runtime, "of": args.shards, "more": more, **paths}
    done = shards.map(encode, fn_kwargs=settings, num_cpus=args.cpus, num_gpus=args.gpus)
    for row in done.iter_rows():
        print("%s: %s" % (row["node"], row["said"].removeprefix("runtime: ")), file=sys.stderr)

    files = [shard_file(paths["out"], number + 1, args.shards) for number in range(args.shards)]
    if args.index:
        command = [runtime, "index", "--bundle", paths["bundle"], "--out", args.index, "--from"] + files
        return subprocess.run(command).returncode
    print("\n".join(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
