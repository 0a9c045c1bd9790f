"""Runs the parts of the operator that must not end before the operator does.

A part can end in three ways that a TaskGroup does not treat as a failure: it returns, or it raises
CancelledError without having been cancelled (Python 3.11.2 raises one from `asyncio.timeout` in a
task that a TaskGroup has cancelled before), or it is cancelled by something inside it. Here each of
them raises PartEndedError, so that the process ends and Kubernetes starts it again.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger("finetune")


class PartEndedError(Exception):
    """A part of the operator ended although the operator goes on."""


async def forever(name: str, part: Coroutine[Any, Any, object]) -> None:
    """Run a part until this call is cancelled. Raises its exception, or else PartEndedError.

    The part runs in a task of its own: the cancellation that ends it leaves nothing behind in the
    task that calls this function.
    """
    task = asyncio.create_task(part, name=name)
    try:
        await asyncio.wait({task})
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()):
                _log.error("%s failed while it was stopped", name, exc_info=error)
    if task.cancelled():
        raise PartEndedError(f"{name} was cancelled, but not by the operator")
    task.result()
    raise PartEndedError(f"{name} ended")


async def at_most(seconds: float, work: Coroutine[Any, Any, object]) -> bool:
    """Run clean-up work for a limited time and return whether it completed. Raises its exception.

    The work runs in a task of its own, so that its time limits and those of its requests also work
    if the caller is being cancelled.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        return False
    task.result()
    return True
