"""A process with transformers 4, whose packages precede those of the tests' environment.

torch, numpy and the rest come from the tests' environment.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune_local.cache import cache_folder, made_once

PACKAGES = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2")
_SCRIPT = Path(__file__).with_name("load_and_generate.py")


def overlay() -> Path:
    """Return the folder with the packages. It is installed once on each machine."""
    key = hashlib.sha256("\n".join([sys.version, *PACKAGES]).encode()).hexdigest()[:16]
    return made_once(cache_folder() / f"transformers4-{key}", _install)


def _install(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", str(folder), *PACKAGES], check=True)


def load(folder: Path, out: Path, packages: Path | None = None) -> dict[str, Any]:
    """Return what `load_and_generate.py` reports about a model folder.

    `packages` is a folder with another version of transformers.
    """
    path = os.environ.get("PYTHONPATH")
    first = [str(packages)] if packages else []
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*first, *([path] if path else [])])}
    command = [sys.executable, str(_SCRIPT), str(folder), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return found
