#!/usr/bin/env python3
"""Runs one stage of the demo and adds a line to its report: stage.py REPORT NAME OUTPUT -- COMMAND...

The line: name, wall seconds, peak memory of the command in MB, size of OUTPUT on disk in MB ('-' for no output).
"""
import os
import resource
import subprocess
import sys
import time


def size_mb(path):
    """Apparent size of a file or folder; a hard link into another stage's folder counts once more."""
    if os.path.isfile(path):
        return os.path.getsize(path) / 1e6
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(path) for f in fs) / 1e6


def main():
    report, name, output, separator, *command = sys.argv[1:]
    if separator != "--" or not command:
        sys.exit(__doc__)
    print(f"\n== {name}\n$ {' '.join(command)}", file=sys.stderr, flush=True)
    start = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    seconds = time.monotonic() - start
    if code != 0:
        sys.exit(f"demo: {name} failed with exit code {code}")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    disk = "" if output == "-" else f"{size_mb(output):.0f}"
    with open(report, "a", encoding="utf-8") as file:
        file.write(f"| {name} | {seconds:.0f} | {memory:.0f} | {disk} |\n")


if __name__ == "__main__":
    main()
