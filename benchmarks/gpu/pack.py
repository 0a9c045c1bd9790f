"""Packs the check for a machine with GPUs that has no network, and runs it if this one has GPUs.

build/gpu-check.tar.gz holds the sources and, as wheels, what such a machine lacks: it must have
Python 3.12, torch with CUDA and Triton, transformers, accelerate, safetensors, numpy and pytest.
Copy it there, and

    tar xzf gpu-check.tar.gz && sh gpu-check/run.sh

prints a table and writes gpu-check/results/gpu-check.json. The archive has 60 MiB at most.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
OUT = TREE / "build" / "gpu-check"
ARCHIVE = TREE / "build" / "gpu-check.tar.gz"
MOST = 60 << 20  # bytes
_SOURCES = (
    "api/finetune_api",
    "trainer_image/finetune_trainer",
    "benchmarks/gpu",
    "benchmarks/trainers",
    "tests/trainer/test_devices.py",
)
_WHEELS = (
    "annotated-types",
    "einops",
    "hjson",
    "msgpack",
    "ninja",
    "psutil",
    "py-cpuinfo",
    "pydantic",
    "pydantic-core",
    "tqdm",
    "typing-extensions",
    "typing-inspection",
    "xxhash",
)
_LIGER = "liger-kernel==0.8.5"
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
_RUN = """#!/bin/sh
# Installs the wheels beside this script, and runs the check. Options: see check.py --help.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \\
  --target "$here/site" "$here"/wheels/*.whl
PYTHONPATH="$here/site" python3 "$here/tree/benchmarks/gpu/check.py" \\
  --out "${OUT:-$here/results}" "$@"
"""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu/pack.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--python", default="3.12", help="version of Python there (default: 3.12)")
    parser.add_argument("--no-run", action="store_true", help="only pack, also if there are GPUs")
    options = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    _copy_sources()
    _fetch_wheels(options.python)
    (OUT / "run.sh").write_text(_RUN)
    with tarfile.open(ARCHIVE, "w:gz") as archive:
        archive.add(OUT, "gpu-check")
    size = ARCHIVE.stat().st_size
    if size > MOST:
        print(f"{ARCHIVE} has {size:,} bytes, {MOST:,} are allowed", file=sys.stderr)
        return 1
    print(f"{ARCHIVE.relative_to(TREE)}: {size / 2**20:.1f} MiB")
    if options.no_run or not _has_gpus():
        print(
            "copy it to a machine with GPUs; there: tar xzf gpu-check.tar.gz, sh gpu-check/run.sh"
        )
        return 0
    return subprocess.run([sys.executable, TREE / "benchmarks/gpu/check.py"], cwd=TREE).returncode


def _copy_sources() -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in _SOURCES:
        target = OUT / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (TREE / name).is_dir():
            shutil.copytree(TREE / name, target, ignore=ignored)
        else:
            shutil.copy(TREE / name, target)


def _fetch_wheels(python: str) -> None:
    """Get wheels in the versions of this environment, from pip's cache or the index."""
    folder = OUT / "wheels"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Published as sources only. None of its operators is compiled, so the wheel fits everywhere.
    deepspeed = f"deepspeed=={version('deepspeed')}"
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", folder, deepspeed],
        env=os.environ | {"DS_BUILD_OPS": "0"},
        check=True,
    )
    where = ["--python-version", python, "--implementation", "cp"]
    for platform in _PLATFORMS:
        where += ["--platform", f"{platform}_x86_64"]
    pinned = [f"{name}=={version(name)}" for name in _WHEELS]
    download = [*pip, "download", "--no-deps", "--only-binary=:all:", *where, "--dest", folder]
    subprocess.run([*download, *pinned, _LIGER], check=True)


def _has_gpus() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
