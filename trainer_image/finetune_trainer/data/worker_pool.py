"""Processes that tokenize blocks in parallel and return the results in the order of the input.

Blocks are assigned in turn: of n processes each gets every n-th block and holds one at a time. So
memory is bounded, and the order does not depend on the number of processes.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from itertools import cycle
from multiprocessing.connection import Connection

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.block import BLOCK_BYTES, Block
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.shapes import Shape
from finetune_trainer.data.tokenize_block import Recipe, TokenizedBlock, tokenize

Task = tuple[Shape, Block]
# What transformers imports to read a tokenizer includes torch: imported once, shared by all.
_PRELOADED = [
    "finetune_trainer.data.tokenize_block",
    "transformers.models.auto.tokenization_auto",
    "transformers.utils.chat_template_utils",
]


class WorkerPool:
    """The processes of one build. With one process, this process does the work itself."""

    def __init__(self, renderer: Renderer, recipe: Recipe, processes: int) -> None:
        self._renderer, self._recipe = renderer, recipe
        self._workers = [_Worker(recipe) for _ in range(processes)] if processes > 1 else []

    def in_order(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, TokenizedBlock]]:
        """Yield each task with its documents; re-raise the TrainerError of any process."""
        if not self._workers:
            for task in tasks:
                yield task, tokenize(self._renderer, self._recipe, *task)
            return
        waiting: deque[tuple[_Worker, Task]] = deque()
        for task, worker in zip(tasks, cycle(self._workers), strict=False):
            # A very long row takes much memory: only one process has such a row at any time.
            while len(waiting) == len(self._workers) or (
                _is_long(task) and any(_is_long(other) for _, other in waiting)
            ):
                yield _next_result(waiting)
            worker.send(task)
            waiting.append((worker, task))
        while waiting:
            yield _next_result(waiting)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()


def _is_long(task: Task) -> bool:
    return task[1].bytes > 2 * BLOCK_BYTES


def _next_result(waiting: "deque[tuple[_Worker, Task]]") -> tuple[Task, TokenizedBlock]:
    worker, task = waiting.popleft()
    return task, worker.receive()


class _Worker:
    """One process. It ends when its pipe is closed, so also when this process is killed."""

    def __init__(self, recipe: Recipe) -> None:
        # Forked by a server without threads, which this process is not; they share its imports.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, recipe), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, task: Task) -> None:
        try:
            self._pipe.send(task)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> TokenizedBlock:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(answer, TrainerError):
            raise answer
        found: TokenizedBlock = answer
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
                "a process that prepares data was killed, probably because memory ran out; raise "
                "the memory request and limit of the trainer container (workers.template)",
            )
        return TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"a process that prepares data ended unexpectedly (exit code {code}); see the log",
        )


def _serve(pipe: Connection, recipe: Recipe) -> None:
    """Tokenize blocks until the pipe is closed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    renderer: Renderer | None = None
    while True:
        try:
            shape, block = pipe.recv()
        except EOFError:
            return
        try:
            renderer = renderer or recipe.renderer()
            answer: TokenizedBlock | TrainerError = tokenize(renderer, recipe, shape, block)
        except TrainerError as error:
            answer = error
        pipe.send(answer)
