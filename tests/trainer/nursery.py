"""Forks pods and ranks from a process that has already imported all libraries.

`python -m tests.trainer.nursery` reads one JSON object per line:

{"pod": environment, "log", "slow"}
    Starts a supervisor, whose children are forked as well. Each write of a checkpoint takes `slow`
    seconds longer. The answer is a process id.
{"env", "epoch", "log", "channel", "crash", "late"}
    Starts a rank without a supervisor. With `crash` n, it is killed by SIGKILL at the n-th moment
    of the file operations of its saver thread: before or after a write, an fsync, a rename or a
    deletion. The answer is a process id.
{"poll": pid} or {"wait": pid}
    The answer is the exit code as Popen returns it, or null while the process runs.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from finetune_local.machine import die_with_parent
from finetune_trainer.common import garbage_collection
from tests.trainer import forking


def main() -> None:
    """Answer requests until stdin ends."""
    garbage_collection.hold()
    import transformers.models.llama.modeling_llama  # noqa: F401

    from finetune_trainer.export import model_export  # noqa: F401
    from finetune_trainer.model.fast_imports import load_deepspeed
    from finetune_trainer.pod import supervisor  # noqa: F401
    from finetune_trainer.prepare import preparation  # noqa: F401
    from finetune_trainer.training import attempt  # noqa: F401

    load_deepspeed()
    garbage_collection.freeze()  # a scan by a rank would copy all pages

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(request)), flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    for question, options in (("wait", 0), ("poll", os.WNOHANG)):
        if question in request:
            pid, status = os.waitpid(request[question], options)
            return {"code": os.waitstatus_to_exitcode(status) if pid else None}
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        _redirect_output(request["log"])
        if "pod" in request:
            _delay_writes(request["slow"])
            forking.become_pod(request["pod"])
        _become_rank(request)
    return {"pid": pid}


def _redirect_output(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _become_rank(request: dict[str, Any]) -> None:
    channel = os.open(request["channel"], os.O_WRONLY)
    os.environ.update(request["env"], FINETUNE_CHANNEL=str(channel))
    sys.argv = ["rank", str(request["epoch"])]
    if request["crash"]:
        _crash_at(request["crash"])
    if request["late"]:
        _delay_manifests(request["late"])
    from finetune_trainer.training import attempt

    attempt.main()
    os._exit(0)


def _delay_writes(seconds: float) -> None:
    from finetune_trainer.checkpoint import write

    original = write.write

    def slow(*arguments: Any) -> None:
        original(*arguments)
        time.sleep(seconds)

    write.write = slow


def _delay_manifests(seconds: float) -> None:
    """Delay manifests by some seconds, and the return from marking as diverged by three times."""
    from finetune_trainer.checkpoint import store, write

    publish, mark_diverged = write.publish, store.mark_diverged

    def late(*arguments: Any) -> None:
        time.sleep(seconds)
        publish(*arguments)

    def slow(*arguments: Any) -> None:
        mark_diverged(*arguments)
        time.sleep(3 * seconds)

    write.publish, store.mark_diverged = late, slow


def _crash_at(number: int) -> None:
    """Kill this process by SIGKILL at the n-th moment, before or after a file operation."""
    from finetune_trainer.run_dir import tensor_file

    left = number

    def moment() -> None:
        nonlocal left
        if threading.current_thread().name != "saver":
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            moment()
            result = call(*arguments, **options)
            moment()
            return result

        return wrapper

    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, watched(getattr(os, name)))
    writer: Any = tensor_file._Writer
    writer.write = watched(writer.write)


if __name__ == "__main__":
    main()
