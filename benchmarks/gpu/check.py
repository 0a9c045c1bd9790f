"""Checks and measures the trainer on a machine with GPUs, in eight minutes, without a network.

Each part runs in processes of its own and has its own time limit, so a part that fails or hangs
costs the others nothing. After each part, gpu-check.json holds all results so far; the output of
all parts is in gpu-check.log. The parts, in this order:

* machine: versions, devices, the rate of a large matmul and of copies
* tests: the tests that need a CUDA device
* self-check: every fused kernel against plain operations, for the shapes of both models
* combinations: a small model from files, at every ZeRO stage and offload
* training of Llama shapes with 1B and 8B parameters, random weights, bf16, packed rows of 4,096
  tokens, at ZeRO stages 1 to 3: tokens/s, MFU, peak memory, how long a checkpoint stops training
* Hugging Face Trainer with DeepSpeed on the same rows, with its own best switches

8B has moments in bf16, because those in fp32 do not fit into one device of 141 GB. A combination
that does not fit is a result, too. --dry-run does all this with a tiny model, on a CPU if there is
no GPU, to check the check itself.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[2]
if sys.path[0] != str(TREE):
    # If run as a file, this folder would hide modules of the same names.
    sys.path[0] = str(TREE)

from benchmarks.gpu import table  # noqa: E402

_WARM_UP, _STEPS = 2, 8
_ROWS = 64
_PROBE = TREE / "benchmarks" / "trainers" / "probe"


@dataclass(frozen=True)
class Part:
    """One part of the check."""

    name: str
    commands: list[list[str]]
    limit: float
    """Seconds for all commands."""
    result: Path | None = None
    """The file that the commands write as JSON, if any."""
    ranks: int = 0
    """Number of processes of the last command; 0: a single process that is not a rank."""
    env: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu/check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("gpu-check"), help="folder of the results")
    add("--limit", type=float, default=480.0, help="seconds for everything (default: 480)")
    add("--dry-run", action="store_true", help="use a tiny model, on the CPU if there is no GPU")
    add("--only", nargs="+", metavar="PART", help="run these parts only")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    world = _devices()
    if not world and not options.dry_run:
        parser.error("torch finds no CUDA device here; --dry-run checks the check itself on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        work = Path(folder)
        models = ["tiny"] if options.dry_run else ["1b", "8b"]
        _make_rows(work, ["small", *models])
        parts = list(_parts(work, models, max(1, world), cuda=bool(world)))
        results = run(parts, options.out, options.limit, options.only)
    print(table.text(results))
    return 0 if all(result["status"] == "ok" for result in results.values()) else 1


def _devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _make_rows(work: Path, models: list[str]) -> None:
    _extend_path()
    from benchmarks.gpu.shapes import SHAPES, make_rows

    for model in models:
        make_rows(work / f"rows-{model}", SHAPES[model], _ROWS)


def _extend_path() -> None:
    sys.path += [str(TREE / "api"), str(TREE / "trainer_image")]


def _parts(work: Path, models: list[str], world: int, *, cuda: bool) -> Iterator[Part]:
    """Yield the parts, the most useful ones first."""
    device = "cuda:0" if cuda else "cpu"
    yield Part("machine", [_module("machine", work / "machine.json")], 60, work / "machine.json")
    yield _tests(work)
    for model in models:
        file = work / f"kernels-{model}.json"
        yield Part(f"self-check {model}", [_module("kernels", model, device, file)], 90, file)
    yield _combinations(work, models[0], world)
    if models == ["tiny"]:
        yield _train(work, "tiny", 2, world)
        yield _train(work, "tiny", 3, world)
        yield _peer(work, "tiny", world, cuda=cuda)
        return
    yield _train(work, "1b", 2, world)
    yield _peer(work, "1b", world, cuda=cuda)
    for model, stage in (("1b", 3), ("8b", 3), ("8b", 2), ("1b", 1), ("8b", 1)):
        yield _train(work, model, stage, world)


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.gpu.{name}", *map(str, arguments)]


def _tests(work: Path) -> Part:
    settings = work / "pytest.ini"
    settings.write_text("[pytest]\naddopts = -ra --import-mode=importlib\n")
    command = [sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(TREE)]
    command += ["--noconftest", "-p", "no:cacheprovider", "-q", "tests/trainer/test_devices.py"]
    return Part("tests", [command], 90)


def _settings(work: Path, model: str, stage: int) -> dict[str, Any]:
    return {
        "shape": model,
        "stage": stage,
        "moments": "BF16" if model == "8b" else "FP32",
        "recompute": model == "8b",
        "microBatch": 1,
        "accumulate": 2 if model in ("tiny", "small") else 4,
        "steps": 3 if model == "tiny" else _STEPS,
        "warmUp": 1 if model == "tiny" else _WARM_UP,
        "rows": str(work / f"rows-{model}"),
        "kernels": str(work / f"kernels-{model}.json"),
    }


def _train(work: Path, model: str, stage: int, world: int) -> Part:
    file = work / f"train-{model}-{stage}.json"
    settings = _settings(work, model, stage) | {"result": str(file)}
    limit = 110 if model == "8b" else 60
    return Part(
        f"train {model} stage {stage}", [_module("train", json.dumps(settings))], limit, file, world
    )


def _combinations(work: Path, kernels: str, world: int) -> Part:
    file = work / "combinations.json"
    settings = _settings(work, "small", 2) | {
        "kernels": str(work / f"kernels-{kernels}.json"),
        "folder": str(work / "small"),
        "result": str(file),
    }
    return Part("combinations", [_module("combinations", json.dumps(settings))], 120, file, world)


def _peer(work: Path, model: str, world: int, *, cuda: bool) -> Part:
    """Return the part of Hugging Face Trainer, which saves once, before its last step."""
    ours = _settings(work, model, 2)
    folder = work / "peer"
    folder.mkdir()
    ours["folder"] = str(folder)
    settings = {
        "model": str(folder / "model"),
        "data": str(folder / "rows.jsonl"),
        "output": str(folder / "checkpoints"),
        "steps": str(folder / "steps"),
        "micro_batch": ours["microBatch"],
        "accumulate": ours["accumulate"],
        "total": ours["steps"],
        "saved": ours["steps"] - 1,
        "logged": 1,
        "stage": 2,
        "bf16": True,
        "recompute": ours["recompute"],
        "grouped": False,
        "packed": False,  # rows are full already
        "liger": cuda and _is_installed("liger_kernel"),
        "learning_rate": 1e-5,
        "optimizer": {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1},
        "max_grad_norm": 1.0,
        "seed": 1,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    hf_trainer = [sys.executable, "-m", "benchmarks.trainers.hf_trainer"]
    (folder / "peaks").mkdir()
    env = {"FINETUNE_BENCHMARK_PEAKS": str(folder / "peaks")} if cuda else {"DS_ACCELERATOR": "cpu"}
    commands = [_module("peer", json.dumps(ours)), [*hf_trainer, str(folder / "settings.json")]]
    return Part(f"peer {model} stage 2", commands, 100, folder / "steps.0", world, env)


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def run(
    parts: list[Part], out: Path, limit: float, only: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Run the parts one after another. Returns their results by name, and writes them to `out`."""
    began, results = time.monotonic(), {}
    with (out / "gpu-check.log").open("w") as log:
        for part in parts:
            if only and part.name not in only:
                continue
            left = limit - (time.monotonic() - began)
            results[part.name] = _result(part, left, log)
            _replace(out / "gpu-check.json", json.dumps(results, indent=1))
            print(f"{part.name}: {table.summary(results[part.name])}", flush=True)
    return results


def _result(part: Part, left: float, log: Any) -> dict[str, Any]:
    """Run one part, of which `left` seconds at most are used. Returns its figures and its end."""
    if left < 5:
        return {"status": "not run: no time is left"}
    began = time.monotonic()
    deadline = began + min(part.limit, left)
    log.write(f"\n===== {part.name}\n")
    log.flush()
    start, status = log.tell(), "ok"
    for number, command in enumerate(part.commands, 1):
        ranks = part.ranks if number == len(part.commands) else 0
        status = _run(command, ranks, part.env, deadline, log)
        if status != "ok":
            break
    found = _figures(part)
    if part.env.get("FINETUNE_BENCHMARK_PEAKS"):
        peaks = [
            int(f.read_text() or 0) for f in Path(part.env["FINETUNE_BENCHMARK_PEAKS"]).glob("*")
        ]
        found["peakBytes"] = max(peaks, default=None)
    if part.name == "tests" or status != "ok":
        found["lastLine"] = _last_line(Path(log.name), start)
    return {"status": status, "seconds": round(time.monotonic() - began, 1), **found}


def _run(command: list[str], ranks: int, env: dict[str, str], deadline: float, log: Any) -> str:
    """Run one process, or one for each rank, until the deadline. Returns how they ended."""
    environments = _ranks(ranks) if ranks else [{}]
    with _processes(command, [_environment() | env | rank for rank in environments], log) as all_:
        while any(process.poll() is None for process in all_):
            if any(process.poll() for process in all_):
                break  # the other ranks would wait for this one
            if time.monotonic() > deadline:
                return "stopped: its time was over"
            time.sleep(0.1)
        codes = [process.poll() for process in all_]
    bad = next((code for code in codes if code), 0)
    return f"failed with exit code {bad}" if bad else "ok"


@contextmanager
def _processes(
    command: list[str], environments: list[dict[str, str]], log: Any
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes, each with its own session, and kill these sessions at the end."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for environment in environments:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=TREE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            started += [process]
        yield started
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment() -> dict[str, str]:
    paths = [TREE, TREE / "api", TREE / "trainer_image", _PROBE]
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *([inherited] if inherited else [])]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRITON_CACHE_DIR": f"/tmp/gpu-check-triton-{os.getuid()}",
    }


def _ranks(world: int) -> list[dict[str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world)),
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def _figures(part: Part) -> dict[str, Any]:
    """Return what a part has written so far."""
    try:
        text = part.result.read_text() if part.result else "{}"
    except OSError:
        return {}
    if not part.name.startswith("peer"):
        return {"kernels": json.loads(text)} if "self-check" in part.name else json.loads(text)
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [line for line in lines if line["part"] == "train"]
    counted = steps[1 if len(steps) <= 4 else _WARM_UP : -1]
    saves = [line["seconds"] for line in lines if line["part"] == "save"]
    found: dict[str, Any] = {"stallSeconds": saves[0]} if saves else {}
    if counted:
        seconds = sum(step["seconds"] for step in counted)
        tokens = sum(step["tokens"] for step in counted) * max(1, part.ranks)
        found |= {"tokensPerSecond": tokens / seconds, "stepSeconds": seconds / len(counted)}
    losses = [line["loss"] for line in lines if line["part"] == "log"]
    return found | ({"firstLoss": losses[0], "lastLoss": losses[-1]} if losses else {})


def _last_line(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _replace(file: Path, text: str) -> None:
    written = file.with_suffix(".new")
    written.write_text(text)
    written.replace(file)


if __name__ == "__main__":
    sys.exit(main())
