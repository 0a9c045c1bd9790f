"""The scheduler, the kubelets and the processes in pods. Every pod has its own node.

When a node is lost, a process outlives its pod object; only the fence on storage stops it.
A kubelet writes the end of a container first, and the final phase of the pod with its next write.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from finetune_api import names
from finetune_api.base import Object
from finetune_api.run import Result
from tests.operator import worlds
from tests.operator.simulator import ready
from tests.operator.simulator.clock import START, Clock
from tests.operator.simulator.storage import Run
from tests.operator.simulator.store import PODS, TERMINAL, Store, identity, owner

UNMOUNTED = 'MountVolume.SetUp failed for volume "workspace": exit status 32'
NO_SPACE = "No space left on device"
TOTAL_STEPS = 1_000_000
STOPPED, FENCED, PEER_LOST, KILLED = 75, 79, 88, 137
STORAGE_IN_USE, STORAGE_FULL = 69, 73
_EXPORT_SECONDS = 20.0
_RECORD_INTERVAL = 60.0
REFUSALS = ("UnexpectedAdmissionError", "OutOfcpu", "NodeAffinity")


@dataclass
class Process:
    """The trainer container of a pod, which may outlive the pod's object."""

    pod: Object  # as it was when the container started
    job_uid: str
    attempt: int
    index: int
    started: float
    epoch: int | None = None  # fence epoch that worker 0 claimed
    first_step: int = 0
    step: int = 0
    productive: float = 0.0
    redone: float = 0.0
    busy_since: float = 0.0
    recorded: float = 0.0  # when its record on storage was written
    exports_since: float | None = None  # worker 0 exports the model, and its peers have ended
    exports_at_version: int = 0  # of the store, when that began
    save_problem: str | None = None  # why the newest save failed

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])


@dataclass
class Nodes:
    """The scheduler and all kubelets, which change the pods in the store."""

    store: Store
    clock: Clock
    skews: tuple[int, ...] = (0,)  # s by which a node's clock is ahead, by worker index
    processes: dict[str, Process] = field(default_factory=dict)  # alive, by pod uid
    runs: dict[str, Run] = field(default_factory=lambda: defaultdict(Run))
    lost: set[str] = field(default_factory=set)  # pod uids whose node does not answer
    held: set[str] = field(default_factory=set)  # pod uids that find no node or no image
    # Statuses of ended pods that are not yet written, in their order, by pod uid.
    unreported: dict[str, list[Object]] = field(default_factory=dict)
    # Seconds that the image takes to be pulled, by worker index; None: it cannot be pulled.
    pulls: tuple[int | None, ...] = ()
    pulled: dict[str, float] = field(default_factory=dict)  # when an image is there, by pod uid
    storage: str = ""  # "full", "in use" or usable
    message_bytes: int = 4096  # what a kubelet keeps of a termination message
    completed: set[tuple[str, int]] = field(default_factory=set)  # gangs of which all pods ran
    failed: set[str] = field(default_factory=set)  # jobs of which a process failed by itself
    # How the processes of a gang ended, reported or not, by pod uid; None: killed with its node.
    ends: dict[tuple[str, int], dict[str, int | None]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def pods(self) -> list[Object]:
        """Return all pods that exist, by name."""
        pods = self.store.objects[PODS]
        return [pods[name] for name in sorted(pods)]

    def _stamp(self, pod: Object) -> str:
        """Return the time by the clock of the pod's node."""
        _, index = identity(pod)
        return self.clock.stamp(self.skews[index % len(self.skews)])

    # Pods that do not run yet

    def bind(self, pod: Object) -> None:
        if "nodeName" in pod["spec"]:
            return
        self.store.bind(pod)
        self.store.status(pod, {"conditions": [self._condition("PodScheduled", "True")]})

    def unschedulable(self, pod: Object) -> None:
        if "nodeName" in pod["spec"]:
            return
        self.held.add(pod["metadata"]["uid"])
        condition = self._condition("PodScheduled", "False")
        # Every node that joins or leaves the cluster changes the sentence of the scheduler.
        nodes = 4 + int(self.clock.seconds) % 7
        condition["message"] = f"0/{nodes} nodes are available: Insufficient nvidia.com/gpu"
        self.store.status(pod, {"conditions": [condition]})

    def image_missing(self, pod: Object) -> None:
        if pod["metadata"]["uid"] in self.processes or pod["status"]["phase"] != "Pending":
            return
        self.bind(pod)
        self.held.add(pod["metadata"]["uid"])
        state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        self.store.status(self._live(pod), {"containerStatuses": _containers(pod, state, state)})

    def mount_fails(self, pod: Object) -> None:
        """Bind the pod to a node that cannot mount its volume, which only an event says."""
        uid = pod["metadata"]["uid"]
        if uid in self.processes or pod["status"]["phase"] != "Pending" or uid in self.held:
            return
        self.bind(pod)
        self.held.add(uid)
        self.store.status(self._live(pod), {"containerStatuses": []})
        name = f"{pod['metadata']['name']}.{self.store.version}"
        event = {
            "metadata": {"name": name, "namespace": "default"},
            "involvedObject": {"kind": "Pod", "uid": uid},
            "type": "Warning",
            "reason": "FailedMount",
            "message": UNMOUNTED,
            "lastTimestamp": self.clock.stamp(),
        }
        self.store.create("events", event)

    def start(self, pod: Object) -> None:
        """Bind the pod if it is not bound, and start its container."""
        uid = pod["metadata"]["uid"]
        if uid in self.processes or pod["status"]["phase"] != "Pending" or uid in self.held:
            return
        if "deletionTimestamp" in pod["metadata"] or uid in self.lost:
            return
        self.bind(pod)
        if not self._pull(self._live(pod)):
            return
        process = Process(
            pod,
            owner(pod),
            *identity(pod),
            self.clock.seconds,
        )
        self.processes[uid] = process
        state = {"running": {"startedAt": self._stamp(pod)}}
        statuses = _containers(pod, state, state)
        status = {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": statuses}
        self.store.status(self._live(pod), status)
        if process.attempt and self._all_run(process):
            self.completed.add((process.job_uid, process.attempt))
        if process.attempt and process.index == 0:
            self._claim(process)
        if process.attempt and self._is_complete(process):
            for member in self._gang(process):
                member.busy_since = self.clock.seconds

    def _pull(self, pod: Object) -> bool:
        """Return whether the image of a bound pod is on its node."""
        uid = pod["metadata"]["uid"]
        attempt, index = identity(pod)
        if not attempt or index >= len(self.pulls):
            return True
        seconds = self.pulls[index]
        if seconds is None:
            self.image_missing(pod)
            return False
        if uid not in self.pulled:
            self.pulled[uid] = self.clock.seconds + seconds
            state = {"waiting": {"reason": "ContainerCreating"}}
            status = {"containerStatuses": _containers(pod, state, state)}
            if seconds:
                self.store.status(pod, status)
        return self.pulled[uid] <= self.clock.seconds

    def free(self) -> None:
        """Let every pod find a node, and every node its image."""
        self.held.clear()
        self.pulls = ()

    def bind_to_dead_node(self, pod: Object) -> None:
        """Bind a pod to a node that is lost already, which the scheduler does not know yet."""
        if pod["status"]["phase"] == "Pending" and pod["metadata"]["uid"] not in self.processes:
            self.bind(pod)
            self.lose(self._live(pod))

    def _all_run(self, process: Process) -> bool:
        """Return whether all pods of a process's gang run, as far as kubelets reported it."""
        gang = (process.job_uid, process.attempt)
        running = [
            pod for pod in self.pods() if (owner(pod), identity(pod)[0]) == gang and _runs(pod)
        ]
        return len(running) == self._replicas(process)

    def _claim(self, process: Process) -> None:
        if self.storage == "in use":
            self.exit(process, STORAGE_IN_USE)
            return
        run = self.runs[process.job_uid]
        process.epoch = run.claim(process.attempt)
        if process.epoch is None:
            self.exit(process, FENCED)
            return
        process.first_step = process.step = run.checkpoint

    # Running processes

    def train(self, *, save: bool) -> None:
        """Let every complete gang finish one step for each second since its last call."""
        for process in list(self.processes.values()):
            if process.epoch is None or not self._trains(process):
                continue
            run, seconds = self.runs[process.job_uid], int(self.clock.seconds - process.busy_since)
            process.busy_since += seconds
            new = max(0, process.step + seconds - max(process.step, run.highest_step))
            process.productive += new
            process.redone += seconds - new
            process.step += seconds
            run.highest_step = max(run.highest_step, process.step)
            if self.clock.seconds - process.recorded >= _RECORD_INTERVAL:
                self._record(process)
            if save and self.storage == "full":
                process.save_problem = f"step {process.step} could not be saved: {NO_SPACE}"
            elif save:
                process.save_problem = None
                if not run.publish(process.step, process.epoch, process.attempt):
                    self.exit(process, FENCED)

    def _record(self, process: Process) -> None:
        """Write the attempt's record on storage, which is mostly older than the last report."""
        process.recorded = self.clock.seconds
        self.runs[process.job_uid].records[process.attempt] = (
            self._stamp(process.pod),
            process.productive,
            process.redone,
            process.step,
        )

    def _gang(self, one: Process) -> list[Process]:
        return [
            p
            for p in self.processes.values()
            if (p.job_uid, p.attempt) == (one.job_uid, one.attempt)
        ]

    def _trains(self, process: Process) -> bool:
        return process.exports_since is None and self._is_complete(process)

    def _is_complete(self, process: Process) -> bool:
        return len(self._gang(process)) == self._replicas(process)

    def _replicas(self, process: Process) -> int:
        """Return the size of the process's gang, from its environment."""
        env = process.pod["spec"]["containers"][0]["env"]
        return next(int(e["value"]) for e in env if e["name"] == "PET_NNODES")

    # Ends of processes

    def exit(self, process: Process, code: int, *, reported: bool = True) -> None:
        """End a process. Its kubelet reports it now, later, or never if the node is lost."""
        if process.uid not in self.processes:
            return
        if code == 0 and self.storage == "in use" and not process.attempt:
            code = STORAGE_IN_USE
        if code == 0 and self.storage == "full" and process.attempt:
            code = PEER_LOST if process.index else STORAGE_FULL
        if code in (0, STOPPED) and process.epoch is not None:
            run, final = self.runs[process.job_uid], code == 0
            if not run.publish(process.step, process.epoch, process.attempt, final=final):
                code = FENCED
        if process.epoch is not None and code != KILLED:
            self._record(process)
        message = self._termination_message(process, code)[: self.message_bytes]
        self._forget(process, code)
        end = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "finishedAt": self._stamp(process.pod),
            "message": message,
        }
        side = {"running": {"startedAt": self._stamp(process.pod)}}
        statuses = _containers(process.pod, {"terminated": end}, side)
        self.unreported[process.uid] = [{"containerStatuses": statuses}]
        if not _sidecars(process.pod):
            self.unreported[process.uid].append({"phase": "Failed" if code else "Succeeded"})
        if reported:
            self.report(process.uid)

    def _forget(self, process: Process, code: int | None) -> None:
        del self.processes[process.uid]
        self.ends[process.job_uid, process.attempt][process.uid] = code

    def kill(self, uid: str) -> None:
        """End a process without any report of how it ended."""
        self.unreported.pop(uid, None)
        if process := self.processes.get(uid):
            self._forget(process, None)

    def _termination_message(self, process: Process, code: int) -> str:
        if code == KILLED:
            return ""
        if not process.attempt:
            fields = {"prepared": worlds.prepared()} if code == 0 else {}
            reason = "StorageInUse" if code == STORAGE_IN_USE else "BadData"
            return _message("Succeeded" if code == 0 else "Failed", reason, **fields)
        if process.index != 0 or process.epoch is None:
            return ""
        outcome = {0: "Succeeded", STOPPED: "Stopped"}.get(code, "Failed")
        output = {"output": worlds.OUTPUT} if code == 0 else {}
        reason = {0: "Completed", STOPPED: "Stopped", FENCED: "Fenced", PEER_LOST: "PeerLost"}
        fields = {**self.progress_of(process), **output}
        return _message(outcome, reason.get(code, "Crashed"), **fields)

    def progress_of(self, process: Process) -> dict[str, Any]:
        """Return progress, ledger and checkpoints, as reports and results contain them.

        Before its first step a process reports only checkpoints.
        """
        run = self.runs[process.job_uid]
        steps = sorted({p.step for p in run.published if not p.final}, reverse=True)[:2]
        found = {"checkpoints": [_checkpoint(step) for step in steps if step]}
        if process.productive + process.redone == 0:
            return {"ledger": {}, **found}
        ledger = {
            "productiveSeconds": process.productive,
            "redoneSeconds": process.redone,
            "firstStep": process.first_step,
            "highestStep": process.step,
        }
        progress = {
            "step": process.step,
            "totalSteps": TOTAL_STEPS,
            "etaSeconds": 600,
            "checkpointProblem": process.save_problem,
        }
        return {"progress": progress, "ledger": ledger, **found}

    def report(self, uid: str) -> None:
        """Write the next part of how a pod ended; remove one that is being deleted."""
        pod = self._by_uid(uid)
        if uid in self.lost or uid not in self.unreported:
            return
        status = self.unreported[uid].pop(0)
        if not self.unreported[uid]:
            del self.unreported[uid]
        if pod is None or pod["status"]["phase"] in TERMINAL:
            return
        pod = self.store.status(pod, status)
        if "deletionTimestamp" in pod["metadata"]:
            self._end_and_remove(pod)

    def _end_and_remove(self, pod: Object) -> None:
        """Write the final status of a pod whose trainer has ended or never ran, and remove it."""
        uid = pod["metadata"]["uid"]
        for status in self.unreported.pop(uid, []):
            pod = self.store.status(pod, status)
        if pod["status"]["phase"] not in TERMINAL and "nodeName" in pod["spec"]:
            pod = self.store.status(pod, self._final(pod))
        self._remove(pod)

    def _final(self, pod: Object) -> Object:
        """Return the final status of a pod that is deleted: sidecars end with the pod."""
        before = pod["status"].get("containerStatuses") or [{"state": {}}]
        own = before[0]["state"]
        if "terminated" not in own:
            return {"phase": "Failed", "containerStatuses": _containers(pod, _UNKNOWN, _UNKNOWN)}
        end = {"exitCode": KILLED, "reason": "Error", "finishedAt": self._stamp(pod)}
        phase = "Failed" if own["terminated"]["exitCode"] else "Succeeded"
        statuses = _containers(pod, own, {"terminated": end})
        return {"phase": phase, "containerStatuses": statuses}

    def stop(self, pod: Object) -> None:
        """Carry out a deletion, as a kubelet does: SIGTERM, a checkpoint, exit, removal."""
        uid = pod["metadata"]["uid"]
        if "deletionTimestamp" not in pod["metadata"] or uid in self.lost:
            return
        process = self.processes.get(uid)
        if process is None:
            self._end_and_remove(pod)
            return
        late = _due(pod) <= self.clock.seconds
        ends = self.ends[process.job_uid, process.attempt].values()
        # A rank whose peer is dead cannot save.
        saves = process.attempt and not late and all(code in (0, STOPPED) for code in ends)
        self.exit(process, STOPPED if saves else KILLED)

    def deadlines(self) -> list[float]:
        """Return when the grace periods of terminating pods end, in seconds of the clock."""
        return [_due(pod) for pod in self._stopping()]

    def kill_overdue(self) -> None:
        for pod in self._stopping():
            if _due(pod) <= self.clock.seconds:
                self.stop(pod)

    def _stopping(self) -> list[Object]:
        return [
            pod
            for pod in self.store.objects[PODS].values()
            if "deletionTimestamp" in pod["metadata"] and pod["metadata"]["uid"] not in self.lost
        ]

    def _remove(self, pod: Object) -> None:
        if pod["metadata"].get("finalizers"):
            self.store.finalizers(pod)
        self.store.delete(PODS, pod["metadata"]["name"], {"gracePeriodSeconds": 0})

    # Disruptions

    def preempt(self, pod: Object) -> None:
        """Mark the pod as disrupted, then delete it, as the scheduler and the eviction API do."""
        conditions = [c for c in pod["status"].get("conditions", []) if c["type"] == "PodScheduled"]
        conditions.append(self._condition("DisruptionTarget", "True"))
        if pod["status"]["phase"] in TERMINAL:
            return
        self.store.status(pod, {"conditions": conditions})
        self.store.delete(PODS, pod["metadata"]["name"], {})

    def evict(self, pod: Object) -> None:
        """Fail the pod, as a kubelet under disk pressure does."""
        uid = pod["metadata"]["uid"]
        if "nodeName" not in pod["spec"] or pod["status"]["phase"] in TERMINAL or uid in self.lost:
            return
        self.kill(uid)
        kept = [c for c in pod["status"].get("conditions", []) if c["type"] != "Ready"]
        status = {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "the node was low on ephemeral-storage",
            "conditions": [
                *kept,
                {"type": "Ready", "status": "False", "lastTransitionTime": self._stamp(pod)},
                self._condition("DisruptionTarget", "True") | {"reason": "TerminationByKubelet"},
            ],
        }
        states = pod["status"].get("containerStatuses") or [{}]
        if "terminated" not in states[0].get("state", {}):
            waiting = {"waiting": {"reason": "PodInitializing"}}
            status["containerStatuses"] = _containers(pod, waiting, waiting)
        self._fail(pod, status)

    def _fail(self, pod: Object, status: Object) -> None:
        pod = self.store.status(pod, status)
        if "deletionTimestamp" in pod["metadata"]:
            self._remove(pod)

    def refuse(self, pod: Object) -> None:
        """Fail the pod without any container status, as a kubelet that does not admit it does.

        A kubelet that was restarted may refuse a pod that ran.
        """
        uid = pod["metadata"]["uid"]
        if pod["status"]["phase"] in TERMINAL or uid in self.lost or _terminated(pod):
            return
        self.bind(pod)
        self.kill(uid)
        reason = REFUSALS[self.store.version % len(REFUSALS)]
        message = "Pod was rejected: the node does not have what it requests"
        status = {"phase": "Failed", "reason": reason, "message": message}
        self._fail(self._live(pod), {**status, "containerStatuses": []})

    def lose_container(self, pod: Object) -> None:
        """End a container that its kubelet cannot find any more: neither code nor time is known."""
        uid = pod["metadata"]["uid"]
        if uid not in self.processes or uid in self.lost:
            return
        self.kill(uid)
        statuses = _containers(pod, _UNKNOWN, _UNKNOWN, ran=True)
        self._fail(pod, {"phase": "Failed", "containerStatuses": statuses})

    def collect(self, pod: Object) -> None:
        """Collect a pod whose Node was deleted, while a finalizer keeps its object.

        Its containers are described as its kubelet did last, and its process goes on.
        """
        if pod["metadata"]["uid"] not in self.lost or pod["status"]["phase"] in TERMINAL:
            return
        kept = [c for c in pod["status"].get("conditions", []) if c["type"] == "PodScheduled"]
        disrupted = self._condition("DisruptionTarget", "True") | {"reason": "DeletionByPodGC"}
        self.store.status(pod, {"phase": "Failed", "conditions": [*kept, disrupted]})
        pod = self.store.finalizers(pod, "example.com/keep")
        self.store.delete(PODS, pod["metadata"]["name"], {"gracePeriodSeconds": 0})

    def lose(self, pod: Object) -> None:
        """Make the pod's node unreachable. `notice` shows it, and `taint` deletes the pod."""
        if "nodeName" not in pod["spec"]:
            return
        self.lost.add(pod["metadata"]["uid"])

    def notice(self) -> None:
        """Set Ready to False for pods on lost nodes, as the node lifecycle controller does."""
        for pod in self.pods():
            if pod["metadata"]["uid"] in self.lost and _is_ready(pod):
                self.store.status(pod, {"conditions": [ready.silent(self.clock)]})

    def taint(self) -> None:
        """Delete pods from lost nodes, as the taint eviction controller does."""
        self.notice()
        for pod in self.pods():
            uid = pod["metadata"]["uid"]
            if uid in self.lost and "deletionTimestamp" not in pod["metadata"]:
                self.preempt(pod)

    def delete_node(self, pod: Object) -> None:
        """Delete a lost Node: its pod is collected, but its process goes on."""
        if pod["metadata"]["uid"] in self.lost:
            self._remove(pod)

    def recover(self) -> None:
        """Let lost nodes answer: processes without a pod are stopped, ends are reported."""
        lost, self.lost = self.lost, set()
        for uid in lost:
            pod = self._by_uid(uid)
            if pod is None or pod["status"]["phase"] in TERMINAL:
                self.kill(uid)
            elif uid in self.unreported:
                self.report(uid)
            elif uid in self.processes:
                self.store.status(pod, {"phase": pod["status"]["phase"]})  # ready again

    def _by_uid(self, uid: str) -> Object | None:
        last = self.store.last[uid]
        pod = self.store.objects[PODS].get(last["metadata"]["name"])
        return pod if pod and pod["metadata"]["uid"] == uid else None

    def _live(self, pod: Object) -> Object:
        return self.store.objects[PODS][pod["metadata"]["name"]]

    def _condition(self, kind: str, status: str) -> Object:
        return {"type": kind, "status": status, "lastTransitionTime": self.clock.stamp()}

    # Without faults

    def round(self) -> None:
        """Let every kubelet, the scheduler and the garbage collector act once."""
        self.store.collect_garbage()
        self.taint()
        for uid in list(self.unreported):
            self.report(uid)
        for uid in set(self.processes) - self.lost:
            if self._by_uid(uid) is None:
                self.kill(uid)  # its pod was deleted by force, so the kubelet ends it
        for pod in self.pods():
            uid = pod["metadata"]["uid"]
            if "deletionTimestamp" in pod["metadata"]:
                self.stop(pod)
            elif uid in self.processes:
                self._continue(self.processes[uid])
            else:
                self.start(pod)

    def _continue(self, process: Process) -> None:
        """End a process whose peers have ended: a gang stops together."""
        if process.uid in self.lost:
            return
        if not process.attempt:
            self.exit(process, 0)
            return
        if process.exports_since is not None:
            if self.clock.seconds - process.exports_since >= _EXPORT_SECONDS:
                self.exit(process, 0)
            return
        ends = self.ends[process.job_uid, process.attempt].values()
        if any(code not in (0, STOPPED) for code in ends):
            self.exit(process, PEER_LOST)
        elif STOPPED in ends:
            self.exit(process, STOPPED)

    def finish(self) -> None:
        """Let every complete gang finish its training, so that its worker 0 exports the model."""
        self.train(save=True)
        complete = [p for p in self.processes.values() if p.attempt and self._trains(p)]
        for process in sorted(complete, key=lambda p: (-p.attempt, p.index)):
            if process.index or self.storage == "full":
                self.exit(process, 0)
            else:
                process.exports_since = self.clock.seconds
                process.exports_at_version = self.store.version

    def end_exports(self) -> None:
        """Let every worker 0 that exports a model finish that."""
        for process in [p for p in self.processes.values() if p.exports_since is not None]:
            self.exit(process, 0)

    def collect_ended(self) -> None:
        """Delete the workers that have ended, as the garbage collector does if there are many."""
        for pod in self.pods():
            if identity(pod)[0] and pod["status"]["phase"] in TERMINAL:
                self._remove(pod)


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _runs(pod: Object) -> bool:
    statuses = pod["status"].get("containerStatuses") or [{}]
    return "running" in statuses[0].get("state", {})


def _due(pod: Object) -> float:
    moment = datetime.fromisoformat(pod["metadata"]["deletionTimestamp"])
    return (moment - START).total_seconds()


@lru_cache(4096)
def _checkpoint_json(step: int) -> str:
    return worlds.checkpoint(step).to_json()


def _checkpoint(step: int) -> Object:
    item: Object = json.loads(_checkpoint_json(step))
    return item


def _message(outcome: str, reason: str, **fields: Any) -> str:
    values = {"outcome": outcome, "reason": reason, **fields}
    return Result.model_validate(values).to_termination_message()


_UNKNOWN: Object = {
    "terminated": {"exitCode": KILLED, "reason": "ContainerStatusUnknown", "finishedAt": None}
}


def _sidecars(pod: Object) -> list[Object]:
    return [c for c in pod["spec"]["containers"] if c["name"] != names.CONTAINER]


def _terminated(pod: Object) -> bool:
    """Return whether the status of the pod has the end of its trainer container."""
    statuses = pod["status"].get("containerStatuses") or [{}]
    return "terminated" in statuses[0].get("state", {})


def _containers(pod: Object, own: Object, side: Object, *, ran: bool = False) -> list[Object]:
    """Return the statuses of all containers, the trainer's first; `side` is that of sidecars."""
    ids = {"containerID": "containerd://1"} if ran else {}
    others = [{"name": c["name"], "state": side, **ids} for c in _sidecars(pod)]
    return [{"name": names.CONTAINER, "state": own, **ids}, *others]
