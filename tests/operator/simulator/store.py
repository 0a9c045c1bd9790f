"""A model of the API server without the network: one namespace, synchronous.

Objects are never changed in place. Every write makes a new dict, so that readers keep the version
that they read, and the log of watch events needs no copies.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from finetune_api import names
from finetune_api.base import Object
from finetune_client.errors import ApiError
from tests.operator.merge import merged
from tests.operator.simulator import ready
from tests.operator.simulator.clock import Clock

JOBS, PODS = "finetunejobs", "pods"
TERMINAL = ("Succeeded", "Failed")  # phases of a pod


@dataclass(frozen=True)
class Change:
    """One object before and after a write. `late` is whether its writer had given up on it."""

    plural: str
    before: Object | None
    after: Object | None
    by_operator: bool = False
    late: bool = False
    body: Object | None = None  # what was sent


@lru_cache(4096)
def parse(path: str) -> tuple[str, str | None, str | None]:
    """Return the plural, the name and the subresource of a path."""
    parts = [*path.split("/namespaces/", 1)[1].split("/")[1:], None, None]
    return str(parts[0]), parts[1], parts[2]


@dataclass
class Store:
    """Objects by plural and name, and every event that a watch would send."""

    clock: Clock
    changed: Callable[[Change], None]
    version: int = 100
    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: defaultdict(dict))
    log: dict[str, list[tuple[str, Object]]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, Object] = field(
        default_factory=dict
    )  # newest version of every pod ever, by uid
    terminating: dict[str, int] = field(
        default_factory=dict
    )  # version since which a pod's uid is deleted
    by_operator: bool = False  # whether the last write was the operator's
    quota_set: int = 0  # version since which the quota has its value
    quota: int | None = None  # number of pods that may exist without having ended
    webhook: int | None = None  # code with which an admission webhook fails for every pod
    refused: list[tuple[float, str]] = field(default_factory=list)  # pods, with the time

    def _quotas(self) -> list[Object]:
        if self.quota is None:
            return []
        hard, used = {"pods": str(self.quota)}, {"pods": str(self.living)}
        status = {"hard": hard, "used": used}
        return [{"metadata": {"name": "pods"}, "spec": {"hard": hard}, "status": status}]

    def get(self, plural: str, name: str) -> Object:
        found = self.objects[plural].get(name)
        if found is None:
            raise ApiError(404, "NotFound", f'{plural} "{name}" not found')
        return found

    def list(self, plural: str, selector: str = "") -> list[Object]:
        if plural == "resourcequotas":
            return self._quotas()
        label, _, value = selector.partition("=")
        items = self.objects[plural].values()
        if not selector:
            return list(items)
        found = [(i, i["metadata"].get("labels", {}).get(label)) for i in items]
        return [i for i, have in found if (have == value if value else have is not None)]

    def events_of(self, uid: str) -> Sequence[Object]:
        """Return the events about the object of a uid."""
        events = self.objects["events"].values()
        return [event for event in events if event["involvedObject"]["uid"] == uid]

    def create(
        self, plural: str, body: Object, *, dry: bool = False, operator: bool = False, late=False
    ) -> Object:
        name = body["metadata"]["name"]
        if plural == PODS:  # admission comes before the check of the name
            self._admit(name, dry=dry)
        if existing := self.objects[plural].get(name):
            text = f'{plural} "{name}" already exists'
            if "deletionTimestamp" in existing["metadata"]:
                text = f"object is being deleted: {text}"
            raise ApiError(409, "AlreadyExists", text)
        if dry:
            return body
        metadata = {
            **body["metadata"],
            "uid": f"{plural}-{self.version + 1}",
            "generation": 1,
            "creationTimestamp": self.clock.stamp(),
        }
        item = {**body, "metadata": metadata}
        if plural == PODS:
            item["status"] = {"phase": "Pending"}
        return self._write(plural, None, item, operator=operator, late=late, body=body)

    def _admit(self, name: str, *, dry: bool) -> None:
        if self.webhook is None and not self._is_full():
            return
        if not dry:
            self.refused.append((self.clock.seconds, name))
        if self.webhook is None:
            raise ApiError(403, "Forbidden", f'pods "{name}" is forbidden: exceeded quota: gpus')
        raise ApiError(self.webhook, "InternalError", 'failed calling webhook "pods.example.com"')

    def _is_full(self) -> bool:
        return self.quota is not None and self.living >= self.quota

    @property
    def living(self) -> int:
        """The number of pods that the quota counts."""
        phases = [pod["status"].get("phase") for pod in self.objects[PODS].values()]
        return sum(1 for phase in phases if phase not in TERMINAL)

    def patch(
        self, plural: str, name: str, sub: str | None, body: Object, *, operator=False, late=False
    ) -> Object:
        """Apply a merge patch, with the preconditions that its metadata names."""
        old = self.get(plural, name)
        for field_name in ("uid", "resourceVersion"):
            wanted = body.get("metadata", {}).get(field_name)
            if wanted is not None and wanted != old["metadata"][field_name]:
                raise ApiError(409, "Conflict", "the object has been modified")
        parts = ("status",) if sub == "status" else tuple(k for k in body if k != "status")
        new = dict(old)
        for part in parts:
            if part != "metadata" and part in body:
                new[part] = merged(old.get(part, {}), body[part])
        if new == old:
            return old
        if sub is None and new.get("spec") != old.get("spec"):
            generation = old["metadata"]["generation"] + 1
            new["metadata"] = {**old["metadata"], "generation": generation}
        return self._write(plural, old, new, operator=operator, late=late, body=body)

    def delete(
        self, plural: str, name: str, body: Object, *, operator: bool = False, late: bool = False
    ) -> None:
        """Delete an object at once, except a pod on a node, which gets its grace period."""
        old = self.get(plural, name)
        uid = body.get("preconditions", {}).get("uid")
        if uid is not None and uid != old["metadata"]["uid"]:
            raise ApiError(409, "Conflict", "the UID in the precondition does not match")
        grace = self._grace(old, body) if plural == PODS else 0
        if operator and "deletionTimestamp" in old["metadata"]:
            self.changed(Change(plural, old, old, by_operator=True, late=late, body=body))
        if grace > 0 or old["metadata"].get("finalizers"):
            self.terminating.setdefault(old["metadata"]["uid"], self.version)
            due = self.clock.stamp(grace)
            if due < old["metadata"].get("deletionTimestamp", "9999"):
                new = {**old, "metadata": {**old["metadata"], "deletionTimestamp": due}}
                self._write(plural, old, new, operator=operator, late=late)
            return
        del self.objects[plural][name]
        self.version += 1
        gone = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
        if plural != PODS or _selected(old):
            self.log[plural].append(("DELETED", gone))
        self.by_operator = operator
        self.changed(Change(plural, old, None, by_operator=operator, late=late, body=body))

    def status(self, pod: Object, status: Object) -> Object:
        """Write fields of a pod's status, as a kubelet or the scheduler does."""
        old = self.objects[PODS][pod["metadata"]["name"]]
        new = ready.merged(old.get("status", {}), status, self.clock)
        return self._write(PODS, old, {**old, "status": new})

    def finalizers(self, pod: Object, *finalizers: str) -> Object:
        """Set the finalizers of a pod, which keep its object after its deletion."""
        old = self.objects[PODS][pod["metadata"]["name"]]
        metadata = {**old["metadata"], "finalizers": [*finalizers]}
        return self._write(PODS, old, {**old, "metadata": metadata})

    def bind(self, pod: Object) -> Object:
        """Bind a pod to a node, as the scheduler does."""
        old = self.objects[PODS][pod["metadata"]["name"]]
        node = f"node-of-{pod['metadata']['name']}"
        return self._write(PODS, old, {**old, "spec": {**old["spec"], "nodeName": node}})

    def _grace(self, pod: Object, body: Object) -> int:
        if "nodeName" not in pod["spec"] or pod["status"]["phase"] in TERMINAL:
            return 0
        return int(body.get("gracePeriodSeconds", pod["spec"]["terminationGracePeriodSeconds"]))

    def _write(self, plural: str, old: Object | None, new: Object, **how: Any) -> Object:
        self.version += 1
        new["metadata"] = {**new["metadata"], "resourceVersion": str(self.version)}
        self.objects[plural][new["metadata"]["name"]] = new
        if plural == PODS:
            self.last[new["metadata"]["uid"]] = new
        if plural in (JOBS, PODS):
            self._report(plural, old, new)
        operator, late = how.get("operator", False), how.get("late", False)
        self.by_operator = operator
        self.changed(Change(plural, old, new, operator, late, how.get("body")))
        return new

    def _report(self, plural: str, old: Object | None, new: Object) -> None:
        """Send a change to the watches. The one on pods selects those with the label."""
        before = old if old and (plural != PODS or _selected(old)) else None
        after = plural != PODS or _selected(new)
        if after:
            self.log[plural].append(("MODIFIED" if before else "ADDED", new))
        elif before:
            version = {"resourceVersion": new["metadata"]["resourceVersion"]}
            metadata = {**before["metadata"], **version}
            self.log[plural].append(("DELETED", {**before, "metadata": metadata}))

    def label(self, pod: Object, labels: Object) -> None:
        """Replace the labels of a pod, as any client that may change pods can."""
        old = self.objects[PODS][pod["metadata"]["name"]]
        self._write(PODS, old, {**old, "metadata": {**old["metadata"], "labels": labels}})

    def collect_garbage(self) -> None:
        """Delete the objects whose owner is gone."""
        alive = {job["metadata"]["uid"] for job in self.objects[JOBS].values()}
        for plural in (PODS, "services"):
            for item in list(self.objects[plural].values()):
                owners = item["metadata"].get("ownerReferences", [])
                orphan = owners and not any(o["uid"] in alive for o in owners)
                if orphan and "deletionTimestamp" not in item["metadata"]:
                    self.delete(plural, item["metadata"]["name"], {})


def owner(pod: Object) -> str:
    """Return the uid of the job that a pod belongs to."""
    return next((str(o["uid"]) for o in pod["metadata"].get("ownerReferences", [])), "")


def identity(pod: Object) -> tuple[int, int]:
    """Return attempt and index of a worker by its name; 0 and 0 for a prepare pod."""
    metadata = pod["metadata"]
    job = next((o["name"] for o in metadata.get("ownerReferences", [])), "")
    return names.worker_of_pod_name(job, metadata["name"]) or (0, 0)


def _selected(pod: Object) -> bool:
    return names.LABEL_JOB_UID in pod["metadata"].get("labels", {})


def size(status: Object) -> int:
    """Return the number of bytes of a status as it is stored."""
    return len(json.dumps(status, separators=(",", ":")))
