"""Experiment trackers: one run per job, over all of its attempts.

Weights & Biases and MLflow through accelerate's trackers, TensorBoard through files of our own.

The run's id is the job's uid. A resumed attempt makes some steps again: TensorBoard is told to
forget the old ones; the others cannot forget, so what they were told already is not told again.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.run import RunConfig
from finetune_api.spec import Tracker
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.tracking.sink import Point, Sink

_TAG = "finetune.dev/job-uid"
_STATE = threading.Lock()  # accelerate's is made by whichever tracker comes first


class TrackerError(Exception):
    """Why a tracker cannot be used, and what to do."""


def of(config: RunConfig, paths: RunPaths) -> list[Sink]:
    """The trackers of a job; TensorBoard when it names none."""
    wanted = config.tracking or [Tracker(type="TensorBoard")]
    return [_TYPES[tracker.type](tracker, config, paths) for tracker in wanted]


class _Accelerated:
    """A sink made of one of accelerate's trackers, which `_open` makes in the sink's thread."""

    def __init__(self, tracker: Tracker, config: RunConfig, paths: RunPaths) -> None:
        self.name = f"tracker {tracker.type}"
        self._project = tracker.project or config.job_namespace
        self._config, self._paths = config, paths
        self._tracker: Any = None

    def start(self, first: int) -> None:
        """Open it."""
        from accelerate import PartialState

        with _STATE:
            PartialState()  # its trackers ask it for the rank
        self._open(first)

    def log(self, point: Point) -> None:
        """Metrics under `train/` and `validation/`."""
        self._tracker.log(_tagged(point), step=point.step)

    def finish(self) -> None:
        """Close it."""
        self._tracker.finish()

    def _open(self, first: int) -> None:
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        """What a person filters runs by."""
        config = self._config
        plan = config.plan.to_dict() if config.plan else {}
        training = _flat(config.training.to_dict()) | {"optimizer.beta2": config.training.beta2}
        found = {"model": config.model.source, **training, **plan}
        return {"job": f"{config.job_namespace}/{config.job_name}", **found}


class _TensorBoard:
    """Event files of all attempts in one folder on storage, which is one run to TensorBoard."""

    name = "tracker TensorBoard"

    def __init__(self, tracker: Tracker, config: RunConfig, paths: RunPaths) -> None:  # noqa: ARG002
        self._folder = paths.storage / "tensorboard" / config.job_name
        self._file: Any = None

    def start(self, first: int) -> None:
        """Begin this attempt's file."""
        from finetune_trainer.tracking.event_file import EventFile

        self._file = EventFile(self._folder, first)

    def log(self, point: Point) -> None:
        """Tags under `train/` and `validation/`."""
        self._file.log(point.step, _tagged(point))

    def finish(self) -> None:
        """Close it."""
        self._file.close()


class _NeverForgets(_Accelerated):
    """A tracker that would draw a step twice when it is told twice.

    `told` is what it has from earlier attempts, as it says itself: what a killed attempt still had
    in its queue was never told.
    """

    def __init__(self, tracker: Tracker, config: RunConfig, paths: RunPaths) -> None:
        super().__init__(tracker, config, paths)
        self._told: dict[str, int] = {}  # part -> last step

    def log(self, point: Point) -> None:
        """Only what no earlier attempt has told."""
        if point.step > self._told.get(point.part, -1):
            super().log(point)


class _WandB(_NeverForgets):
    """Weights & Biases; WANDB_MODE=offline leaves the runs in <storage>/wandb."""

    def _open(self, first: int) -> None:  # noqa: ARG002
        import wandb
        from accelerate.tracking import WandBTracker

        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        if not offline and not os.environ.get("WANDB_API_KEY"):
            raise TrackerError(
                "WANDB_API_KEY is not set; put it into the Secret that secretRef names, or set "
                "WANDB_MODE=offline"
            )
        folder = Path(os.environ.get("WANDB_DIR") or self._paths.storage)
        folder.mkdir(parents=True, exist_ok=True)
        self._tracker = WandBTracker(
            self._project,
            id=self._config.job_uid,
            name=self._config.job_name,
            resume="allow",
            dir=str(folder),
            # The pod's log is the log: nothing is captured.
            settings=wandb.Settings(console="off", silent=True),
        )
        self._tracker.start()
        last = self._tracker.tracker.starting_step - 1
        self._told = {"train": last, "validation": last}
        self._tracker.store_init_configuration(self._facts())


class _MLflow(_NeverForgets):
    """A tracking server; the job's run is the one with its uid as a tag."""

    def _open(self, first: int) -> None:  # noqa: ARG002
        import mlflow
        from accelerate.tracking import MLflowTracker

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise TrackerError(
                "MLFLOW_TRACKING_URI is not set; put it into the Secret that secretRef names, or "
                "into the environment of the template's container 'trainer'"
            )
        # At the end of a run it would print the server's address, user and password included.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(self._project)
        where = experiment.experiment_id if experiment else client.create_experiment(self._project)
        uid = self._config.job_uid
        found = client.search_runs([where], f"tags.`{_TAG}` = '{uid}'", max_results=1)
        self._tracker = MLflowTracker(
            self._project,
            run_id=found[0].info.run_id if found else None,
            run_name=self._config.job_name,
            tags={_TAG: uid},
        )
        self._tracker.start()
        if not found:  # parameters of a run cannot change
            self._tracker.store_init_configuration(self._facts())
            return
        for part in ("train", "validation"):
            history = client.get_metric_history(found[0].info.run_id, f"{part}/loss")
            self._told[part] = max((metric.step for metric in history), default=-1)


_TYPES: dict[str, Callable[[Tracker, RunConfig, RunPaths], Sink]] = {
    "TensorBoard": _TensorBoard,
    "WandB": _WandB,
    "MLflow": _MLflow,
}


def _tagged(point: Point) -> dict[str, float]:
    return {f"{point.part}/{name}": value for name, value in point.values.items()}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
