"""Kills ranks in the middle of saves, again and again: `python -m tests.trainer.torture`.

One run of a tiny model. Every attempt has a random world size and ZeRO stage, and one of its ranks
is killed by SIGKILL at a random moment of the file operations of its first saves. After each kill,
the published checkpoints must be valid and no older than before. At the end, the losses must be
those of an undisturbed run.
"""

import argparse
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.checkpoint import store
from tests.trainer import forked, gang, tiny, weights

STEPS = 60
_MOMENTS = 600  # of file operations, in the first few saves
_TOLERANCE = 2e-3  # of the loss, in nats: other world sizes sum in another order
_LOSS = re.compile(r"step (\d+) of \d+, loss ([\d.]+)")


@dataclass
class Counts:
    """What happened in all attempts so far."""

    kills: int = 0
    attempts: int = 0
    unpublished: int = 0
    difference: float = 0.0


class Torture:
    """One run, its attempts, and the checks after each of them."""

    def __init__(self, job: gang.Job, seed: int) -> None:
        self._job = job
        self._random = random.Random(seed)
        self._paths = weights.paths_of(job)
        self.losses: dict[int, float] = {}
        self.counts = Counts()

    def kill_once(self) -> None:
        """Run an attempt that is killed in a save, and check the storage."""
        before = self._newest()
        world, stage = self._random.choice((1, 2, 3)), self._random.choice((1, 2, 3))
        victim = self._random.randrange(world)
        codes, log = self._attempt(world, stage, victim, self._random.randint(1, _MOMENTS))
        self.counts.kills += codes[victim] == 137
        assert {code for code in codes if code != 137} <= {88, 0}, log
        assert "Traceback" not in log, log
        self._check(before, log)

    def finish(self) -> None:
        """Run an undisturbed attempt to the end of the run."""
        codes, log = self._attempt(2, 2, None, 0)
        assert codes == [0, 0], log
        self._check(None, log)

    @property
    def is_over(self) -> bool:
        """Whether the run has reached its last step."""
        return self._newest() == STEPS

    def begin_again(self) -> None:
        """Delete all results, for a new run on the same data."""
        for folder in self._paths.checkpoints.iterdir():
            shutil.rmtree(folder)
        self._paths.evaluations.unlink(missing_ok=True)

    def _attempt(
        self, world: int, stage: int, victim: int | None, moment: int
    ) -> tuple[list[int], str]:
        self.counts.attempts += 1
        plan = gang.make_plan(zeroStage=stage, totalSteps=STEPS)
        return forked.attempt(self._job, world, plan, victim=victim, moment=moment)

    def _newest(self) -> int:
        found = store.newest_valid(self._paths, self._job.config["runDigest"])
        return found[1].step if found else 0

    def _check(self, before: int | None, log: str) -> None:
        """Check that all published checkpoints are valid, and that none was lost."""
        published = store.published(self._paths)
        for folder, manifest in published:
            assert store.damaged_file(folder, manifest) is None, f"{folder.name}\n{log}"
        if before is not None:
            assert self._newest() >= before, log
            resumed = f"resumed from checkpoint step-{before:08d}"
            assert before == 0 or resumed in log, log
        folders = [path for path in self._paths.checkpoints.iterdir() if path.is_dir()]
        self.counts.unpublished += len(folders) > len(published)
        for step, loss in _LOSS.findall(log):
            known = self.losses.setdefault(int(step), float(loss))
            self.counts.difference = max(self.counts.difference, abs(known - float(loss)))
        assert self.counts.difference < _TOLERANCE


def run(job: gang.Job, kills: int, seed: int, report: Callable[[Counts], None]) -> Counts:
    """Kill `kills` ranks. Raises AssertionError with the log of an attempt that failed a check."""
    torture = Torture(job, seed)
    torture.finish()  # undisturbed: all later losses are compared with its losses
    torture.begin_again()
    while torture.counts.kills < kills:
        torture.kill_once()
        report(torture.counts)
        if torture.is_over:
            torture.begin_again()
    torture.finish()
    return torture.counts


def make_job(claim: Path) -> gang.Job:
    """Return a prepared job with a tiny model."""
    tiny.make_model(claim / "model")
    tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(60, 1))
    tiny.write_jsonl(claim / "data/validation.jsonl", tiny.make_messages(4, 2))
    training = {"maxSteps": STEPS, "globalBatchSize": 6}
    job = gang.make_job(claim, training=training, checkpoints={"intervalSteps": 1})
    assert job.prepare().wait() == 0
    return job


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.trainer.torture", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=200, help="ranks to kill (200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random choices (1)")
    arguments = parser.parse_args()

    def report(counts: Counts) -> None:
        print(f"\r{counts.kills} of {arguments.kills} killed, {counts.attempts} attempts", end="")

    with tempfile.TemporaryDirectory() as folder:
        counts = run(make_job(Path(folder)), arguments.kills, arguments.seed, report)
    print(
        f"\n{counts.kills} kills in {counts.attempts} attempts, of which {counts.unpublished} left "
        "an unpublished folder; no checkpoint was lost or damaged; the loss differs by at most "
        f"{counts.difference:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
