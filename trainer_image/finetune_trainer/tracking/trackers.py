"""Experiment trackers: one run in the tracker for each job, over all of its attempts.

Weights & Biases and MLflow are used through accelerate's trackers, TensorBoard by `event_file`.
The id of the run is the job's uid. A resumed attempt repeats some steps. TensorBoard drops the old
points of these steps. The other trackers would show both, so the points that they already have are
not sent again.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.names import LABEL_JOB_UID
from finetune_api.run import RunConfig
from finetune_api.spec import Tracker
from finetune_trainer.tracking.sink import Point, Sink

_STATE = threading.Lock()  # guards the creation of accelerate's state, which all trackers share


class TrackerError(Exception):
    """A tracker cannot be used. The message states what to do."""


@dataclass(frozen=True)
class TrackedRun:
    """What trackers record about a job."""

    uid: str
    name: str
    namespace: str
    parameters: dict[str, Any]  # for filtering runs

    @classmethod
    def of(cls, config: RunConfig) -> "TrackedRun":
        """Return the part of a configuration that trackers record."""
        plan = config.plan.to_dict() if config.plan else {}
        training = _flat(config.training.to_dict()) | {"optimizer.beta2": config.training.beta2}
        found = {"model": config.model.source, **training, **plan}
        job = {"job": f"{config.job_namespace}/{config.job_name}"}
        return cls(config.job_uid, config.job_name, config.job_namespace, job | found)


def of(wanted: list[Tracker] | None, run: TrackedRun, storage: Path) -> list[Sink]:
    """Return the trackers of a job. Default: TensorBoard."""
    wanted = wanted or [Tracker(type="TensorBoard")]
    return [_TYPES[tracker.type](tracker, run, storage) for tracker in wanted]


class _TensorBoard:
    """The event files of all attempts in one folder, which TensorBoard shows as one run."""

    name = "tracker TensorBoard"

    def __init__(self, tracker: Tracker, run: TrackedRun, storage: Path) -> None:  # noqa: ARG002
        self._folder = storage / "tensorboard" / run.name
        self._file: Any = None

    def start(self, first: int) -> None:
        """Create this attempt's file."""
        from finetune_trainer.tracking.event_file import EventFile

        self._file = EventFile(self._folder, first)

    def log(self, point: Point) -> None:
        """Write the values with tags below `train/` or `validation/`."""
        self._file.log(point.step, _tagged(point))

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


class _Accelerated:
    """A sink around one of accelerate's trackers, which `_open` creates in the sink's thread.

    These trackers keep points for ever and would show a repeated step twice. Therefore `_open` asks
    the tracker for its last step in each part. Only the tracker knows it, because a killed attempt
    can have lost points that were still in the queue.
    """

    def __init__(self, tracker: Tracker, run: TrackedRun, storage: Path) -> None:
        self.name = f"tracker {tracker.type}"
        self._project = tracker.project or run.namespace
        self._run, self._storage = run, storage
        self._tracker: Any = None
        self._last_step: dict[str, int] = {}  # of earlier attempts, by part

    def start(self, first: int) -> None:  # noqa: ARG002 - see `_last_step`
        """Open the tracker."""
        from accelerate import PartialState

        with _STATE:
            PartialState()  # accelerate's trackers ask it for the rank
        self._open()

    def log(self, point: Point) -> None:
        """Send the values with names below `train/` or `validation/`, unless they were sent."""
        if point.step > self._last_step.get(point.part, -1):
            self._tracker.log(_tagged(point), step=point.step)

    def finish(self) -> None:
        """Close the tracker."""
        self._tracker.finish()

    def _open(self) -> None:
        raise NotImplementedError


class _WandB(_Accelerated):
    """Weights & Biases. With WANDB_MODE=offline the runs are stored in <storage>/wandb."""

    def _open(self) -> None:
        import wandb
        from accelerate.tracking import WandBTracker

        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        if not offline and not os.environ.get("WANDB_API_KEY"):
            raise TrackerError(
                "WANDB_API_KEY is not set; put it into the Secret that secretRef names, or set "
                "WANDB_MODE=offline"
            )
        folder = Path(os.environ.get("WANDB_DIR") or self._storage)
        folder.mkdir(parents=True, exist_ok=True)
        self._tracker = WandBTracker(
            self._project,
            id=self._run.uid,
            name=self._run.name,
            resume="allow",
            dir=str(folder),
            # Output is not captured, because it is in the pod's log.
            settings=wandb.Settings(console="off", silent=True),
        )
        self._tracker.start()
        last = self._tracker.tracker.starting_step - 1
        self._last_step = {"train": last, "validation": last}
        self._tracker.store_init_configuration(self._run.parameters)


class _MLflow(_Accelerated):
    """An MLflow tracking server. The job's run is found by its tag with the job's uid."""

    def _open(self) -> None:
        import mlflow
        from accelerate.tracking import MLflowTracker

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise TrackerError(
                "MLFLOW_TRACKING_URI is not set; put it into the Secret that secretRef names, or "
                "into the environment of the template's container 'trainer'"
            )
        # At the end of a run MLflow prints the server's address, which can include a password.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(self._project)
        where = experiment.experiment_id if experiment else client.create_experiment(self._project)
        uid = self._run.uid
        found = client.search_runs([where], f"tags.`{LABEL_JOB_UID}` = '{uid}'", max_results=1)
        self._tracker = MLflowTracker(
            self._project,
            run_id=found[0].info.run_id if found else None,
            run_name=self._run.name,
            tags={LABEL_JOB_UID: uid},
        )
        self._tracker.start()
        if not found:  # parameters of an existing run cannot be changed
            self._tracker.store_init_configuration(self._run.parameters)
            return
        for part in ("train", "validation"):
            history = client.get_metric_history(found[0].info.run_id, f"{part}/loss")
            self._last_step[part] = max((metric.step for metric in history), default=-1)


_TYPES: dict[str, Callable[[Tracker, TrackedRun, Path], Sink]] = {
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
