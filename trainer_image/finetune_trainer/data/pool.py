"""Processes that share the work of preparation, in order.

Blocks go round: process i has every n-th block and holds one at a time, so memory is bounded and
results come back in the order of the input, whatever the number of processes.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from itertools import cycle
from multiprocessing.connection import Connection

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.read import Block
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.shapes import Shape
from finetune_trainer.data.work import Chunk, Recipe, process

Task = tuple[Shape, Block]
# What transformers needs to read a tokenizer brings torch with it: imported once, shared by all.
_SHARED = [
    "finetune_trainer.data.work",
    "transformers.models.auto.tokenization_auto",
    "transformers.utils.chat_template_utils",
]


class Pool:
    """Processes for the length of one build. One process is this one, with its own renderer."""

    def __init__(self, renderer: Renderer, recipe: Recipe, processes: int) -> None:
        self._renderer, self._recipe = renderer, recipe
        self._workers = [_Worker(recipe) for _ in range(processes)] if processes > 1 else []

    def in_order(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Chunk]]:
        """Each task with its documents; TrainerError from whichever process it comes."""
        if not self._workers:
            for task in tasks:
                yield task, process(self._renderer, self._recipe, *task)
            return
        waiting: deque[tuple[_Worker, Task]] = deque()
        for task, worker in zip(tasks, cycle(self._workers), strict=False):
            if len(waiting) == len(self._workers):
                yield _result(waiting)
            worker.send(task)
            waiting.append((worker, task))
        while waiting:
            yield _result(waiting)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()


def _result(waiting: "deque[tuple[_Worker, Task]]") -> tuple[Task, Chunk]:
    worker, task = waiting.popleft()
    return task, worker.receive()


class _Worker:
    """One process. It ends when its pipe does, so also when this process is killed."""

    def __init__(self, recipe: Recipe) -> None:
        # A clean server forks them: this process has threads, and they share what it imported.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_SHARED)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, recipe), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, task: Task) -> None:
        try:
            self._pipe.send(task)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Chunk:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(answer, TrainerError):
            raise answer
        found: Chunk = answer
        return found

    def close(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def _died(self) -> TrainerError:
        self._process.join(5)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return TrainerError(
                ExitCode.OUT_OF_MEMORY,
                "a process that prepares data was killed, probably for lack of memory; raise the "
                "memory request and limit of the trainer container (workers.template)",
            )
        return TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"a process that prepares data ended unexpectedly (exit code {code}); the log says why",
        )


def _serve(pipe: Connection, recipe: Recipe) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    renderer: Renderer | None = None
    while True:
        try:
            shape, block = pipe.recv()
        except EOFError:
            return
        try:
            renderer = renderer or recipe.renderer()
            answer: Chunk | TrainerError = process(renderer, recipe, shape, block)
        except TrainerError as error:
            answer = error
        pipe.send(answer)
