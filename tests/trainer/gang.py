"""Runs real gangs: one supervisor process per pod, loopback addresses, a folder as the claim.

Importing torch, transformers and DeepSpeed takes more than half of the time of a tiny training.
Unless a test needs new processes, they are forked from one that has imported them (preloaded.py).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import aiohttp

from finetune_api.names import with_port
from finetune_api.progress import Plan
from finetune_api.run import Report, Result, RunConfig
from tests.trainer.preloaded import Process, nursery

# Clusters of other tests use complete 127.x networks. Test processes that run in parallel must
# not share addresses either.
_NETWORK = f"127.{251 + os.getpid() % 4}"
STEPS, INTERVAL = 40, 4  # long enough for a test to interrupt a run in the middle
_ATTEMPTS = count(os.getpid() // 4)


@dataclass
class Pod:
    """A supervisor process and its files."""

    process: subprocess.Popen[bytes] | Process | None  # None if it ran in another test process
    address: str
    termination: Path
    log: Path

    def wait(self, seconds: float = 120) -> int:
        return self.process.wait(seconds)

    @property
    def result(self) -> Result:
        return Result.model_validate_json(self.termination.read_text())

    @property
    def ranks(self) -> list[int]:
        """Process ids of the ranks."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = [int(pid) for pid in path.read_text().split()]
        return [pid for pid in found if _is_rank(Path(f"/proc/{pid}"))]

    def wait_for_children(self, seconds: float = 20) -> list[int]:
        """Wait until the supervisor has a child, and return the ids of its children."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + seconds
        while not (found := [int(p) for p in path.read_text().split() if self._has_begun(p)]):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        return found

    def _has_begun(self, pid: str) -> bool:
        """Return whether a child runs its own program and is not a copy of the supervisor."""
        supervisor, child = (Path(f"/proc/{p}/comm").read_text() for p in (self.process.pid, pid))
        return isinstance(self.process, subprocess.Popen) or supervisor != child

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def report(self) -> Report:
        url = f"http://{with_port(self.address, 29600)}/v1/report"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return Report.model_validate_json(await response.text())


@dataclass
class Job:
    """One job on one claim. Its attempts are started one after another."""

    claim: Path
    config: dict
    devices: int = 1
    nodes: int = 2
    attempt: int = 0
    mount: str | None = None  # command that prepares the mount namespace of each pod
    network: str | None = None  # first three bytes of the pods' addresses
    enter: Callable[[int], list[str]] | None = None  # returns the prefix of a node's command
    executed: bool = False  # start new interpreters as in a container, not forks
    slow: float = 0  # seconds by which each write of a checkpoint is delayed, if forked
    pods: list[Pod] = field(default_factory=list)
    _attempt: tuple[dict, str] = ({}, "")

    @property
    def storage(self) -> Path:
        return self.claim / "runs" / "a"

    @property
    def log(self) -> str:
        """The logs of all pods of the newest attempt."""
        return "\n".join(pod.log.read_text() for pod in self.pods)

    def start_prepare(self) -> Pod:
        """Start the prepare pod."""
        pod = self._start(self._run_config("prepare"), {}, f"{_NETWORK}.255.1")
        self.pods = [pod]
        return pod

    def prepare(self) -> Pod:
        """Run the prepare pod to its end, and put its results into the configuration."""
        pod = self.start_prepare()
        pod.wait()
        result = pod.result
        if result.prepared:
            self.config |= {
                "preparedDigest": result.prepared.prepared_digest,
                "runDigest": result.prepared.run_digest,
                "modelRevision": result.prepared.model_revision,
            }
        return pod

    def start(
        self, plan: Plan, highest_step: int = 0, *, only: Iterable[int] | None = None
    ) -> list[Pod]:
        """Start the next attempt, or the workers `only` of it."""
        self.attempt += 1
        attempts_network = self.network or f"{_NETWORK}.{next(_ATTEMPTS) % 250}"
        config = self._run_config("worker") | {
            "plan": plan.to_dict(),
            "attempt": self.attempt,
            "highestStep": highest_step,
        }
        self.pods = []
        self._attempt = (config, attempts_network)
        for node in range(self.nodes) if only is None else only:
            self.start_worker(node)
        return self.pods

    def start_worker(self, node: int, **variables: str) -> Pod:
        """Start a worker of the current attempt, with some environment variables changed."""
        config, network = self._attempt
        separator = ":" if ":" in network else "."
        gang = {
            "PET_NNODES": str(self.nodes),
            "PET_NODE_RANK": str(node),
            "PET_NPROC_PER_NODE": str(self.devices),
            "PET_MASTER_ADDR": f"{network}{separator}1",
            "PET_MASTER_PORT": "29500",
        }
        if self.enter:
            gang |= {"GLOO_SOCKET_IFNAME": "eth0"}
        prefix = self.enter(node) if self.enter else []
        address = f"{network}{separator}{node + 1}"
        self.pods.append(self._start(config, gang | variables, address, prefix))
        return self.pods[-1]

    def wait(self, seconds: float = 180) -> list[int]:
        """Wait for all pods and return their exit codes."""
        return [pod.wait(seconds) for pod in self.pods]

    def wait_for_step(self, step: int, seconds: float = 90) -> None:
        """Wait until rank 0 has logged a step."""
        self.wait_for_text(f"] step {step} of", seconds)

    def wait_for_text(self, text: str, seconds: float = 90) -> None:
        """Wait until pod 0 has logged a text."""
        deadline = time.monotonic() + seconds
        while text not in self.pods[0].log.read_text():
            if time.monotonic() > deadline or self.pods[0].process.poll() is not None:
                raise AssertionError(self.pods[0].log.read_text()[-3000:])
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill all pods that still run."""
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.process.kill()  # its ranks die with it
                pod.process.wait()

    def _run_config(self, role: str) -> dict:
        return self.config | {"role": role, "mounts": {"w": str(self.claim)}}

    def _start(
        self, config: dict, gang: dict[str, str], address: str, prefix: Sequence[str] = ()
    ) -> Pod:
        RunConfig.model_validate(config)
        folder = self.claim / "pods"
        folder.mkdir(exist_ok=True)
        name = f"{config['role']}-{config.get('attempt', 0)}-{address}"
        env = (
            os.environ
            | gang
            | {
                "FINETUNE_RUN": json.dumps(config),
                "FINETUNE_POD_IP": address,
                "FINETUNE_TERMINATION_LOG": str(folder / f"{name}.json"),
                "OMP_NUM_THREADS": "1",
            }
        )
        log = folder / f"{name}.log"
        command = [*prefix, sys.executable, "-m", "finetune_trainer"]
        if self.mount:
            script = f'{self.mount} && exec "$@"'
            unshare = ["unshare", "--user", "--map-root-user", "--mount"]
            command = [*unshare, "sh", "-ec", script, "sh", *command]
        termination = folder / f"{name}.json"
        if not (self.executed or self.mount or prefix):
            log.write_bytes(b"")
            return Pod(nursery().pod(env, log, self.slow), address, termination, log)
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        return Pod(process, address, termination, log)


def _is_rank(process: Path) -> bool:
    command, name = (process / "cmdline").read_bytes(), (process / "comm").read_text()
    return b"finetune_trainer.rank" in command or name == "rank\n"


def remember(job: Job) -> str:
    """Return text from which `recall` restores a finished job in another process."""
    pods = [[pod.address, str(pod.termination), str(pod.log)] for pod in job.pods]
    return json.dumps({"claim": str(job.claim), "config": job.config, "pods": pods})


def recall(text: str) -> Job:
    """Return the job that `remember` described."""
    found = json.loads(text)
    pods = [Pod(None, where, Path(end), Path(log)) for where, end, log in found["pods"]]
    return Job(Path(found["claim"]), found["config"], attempt=1, pods=pods)


def listens(address: str, port: int) -> bool:
    """Return whether a process listens at this address."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def make_job(claim: Path, *, training: dict | None = None, checkpoints: dict | None = None) -> Job:
    """Return a job with `model` and `data/{train,validation}.jsonl` of a claim."""
    config = {
        "jobName": "job",
        "jobNamespace": "default",
        "jobUid": "uid-1",
        "model": {"source": "pvc://w/model"},
        "dataset": {
            "train": [{"source": "pvc://w/data/train.jsonl"}],
            "validation": [{"source": "pvc://w/data/validation.jsonl"}],
        },
        "training": {"sequenceLength": 128, "maxSteps": STEPS, "seed": 3, **(training or {})},
        "checkpoints": {
            "storage": "pvc://w/runs/a",
            "intervalSteps": INTERVAL,
            **(checkpoints or {}),
        },
        "output": {"weights": "Last"},
    }
    return Job(claim, config)


def make_plan(**changes: object) -> Plan:
    """Return a plan with ZeRO-2 and 4 rows per step, with some fields changed."""
    values = {
        "zeroStage": 2,
        "microBatchSize": 1,
        "gradientAccumulationSteps": 2,
        "globalBatchSize": 4,
        "learningRate": 1e-3,
        "totalSteps": STEPS,
        "warmupSteps": 2,
        "checkpointBytes": 0,
    }
    return Plan.model_validate(values | changes)
