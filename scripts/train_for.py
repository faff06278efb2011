#!/usr/bin/env python3
"""Builds `train` against the PyTorch that a cluster has, instead of the one that `make setup` brings.

    scripts/train_for.py --torch 2.11             fetched first by `make setup TORCH=2.11`
    scripts/train_for.py --libtorch DIR           the `torch` folder of an installed wheel, or an unpacked libtorch
    scripts/train_for.py --torch 2.11 --check     compiles nothing against libtorch: whether the code fits that tch

A release of tch fits one release of PyTorch. This makes a workspace of links in `.deps/` that asks for the fitting tch, with the
lock file of this one but for it, and builds there. Words after `--` go to cargo (default: `build --release -p train`).
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# PyTorch to tch and torch-sys: their version and the digests of both as in a lock file. PyTorch 2.12 has no tch.
FITTING = {
    "2.11": (
        "0.24.0",
        "0d3f84a069d8ba16dbf720b61e8bf131d90ffb8e958a664eae8e4993c5c2fa6f",
        "f4ba78777379cf09aaa79708c63e477cf0f95e021d04360c6821f1a9f56173f7",
    ),
    "2.13": (
        "0.26.0",
        "975b1fb3b612ba925f03dd08b56e5c9452bb7102891d5d9f58c19b49a0b2ec1e",
        "5ae60ab95333c42adcc1a9e74057357e4324a1f344c403e48712a144ab731019",
    ),
}


class Fault(Exception):
    """What went wrong and the way out, in one sentence."""


def version_of(libtorch):
    """The version of an installed PyTorch, as `2.11.0+cu130`."""
    wheel, plain = libtorch / "version.py", libtorch / "build-version"
    if wheel.exists():
        found = re.search(r"^__version__ = '([^']+)'", wheel.read_text(), re.M)
    else:
        found = re.search(r"(.+)", plain.read_text()) if plain.exists() else None
    if found is None:
        raise Fault(
            "%s: neither version.py nor build-version tells PyTorch's version; name the folder `torch` of an installed wheel, "
            "or an unpacked libtorch" % libtorch
        )
    return found.group(1).strip()


def abi_of(libtorch):
    """_GLIBCXX_USE_CXX11_ABI of its libraries, 1 where it says nothing: so are all since 2.6."""
    file = libtorch / "share/cmake/Torch/TorchConfig.cmake"
    found = re.search(r"_GLIBCXX_USE_CXX11_ABI=([01])", file.read_text()) if file.exists() else None
    return found.group(1) if found else "1"


def fitting(version):
    """tch's row for a PyTorch version."""
    short = ".".join(version.split("+")[0].split(".")[:2])
    if short not in FITTING:
        raise Fault(
            "PyTorch %s has no release of tch that fits: expected %s; install one of these beside it, or use the one that "
            "`make setup` brings" % (version, " or ".join(sorted(FITTING)))
        )
    return short, FITTING[short]


def link(path, target):
    if path.is_symlink():
        path.unlink()
    path.symlink_to(target)


def workspace(short, row):
    """The folder with this workspace's members and a fitting tch."""
    version, tch, torch_sys = row
    folder = ROOT / ".deps" / ("train-for-%s" % short)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = (ROOT / "Cargo.toml").read_text()
    members = re.search(r"^members = \[(.*)\]", manifest, re.M).group(1)
    for member in {name.strip().strip('"').split("/")[0] for name in members.split(",")}:
        link(folder / member, Path("../..") / member)
    manifest, changed = re.subn(r'(?m)^((?:tch|torch-sys) = )".*"$', r'\g<1>"=%s"' % version, manifest)
    if changed != 2:
        raise Fault("Cargo.toml: tch and torch-sys stand there %d times, expected twice, as `tch = \"VERSION\"`" % changed)
    write(folder / "Cargo.toml", manifest)
    lock = (ROOT / "Cargo.lock").read_text()
    for name, digest in (("tch", tch), ("torch-sys", torch_sys)):
        entry = r'(name = "%s"\nversion = )"[^"]*"(\nsource = "[^"]*"\nchecksum = )"[^"]*"' % name
        lock, changed = re.subn(entry, r'\g<1>"%s"\g<2>"%s"' % (version, digest), lock)
        if changed != 1:
            raise Fault("Cargo.lock: no entry of %s as a registry's package" % name)
    write(folder / "Cargo.lock", lock)
    return folder


def write(path, text):
    """Only where it changes: cargo looks at times."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def check(short):
    """Whether all of `train` passes the compiler with that tch. No libtorch is needed."""
    folder, target = workspace(short, FITTING[short]), ROOT / "target" / ("check-torch-%s" % short)
    words = ["check", "--release", "--locked", "-p", "train", "--features", "tch/doc-only"]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(target))
    return subprocess.call([os.environ.get("CARGO", "cargo"), *words], cwd=str(folder), env=environment)


def run(args):
    if args.check:
        return check(args.torch or default_torch())
    if args.torch and not args.libtorch:
        libtorch = ROOT / ".deps" / ("libtorch" if args.torch == default_torch() else "libtorch-%s" % args.torch)
        if not libtorch.exists():
            raise Fault("%s is not there: run `make setup TORCH=%s` first" % (libtorch, args.torch))
    else:
        libtorch = args.libtorch
    libtorch = libtorch.absolute()
    if not (libtorch / "lib").is_dir():
        raise Fault("%s: no folder `lib` in it; name the folder `torch` of an installed wheel, or an unpacked libtorch" % libtorch)
    version = version_of(libtorch)
    short, row = fitting(version)
    if args.torch and args.torch != short:
        raise Fault("%s holds PyTorch %s, and --torch asks for %s: name one of them" % (libtorch, version, args.torch))
    folder = workspace(short, row)
    abi, cuda = abi_of(libtorch), (libtorch / "lib/libtorch_cuda.so").exists()
    target = ROOT / "target" / ("torch-%s" % short)
    about = "PyTorch %s (%s, C++11 ABI %s), tch %s, into %s" % (version, "CUDA" if cuda else "CPU", abi, row[0], target)
    print(about, file=sys.stderr, flush=True)
    environment = dict(os.environ, LIBTORCH=str(libtorch), LIBTORCH_CXX11_ABI=abi, CARGO_TARGET_DIR=str(target))
    words = args.cargo or ["build", "--release", "-p", "train"]
    return subprocess.call([os.environ.get("CARGO", "cargo"), words[0], "--locked", *words[1:]], cwd=str(folder), env=environment)


def default_torch():
    """The one that the workspace's own tch fits."""
    tch = re.search(r'^tch = "([^"]*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    return next(short for short, row in FITTING.items() if row[0] == tch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", metavar="VERSION", help="2.11 or 2.13")
    parser.add_argument("--libtorch", type=Path, metavar="DIR", help="an installed PyTorch")
    parser.add_argument("--check", action="store_true", help="only whether the code fits, without libtorch")
    parser.add_argument("cargo", nargs="*", help="what cargo is told, after `--`")
    args = parser.parse_args()
    try:
        if not args.torch and not args.libtorch and not args.check:
            raise Fault("name a PyTorch: --torch %s, or --libtorch DIR" % " or ".join(sorted(FITTING)))
        if args.torch and args.torch not in FITTING:
            fitting(args.torch + ".0")
        return run(args)
    except (Fault, OSError) as fault:
        sys.exit("train-for: %s" % fault)


if __name__ == "__main__":
    sys.exit(main())
