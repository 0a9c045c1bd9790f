"""Pods and ranks that start in a moment: forked from a process that has imported everything.

`python -m tests.trainer.nursery` reads one JSON object a line:
{"pod": environment, "log", "slow"}  starts a supervisor, whose children are forked as well; each
write of a checkpoint takes `slow` seconds more
{"env", "epoch", "log", "channel", "crash", "late"}  starts a rank without one
{"poll": pid} or {"wait": pid}  its exit code as Popen gives it; null while it runs
The first two are answered with a process id. With `crash` n the rank is killed by SIGKILL at the
n-th step of the file work of its saver thread: before or after a write, an fsync, a rename, a
removal.
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
    """Serve until stdin ends."""
    garbage_collection.hold()
    import transformers.models.llama.modeling_llama  # noqa: F401

    from finetune_trainer.export import model_export  # noqa: F401
    from finetune_trainer.model import deepspeed_import
    from finetune_trainer.pod import supervisor  # noqa: F401
    from finetune_trainer.prepare import preparation  # noqa: F401
    from finetune_trainer.training import attempt  # noqa: F401

    deepspeed_import.load()
    garbage_collection.freeze()  # and no rank walks over it, which would copy its pages

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
        _write_to(request["log"])
        if "pod" in request:
            _write_slowly(request["slow"])
            forking.become_pod(request["pod"])
        _become_rank(request)
    return {"pid": pid}


def _write_to(log: str) -> None:
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
        _publish_late(request["late"])
    from finetune_trainer.training import attempt

    attempt.main()
    os._exit(0)


def _write_slowly(seconds: float) -> None:
    from finetune_trainer.checkpoint import write

    original = write.write

    def slow(*arguments: Any) -> None:
        original(*arguments)
        time.sleep(seconds)

    write.write = slow


def _publish_late(seconds: float) -> None:
    """Manifests come so much later; a rank that condemns checkpoints takes thrice that to end."""
    from finetune_trainer.checkpoint import store, write

    publish, condemn = write.publish, store.condemn

    def late(*arguments: Any) -> None:
        time.sleep(seconds)
        publish(*arguments)

    def slow(*arguments: Any) -> None:
        condemn(*arguments)
        time.sleep(3 * seconds)

    write.publish, store.condemn = late, slow


def _crash_at(number: int) -> None:
    """SIGKILL at the n-th moment; each call has one before and one after it."""
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
