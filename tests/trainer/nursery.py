"""Ranks that start in a moment: forked from a process that has imported everything.

`python -m tests.trainer.nursery` reads one JSON object a line: {"env", "epoch", "log", "channel",
"crash"} starts a rank and answers with its process id, {"wait": pid} waits for it and answers with
its exit code as a shell gives it. With `crash` n the rank is killed by SIGKILL at the n-th step of
the file work of its saver thread: before or after a write, an fsync, a rename, a removal.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from finetune_local.machine import die_with_parent
from finetune_trainer import garbage


def main() -> None:
    """Serve until stdin ends."""
    garbage.hold()
    import transformers.models.llama.modeling_llama  # noqa: F401

    from finetune_trainer import attempt, deepspeed_import  # noqa: F401

    deepspeed_import.load()
    garbage.settle()  # and no rank walks over it, which would copy its pages

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps({"code": 128 - code if code < 0 else code}), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _become(request)
        print(json.dumps({"pid": pid}), flush=True)


def _become(request: dict[str, Any]) -> None:
    die_with_parent()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(request["log"], flags, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    channel = os.open(request["channel"], flags, 0o644)
    os.environ.update(request["env"], FINETUNE_CHANNEL=str(channel))
    sys.argv = ["rank", str(request["epoch"])]
    if request["crash"]:
        _crash_at(request["crash"])
    from finetune_trainer import attempt

    attempt.main()
    os._exit(0)


def _crash_at(number: int) -> None:
    """SIGKILL at the n-th moment; each call has one before and one after it."""
    from finetune_trainer import tensor_file

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
