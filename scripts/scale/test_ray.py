#!/usr/bin/env python3
"""Encodes on a Ray cluster of two nodes (processes of this machine), kills one of them in the middle of a shard, and holds the
index to the one that `runtime index` makes alone: test_ray.py DIR RUNTIME, DIR as `tiny_bundle` wrote it.
"""

import filecmp
import os
import signal
import stat
import subprocess
import sys
import time
import uuid
from pathlib import Path

HERE = Path(__file__).parent
SHARDS = 6
# Far longer than anything here takes: a hang must end.
PATIENCE = 1800

# The program as the nodes see it: on the doomed one it leaves half a shard, says so, and never returns.
PROGRAM = """#!/bin/sh
echo "$TEST_SCALE_NODE $*" >> {log}
case "$TEST_SCALE_NODE $1" in
doomed-*' 'encode)
    previous=
    for argument; do
        if [ "$previous" = --out ]; then out=$argument; fi
        previous=$argument
    done
    {runtime} "$@" &
    child=$!
    while kill -0 $child 2> /dev/null; do
        if [ "$(stat -c %s "$out.partial" 2> /dev/null || echo 0)" -gt 4000 ]; then kill -9 $child; break; fi
    done
    touch {marker}
    sleep 100000;;
esac
exec {runtime} "$@"
"""


def processes(token):
    """Of one node: whatever has its name in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"TEST_SCALE_NODE=" + token.encode() in environment:
                found.append(int(entry.name))
    return found


def kill(token):
    while remaining := processes(token):
        for process in remaining:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.1)


def start_node(token, temporary, arguments):
    environment = dict(os.environ, TEST_SCALE_NODE=token, RAY_USAGE_STATS_ENABLED="0")
    # A raylet waits 15 seconds for its agents and then dies: on a busy machine one has to begin again.
    environment["RAY_raylet_start_wait_time_s"] = "60"
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--num-cpus=1", "--disable-usage-stats"]
    command += ["--object-store-memory=100000000"] + arguments
    for _ in range(5):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return
        kill(token)
    sys.exit("test_ray: a node does not start: %s%s" % (done.stdout, done.stderr))


def job(directory, program, port, index):
    environment = dict(os.environ, RAY_USAGE_STATS_ENABLED="0", RAY_DATA_DISABLE_PROGRESS_BARS="1")
    command = [sys.executable, str(HERE / "encode_ray.py"), "--address", "127.0.0.1:%d" % port]
    command += ["--bundle", str(directory / "bundle"), "--documents", str(directory / "corpus.jsonl")]
    command += ["--shards", str(SHARDS), "--out", str(directory / "shards"), "--index", str(index)]
    command += ["--runtime", str(program)]
    log = open(directory / "job.log", "a", encoding="utf-8")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def check(holds, what, directory):
    if not holds:
        tail = (directory / "job.log").read_text(encoding="utf-8")[-4000:]
        sys.exit("test_ray: %s\n%s" % (what, tail))


def main():
    directory, runtime = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    run = uuid.uuid4().hex
    head, doomed = "head-" + run, "doomed-" + run
    log, marker = directory / "runs.log", directory / "half-done"
    (directory / "shards").mkdir()
    program = directory / "program"
    text = PROGRAM.format(log=log, runtime=runtime, shards=directory / "shards", marker=marker)
    program.write_text(text, encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    bundle, documents = directory / "bundle", directory / "corpus.jsonl"
    alone = [runtime, "index", "--bundle", bundle, "--documents", documents, "--out", directory / "alone"]
    subprocess.run(alone, check=True, capture_output=True)

    port = 20000 + os.getpid() % 20000
    try:
        start_node(head, directory, ["--head", "--port=%d" % port, "--include-dashboard=false"])
        start_node(doomed, directory, ["--address=127.0.0.1:%d" % port])
        running = job(directory, program, port, directory / "together")
        deadline = time.monotonic() + PATIENCE
        while not marker.exists():
            check(running.poll() is None, "the job has ended before a node was killed", directory)
            check(time.monotonic() < deadline, "the second node got no shard", directory)
            time.sleep(0.1)
        kill(doomed)
        check(running.wait(PATIENCE) == 0, "the job has failed", directory)
        done = log.read_text(encoding="utf-8").splitlines()
        lost = [line.split("--shard ")[1].split()[0] for line in done if line.startswith(doomed)]
        said = (directory / "job.log").read_text(encoding="utf-8")
        check(len(lost) > 0, "the second node got no shard", directory)
        for shard in lost:
            again = [line for line in done if line.startswith(head) and "--shard %s " % shard in line]
            check(len(again) > 0, "shard %s was not done again" % shard, directory)
        check("by an interrupted run" in said, "no half-done shard was gone on with", directory)
        same = filecmp.cmp(directory / "alone/documents.sqlite", directory / "together/documents.sqlite", False)
        check(same, "the index is not the one of a single machine", directory)

        # Everything again: nothing is left to do.
        (directory / "job.log").write_text("", encoding="utf-8")
        check(job(directory, program, port, directory / "again").wait(PATIENCE) == 0, "the second job has failed", directory)
        said = (directory / "job.log").read_text(encoding="utf-8")
        check(said.count("is whole already") == SHARDS, "a whole shard was encoded again", directory)
    finally:
        kill(doomed)
        kill(head)
    print("ray: %d shards, node killed with shard %s half done, the index is that of one machine" % (SHARDS, lost[0]))


if __name__ == "__main__":
    main()
