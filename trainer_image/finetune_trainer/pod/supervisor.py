"""Process 1 of a trainer pod: starts its child processes, watches them and writes a result.

Never imports torch. torchrun is not used, because it answers every failure with exit code 1.
"""

import logging
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.exit_codes import ExitCode, is_permanent, meaning
from finetune_api.names import REPORT_PORT, with_port
from finetune_api.progress import Output
from finetune_api.run import Outcome, Result, RunConfig
from finetune_api.storage import AttemptFile, RunFile
from finetune_trainer.common import environment, machine
from finetune_trainer.common.environment import Gang
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.pod import report_server
from finetune_trainer.pod.processes import (
    Child,
    environment_of_child,
    environment_of_rank,
    malloc_variables,
    thread_variables,
    wait_for_address,
)
from finetune_trainer.pod.state import MESSAGE_LENGTH, Failure, PodState
from finetune_trainer.pod.watchdog import Limits, Watch, stopped_message
from finetune_trainer.run_dir import fence, ownership, records
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.run_dir.records import read_export

_log = logging.getLogger("supervisor")
_NO_STDERR_SAVED = (ExitCode.DONE, ExitCode.STOPPED, ExitCode.FENCED, ExitCode.PEER_LOST)
"""Exit codes without a cause in this pod, whose stderr explains nothing."""
TERMINATION_LOG = "/dev/termination-log"


def run(stop: StopSignal) -> int:
    """Do what the pod's environment describes and return the pod's exit code.

    Writes a result to the termination message in every case, even if the supervisor itself fails.
    """
    pod: _Pod | None = None
    try:
        config = environment.run_config()
        if config.role == "prepare":
            pod = _Pod(config, 0, stop)
            return pod.prepare()
        gang = environment.gang()
        pod = _Pod(config, gang.node_rank, stop)
        return pod.work(gang)
    except TrainerError as error:
        failure = Failure(int(error.code), error.reason, error.message)
    except Exception as error:
        traceback.print_exc()
        text = f"the supervisor failed: {type(error).__name__}: {error}"
        failure = Failure(1, meaning(1).reason, text)
    if pod is not None:
        pod.abort(failure)
    else:
        _write_result(None, failure.code, failure)
    return failure.code


class _Pod:
    """One pod of a job, from the start of its child processes to its result."""

    def __init__(self, config: RunConfig, worker_index: int, stop: StopSignal) -> None:
        self._config, self._stop = config, stop
        self._started = datetime.now(UTC)
        self._state = PodState(
            config.job_uid, config.attempt, config.role, worker_index, config.result_max_bytes
        )
        limits = Limits(config.progress_deadline_seconds, config.termination_grace_period_seconds)
        self._watch = Watch(self._state, limits, stop)
        self._children: list[Child] = []
        self._record: AttemptRecordWriter | None = None  # only of worker 0, which holds the fence

    def prepare(self) -> int:
        """Run the work of a prepare pod in one child. Return the pod's exit code."""
        self._state.stage = "PreparingData"
        online = self._config.asks_the_hub
        child = self._start("prepare", None, ["finetune_trainer.child", "prepare"], online=online)
        self._watch.run([child], self._refresh_record)
        return self._conclude(child, None)

    def work(self, gang: Gang) -> int:
        """Train as one worker of a gang, and as worker 0 export the model. Return the exit code.

        1. Serve the report.
        2. As worker 0, claim the storage.
        3. If the model of this run is complete, report success.
        4. Run this worker's ranks.
        5. As worker 0, run the export if training has finished.
        6. Write the attempt's record and the pod's result.
        """
        address = environment.pod_ip()
        try:
            server = report_server.serve(address, REPORT_PORT, self._state.report)
        except OSError as error:
            where = with_port(address, REPORT_PORT)
            text = f"the report cannot be served at {where} ({error.strerror})"
            raise TrainerError(ExitCode.ENVIRONMENT_UNUSABLE, text) from error
        try:
            paths = RunPaths.of(self._config)
            if gang.node_rank == 0:
                self._claim_storage(paths)
            self._state.output = read_export(
                paths, self._state.job_uid, self._config.run_digest or ""
            )
            if self._state.output is not None:
                return self._report_exported(self._state.output)
            code = self._train(gang, address, paths)
            self._write_record(code)
            return code
        finally:
            server.shutdown()

    def abort(self, failure: Failure) -> None:
        """Kill all children and write the record and the result of a failure."""
        for child in self._children:
            child.kill()
        self._write_record(failure.code)
        _write_result(self._state, failure.code, failure)

    def _claim_storage(self, paths: RunPaths) -> None:
        """Claim the fence for this attempt and read what earlier attempts recorded."""
        job_uid, attempt = self._state.job_uid, self._state.attempt
        try:
            ownership.check(paths, self._run_file(), self._config.unfinished_owners)
            epoch = fence.claim(paths, job_uid, attempt)
        except OSError as error:
            text = f"{paths.storage_uri}: {error}"
            raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text) from error
        self._record = AttemptRecordWriter(paths, epoch, self._started, self._state)
        self._record.read_earlier()

    def _run_file(self) -> RunFile:
        """Return what run.json contains while this job owns the storage."""
        config = self._config
        return RunFile(
            job_uid=config.job_uid,
            job_name=config.job_name,
            job_namespace=config.job_namespace,
            model_revision=config.model_revision or "",
            run_digest=config.run_digest or "",
            forward_pass=config.plan and config.plan.forward_pass,
        )

    def _report_exported(self, model: Output) -> int:
        """Report the success of a run whose model an earlier attempt has exported."""
        _log.info("%s is complete already", model.location)
        code = int(ExitCode.DONE)
        self._write_record(code)
        _write_result(self._state, code, None)
        return code

    def _train(self, gang: Gang, address: str, paths: RunPaths) -> int:
        master = address
        if gang.node_rank != 0:
            master = wait_for_address(
                gang.master_address, address, self._stop, self._state.wait_for
            )
        ranks = [self._start_rank(gang, local, master) for local in range(gang.processes)]
        self._watch.run(ranks, self._refresh_record)
        cause = self._watch.cause(ranks)
        if cause.code() == 0 and gang.node_rank == 0:
            return self._export(paths)
        return self._conclude(cause, paths)

    def _export(self, paths: RunPaths) -> int:
        """Export the model from the checkpoint files, after all ranks have ended."""
        epoch, step = str(self._epoch), str(self._state.final_step)  # rank 0 reported the step
        module = ["finetune_trainer.child", "export", epoch, step]
        child = self._start("export", None, module, thread_variables(1))
        self._watch.run([child], self._refresh_record)
        return self._conclude(child, paths)

    @property
    def _epoch(self) -> int:
        """The fence epoch, or 0 in other workers, whose ranks receive it from rank 0."""
        return self._record.epoch if self._record else 0

    def _start_rank(self, gang: Gang, local_rank: int, master_address: str) -> Child:
        variables = environment_of_rank(gang, local_rank, master_address)
        plan = self._config.plan
        if plan is not None and not machine.has_gpus():
            states = plan.checkpoint_bytes * gang.processes // gang.world_size
            variables |= malloc_variables(states, machine.available_memory())
        rank = int(variables["RANK"])
        module = ["finetune_trainer.rank", str(self._epoch)]
        return self._start(f"rank {rank}", rank, module, variables)

    def _start(
        self,
        name: str,
        rank: int | None,
        module: list[str],
        variables: dict[str, str] | None = None,
        *,
        online: bool = False,
    ) -> Child:
        if self._stop.at is not None:
            raise TrainerError(ExitCode.STOPPED, stopped_message(name))
        common = environment_of_child(online=online)
        child = Child(name, rank, module, common | (variables or {}))
        self._children.append(child)
        return child

    def _refresh_record(self, now: float) -> None:
        if self._record:
            self._record.refresh(now)

    def _write_record(self, code: int) -> None:
        if self._record:
            self._record.write(code)

    def _conclude(self, child: Child, paths: RunPaths | None) -> int:
        """Write the result that a child's end gives the pod, and return the exit code.

        Saves the child's stderr below `paths`, if it failed.
        """
        code, failure = self._watch.ending(child)
        if paths and code not in _NO_STDERR_SAVED:
            records.keep_stderr(paths, self._state.attempt, child.name, child.stderr)
        _write_result(self._state, code, failure)
        return code


class AttemptRecordWriter:
    """The attempt's record on storage. Only the holder of the fence writes it."""

    def __init__(self, paths: RunPaths, epoch: int, started: datetime, state: PodState) -> None:
        self.epoch = epoch
        self._paths, self._started, self._state = paths, started, state
        self.written = time.monotonic()

    def refresh(self, now: float) -> None:
        """Write the record if the last write is a minute old, and read the earlier ones again.

        The process of an earlier attempt may go on if its node was cut off.
        """
        if now - self.written > records.REFRESH_SECONDS:
            self.written = now
            self.write(None)
            self.read_earlier()

    def read_earlier(self) -> None:
        """Read the records of earlier attempts, which worker 0 reports."""
        job_uid, attempt = self._state.job_uid, self._state.attempt
        self._state.earlier = records.earlier(self._paths, job_uid, attempt)

    def write(self, code: int | None) -> None:
        """Write the record. `code` is the pod's exit code, or None while it runs."""
        record = AttemptFile(
            epoch=self.epoch,
            attempt=self._state.attempt,
            job_uid=self._state.job_uid,
            start_time=self._started,
            update_time=datetime.now(UTC),
            outcome=None if code is None else _outcome(code),
            reason=None if code is None else meaning(code).reason,
            run_has_ended=None if code is None else _ends_job(code),
            ledger=self._state.ledger,
        )
        records.write(self._paths, record)


def _write_result(state: PodState | None, code: int, failure: Failure | None) -> None:
    """Write the termination message. `state` is None if the environment could not be read."""
    outcome = _outcome(code)
    reason = failure.reason if failure else meaning(code).reason
    message = failure.message if failure else ""
    if failure is not None:
        _log.error("%s: %s", failure.reason, failure.message)
    if state is None:
        result = Result(outcome=outcome, reason=reason, message=message[:MESSAGE_LENGTH])
    else:
        result = state.result(outcome, reason, message)
    limit = state.result_max_bytes if state else None
    path = Path(os.environ.get("FINETUNE_TERMINATION_LOG", TERMINATION_LOG))
    try:
        path.write_text(result.to_termination_message(limit))
    except OSError as error:
        print(f"{path}: the result could not be written ({error})", file=sys.stderr)


def _ends_job(code: int) -> bool:
    """Return whether no attempt follows one that ended with `code`, as far as that is certain."""
    return code == ExitCode.DONE or is_permanent(code, prepare=False)


def _outcome(code: int) -> Outcome:
    if code == ExitCode.STOPPED:
        return "Stopped"
    return "Failed" if code else "Succeeded"
