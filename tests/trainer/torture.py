"""Kills ranks in the middle of saves, again and again: `python -m tests.trainer.torture`.

One run of a tiny model. Every attempt has a random world size and ZeRO stage, and one of its ranks
is killed by SIGKILL at a random moment of the file work of its first saves. After each kill, what
lies on storage must be whole and no older than before; at the end the run must have learned what
the undisturbed one learned.
"""

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.checkpoint import store
from tests.trainer import forked, gang, tiny, weights

STEPS = 60
_MOMENTS = 600  # of file work, in the first few saves
_TOLERANCE = 2e-3  # of the loss, nats: other world sizes sum in another order
_LOSS = re.compile(r"step (\d+) of \d+, loss ([\d.]+)")


@dataclass
class Toll:
    """What happened."""

    kills: int = 0
    attempts: int = 0
    unpublished: int = 0
    difference: float = 0.0


class Torture:
    """One run, its gangs, and what must hold after each of them."""

    def __init__(self, job: gang.Job, seed: int) -> None:
        self._job = job
        self._random = random.Random(seed)
        self._paths = weights.paths_of(job)
        self.losses: dict[int, float] = {}
        self.toll = Toll()

    def kill_once(self) -> None:
        """One attempt that is killed in a save, and a look at what it left."""
        before = self._newest()
        world, stage = self._random.choice((1, 2, 3)), self._random.choice((1, 2, 3))
        victim = self._random.randrange(world)
        codes, log = self._attempt(world, stage, victim, self._random.randint(1, _MOMENTS))
        self.toll.kills += codes[victim] == 137
        assert {code for code in codes if code != 137} <= {88, 0}, log
        assert "Traceback" not in log, log
        self._check(before, log)

    def finish(self) -> None:
        """An attempt that nothing happens to."""
        codes, log = self._attempt(2, 2, None, 0)
        assert codes == [0, 0], log
        self._check(None, log)

    @property
    def over(self) -> bool:
        """The run reached its end in spite of it all."""
        return self._newest() == STEPS

    def begin_again(self) -> None:
        """A fresh run on the same data."""
        for folder in self._paths.checkpoints.iterdir():
            store.remove(folder)
        self._paths.evaluations.unlink(missing_ok=True)

    def _attempt(
        self, world: int, stage: int, victim: int | None, moment: int
    ) -> tuple[list[int], str]:
        self.toll.attempts += 1
        plan = gang.make_plan(zeroStage=stage, totalSteps=STEPS)
        return forked.attempt(self._job, world, plan, victim=victim, moment=moment)

    def _newest(self) -> int:
        found = store.newest_valid(self._paths, self._job.config["runDigest"])
        return found[1].step if found else 0

    def _check(self, before: int | None, log: str) -> None:
        """Everything that says it is whole is whole, and nothing was lost."""
        published = store.published(self._paths)
        for folder, manifest in published:
            assert store.damaged_file(folder, manifest) is None, f"{folder.name}\n{log}"
        if before is not None:
            assert self._newest() >= before, log
            resumed = f"resumed from checkpoint step-{before:08d}"
            assert before == 0 or resumed in log, log
        folders = [path for path in self._paths.checkpoints.iterdir() if path.is_dir()]
        self.toll.unpublished += len(folders) > len(published)
        for step, loss in _LOSS.findall(log):
            known = self.losses.setdefault(int(step), float(loss))
            self.toll.difference = max(self.toll.difference, abs(known - float(loss)))
        assert self.toll.difference < _TOLERANCE


def run(job: gang.Job, kills: int, seed: int, tell: Callable[[Toll], None]) -> Toll:
    """Kill so many times; AssertionError with the log of the attempt that broke something."""
    torture = Torture(job, seed)
    torture.finish()  # undisturbed: its losses are those that all others must meet
    torture.begin_again()
    while torture.toll.kills < kills:
        torture.kill_once()
        tell(torture.toll)
        if torture.over:
            torture.begin_again()
    torture.finish()
    return torture.toll


def make_job(claim: Path) -> gang.Job:
    """A tiny model and data, prepared."""
    tiny.make_model(claim / "model")
    tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(60, 1))
    tiny.write_jsonl(claim / "data/validation.jsonl", tiny.make_messages(4, 2))
    training = {"maxSteps": STEPS, "globalBatchSize": 6}
    job = gang.make_job(claim, training=training, checkpoints={"intervalSteps": 1})
    assert job.prepare().wait() == 0
    return job


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.trainer.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="ranks to kill (200)")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices (1)")
    arguments = parser.parse_args()

    def tell(toll: Toll) -> None:
        print(f"\r{toll.kills} of {arguments.kills} killed, {toll.attempts} attempts", end="")

    with tempfile.TemporaryDirectory() as folder:
        toll = run(make_job(Path(folder)), arguments.kills, arguments.seed, tell)
    print(
        f"\n{toll.kills} kills in {toll.attempts} attempts, an unpublished folder beside the "
        f"checkpoints {toll.unpublished} times; nothing lost, nothing damaged; the loss differs "
        f"by at most {toll.difference:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
