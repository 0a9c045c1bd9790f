"""Process 1 of a trainer pod: starts ranks, watches them, reports, ends with the right code.

Never imports torch. torchrun is not used: it answers every failure with exit code 1.
"""

import logging
import os
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode, meaning
from finetune_api.names import REPORT_PORT
from finetune_api.run import Outcome, Result, RunConfig
from finetune_api.storage import AttemptFile
from finetune_trainer.common import environment, machine
from finetune_trainer.common.environment import Gang
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.grace import FLUSH_SECONDS
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.pod import dns, processes, report_server, watchdog
from finetune_trainer.pod.processes import Child
from finetune_trainer.pod.state import Failure, PodState
from finetune_trainer.run_dir import fence, finished, ownership, records
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger("supervisor")
# Between the first rank that ends and the verdict: who was first? Rank 0 may still be writing the
# last points of its trackers meanwhile.
_SETTLE_SECONDS = FLUSH_SECONDS + 3.0
_LEDGER_SECONDS = 60.0
# Ends whose cause is elsewhere, or none.
_NO_TRACE = (ExitCode.DONE, ExitCode.STOPPED, ExitCode.FENCED, ExitCode.PEER_LOST)
TERMINATION_LOG = "/dev/termination-log"


class Supervisor:
    """One pod's run; `run` returns the exit code."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._children: list[Child] = []
        self._started = datetime.now(UTC)
        self._epoch = 0
        self._verdict: Failure | None = None  # why we killed the children ourselves
        self._killed: set[str] = set()
        self._ledger_at = time.monotonic()
        self.state: PodState | None = None

    def run(self) -> int:
        """Do what the environment asks for; whatever happens, a result is left."""
        try:
            config = environment.run_config()
            if config.role == "prepare":
                self.state = PodState(config, 0, stage="PreparingData")
                code = self._prepare()
            else:
                gang = environment.gang()
                self.state = PodState(config, gang.node_rank)
                code = self._work(config, gang)
        except TrainerError as error:
            code = self._give_up(Failure(int(error.code), error.reason, error.message))
        except Exception as error:
            traceback.print_exc()
            text = f"the supervisor failed: {type(error).__name__}: {error}"
            code = self._give_up(Failure(1, meaning(1).reason, text))
        return code

    def _give_up(self, failure: Failure) -> int:
        for child in self._children:
            child.kill()
        if self._epoch:
            self._write_attempt(failure.code)
        self._write_result(failure.code, failure, None)
        return failure.code

    def _prepare(self) -> int:
        child = self._start("prepare", None, ["finetune_trainer.child", "prepare"], {})
        self._watch([child])
        return self._conclude(child)

    def _work(self, config: RunConfig, gang: Gang) -> int:
        assert self.state is not None
        ip = environment.pod_ip()
        try:
            server = report_server.serve(ip, REPORT_PORT, self.state.report)
        except OSError as error:
            text = f"the report cannot be served at {ip}:{REPORT_PORT} ({error.strerror})"
            raise TrainerError(ExitCode.ENVIRONMENT_UNUSABLE, text) from error
        try:
            paths = RunPaths.of(config)
            if gang.node_rank == 0:
                self._epoch = _claim(paths, config)
                self.state.earlier = records.earlier(paths, config)
            self.state.output = finished.read(paths, config.job_uid, config.run_digest or "")
            if self.state.output is not None:
                _log.info("%s is complete already", self.state.output.location)
                if self._epoch:
                    self._write_attempt(0)
                self._write_result(0, None, None)
                return 0
            address = ip
            if gang.node_rank != 0:
                address = dns.address_of(gang.master_address, self._stop)
            ranks = [self._start_rank(gang, local, address) for local in range(gang.processes)]
            self._watch(ranks)
            first = self._first_to_end(ranks)
            done = first.code() == 0 and gang.node_rank == 0
            code = self._export() if done else self._conclude(first)
            if self._epoch:
                self._write_attempt(code)
            return code
        finally:
            server.shutdown()

    def _export(self) -> int:
        """The ranks have left; the model is made from files."""
        assert self.state is not None
        step = str(self.state.final_step)  # rank 0 said it before it left
        arguments = ["finetune_trainer.child", "export", str(self._epoch), step]
        child = self._start("export", None, arguments, {"OMP_NUM_THREADS": _threads(1)})
        self._watch([child])
        return self._conclude(child)

    def _start_rank(self, gang: Gang, local: int, address: str) -> Child:
        rank = gang.node_rank * gang.processes + local
        env = {
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(gang.world_size),
            "LOCAL_WORLD_SIZE": str(gang.processes),
            "GROUP_RANK": str(gang.node_rank),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(gang.master_port),
            "OMP_NUM_THREADS": _threads(gang.processes),
            "TORCH_EXTENSIONS_DIR": "/tmp/torch-extensions",
            "TRITON_CACHE_DIR": "/tmp/triton",
            "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
        }
        if not machine.has_gpus():
            # On CPU every large tensor would be mapped and unmapped by malloc: a quarter of the
            # time went into page faults.
            env |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
        if address.startswith("127.") and "GLOO_SOCKET_IFNAME" not in os.environ:
            env["GLOO_SOCKET_IFNAME"] = "lo"
        return self._start(f"rank {rank}", rank, ["finetune_trainer.rank", str(self._epoch)], env)

    def _start(self, name: str, rank: int | None, module: list[str], env: dict[str, str]) -> Child:
        if self._stop.at is not None:
            raise TrainerError(ExitCode.STOPPED, _stopped(name))
        online = name == "prepare" and self.state is not None and self.state.config.asks_the_hub
        child = Child(name, rank, module, _quiet(online=online) | env)
        self._children.append(child)
        return child

    def _watch(self, children: list[Child]) -> None:
        """Until all have ended; one that fails takes the others with it."""
        failed_at: float | None = None
        told = False

        def tick() -> bool:
            nonlocal failed_at, told
            if self._stop.at is not None and not told:
                told = True
                for child in children:
                    child.terminate()
            now = time.monotonic()
            codes = [child.code() for child in children]
            if failed_at is None and any(code not in (None, 0) for code in codes):
                failed_at = now
            if failed_at is not None and now - failed_at > _SETTLE_SECONDS:
                self._kill(children)
            found = watchdog.verdict(self.state, self._stop.at, now) if self.state else None
            if self._verdict is None and found:
                _log.error("%s; killing the processes of this pod", found.message)
                self._verdict = found
                self._kill(children)
            self._keep_ledger(now)
            if os.getpid() == 1:
                processes.reap_orphans(self._children)
            return all(code is not None for code in codes)

        processes.wait_for(children, tick, self._hear)
        for child in children:
            child.finish()

    def _hear(self, child: Child, message: dict[str, Any]) -> None:
        assert self.state is not None
        self.state.hear(child.name, child.rank, message)

    def _first_to_end(self, ranks: list[Child]) -> Child:
        """The rank whose end is the cause: a failure of its own before a lost peer."""

        def order(child: Child) -> int:
            if child.code() == 0:
                return 3
            if child.name in self._killed:
                return 2
            return 1 if child.code() == ExitCode.PEER_LOST else 0

        return min(ranks, key=order)

    def _kill(self, children: list[Child]) -> None:
        for child in children:
            if child.code() is None:
                self._killed.add(child.name)
            child.kill()

    def _conclude(self, child: Child) -> int:
        """Write the result of what ended; returns the exit code."""
        assert self.state is not None
        code = child.code() or 0
        failure = self.state.failures.get(child.name)
        if self._verdict and watchdog.overrides(code):
            code, failure = self._verdict.code, self._verdict
        elif self._stop.at is not None and code == 128 + signal.SIGTERM:
            # The default action of a process that had nothing to save yet.
            code = int(ExitCode.STOPPED)
            failure = Failure(code, "Stopped", _stopped(child.name))
        if failure is None and code:
            tail = "\n".join(child.stderr.splitlines()[-8:])
            text = f"{child.name} ended with {_words(code)}" + (f":\n{tail}" if tail else "")
            failure = Failure(code, meaning(code).reason, text)
        if self.state.config.role == "worker" and code not in _NO_TRACE:
            paths = RunPaths.of(self.state.config)
            records.keep_stderr(paths, self.state.config.attempt, child.name, child.stderr)
        self._write_result(code, failure, child.rank if code else None)
        return code

    def _write_result(self, code: int, failure: Failure | None, rank: int | None) -> None:
        outcome = _outcome(code)
        reason = failure.reason if failure else meaning(code).reason
        if failure is not None:
            _log.error("%s: %s", failure.reason, failure.message)
        message = failure.message if failure else ""
        path = Path(os.environ.get("FINETUNE_TERMINATION_LOG", TERMINATION_LOG))
        if self.state is None:
            result = Result.model_validate(
                {"outcome": outcome, "reason": reason, "message": message[:1024]}
            )
        else:
            result = self.state.result(outcome, reason, message, rank)
        try:
            path.write_text(result.to_termination_message())
        except OSError as error:
            print(f"{path}: the result could not be written ({error})", file=sys.stderr)

    def _keep_ledger(self, now: float) -> None:
        if self._epoch and now - self._ledger_at > _LEDGER_SECONDS:
            self._ledger_at = now
            self._write_attempt(None)

    def _write_attempt(self, code: int | None) -> None:
        """The attempt's record; `code` is None while it runs. Worker 0 only: it holds the fence."""
        assert self.state is not None
        config = self.state.config
        record = AttemptFile(
            epoch=self._epoch,
            attempt=config.attempt,
            job_uid=config.job_uid,
            start_time=self._started,
            update_time=datetime.now(UTC),
            outcome=None if code is None else _outcome(code),
            reason=None if code is None else meaning(code).reason,
            ledger=self.state.ledger,
        )
        records.write(RunPaths.of(config), record)


def _claim(paths: RunPaths, config: RunConfig) -> int:
    try:
        ownership.check(config, paths)
        return fence.claim(paths, config.job_uid, config.attempt)
    except OSError as error:
        raise TrainerError(
            ExitCode.STORAGE_NOT_WRITABLE, f"{config.checkpoints.storage}: {error}"
        ) from error


def _quiet(*, online: bool) -> dict[str, str]:
    """What keeps a child's log readable; whoever sets one of these in the pod has the last word.

    `online`: it downloads from the Hub. Everything else is at hand, and nothing calls home.
    """
    wanted = {
        "HF_HUB_OFFLINE": "0" if online else "1",
        # The home folder of a container need not be writable.
        "HF_HOME": f"/tmp/huggingface-{os.getuid()}",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Deprecations inside torch and DeepSpeed, told once a rank: nothing of the user's to mend.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _threads(processes: int) -> str:
    """OpenMP threads of each, of what the container may use; the pod has the last word."""
    return os.environ.get("OMP_NUM_THREADS", str(max(1, machine.usable_cpus() // processes)))


def _stopped(name: str) -> str:
    return f"{name} was stopped; nothing is lost, the next attempt does it again"


def _outcome(code: int) -> Outcome:
    if code == ExitCode.STOPPED:
        return "Stopped"
    return "Failed" if code else "Succeeded"


def _words(code: int) -> str:
    if code > 128:
        try:
            return f"signal {signal.Signals(code - 128).name}"
        except ValueError:
            return f"exit code {code}"
    return f"exit code {code}"
