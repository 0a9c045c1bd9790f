"""What a service account asked of the API server, from the server's own audit log."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ALL = "*"


class Right(NamedTuple):
    """What RBAC grants, and what a request needs."""

    group: str
    resource: str  # with subresource
    verb: str

    def __str__(self) -> str:
        return f"{self.verb:7} {self.resource}" + (f".{self.group}" if self.group else "")


@dataclass(frozen=True)
class Request:
    """One request for an object or a collection."""

    right: Right
    namespace: str  # of the object; empty: all namespaces
    name: str
    allowed: bool  # by RBAC; admission may have refused it all the same


@dataclass(frozen=True)
class Asked:
    """Everything that one account asked."""

    requests: list[Request]
    paths: set[str]  # which belong to no resource: discovery, which everybody may read

    @property
    def rights(self) -> set[Right]:
        return {request.right for request in self.requests}

    @property
    def refused(self) -> list[Request]:
        """For want of a right, and not by admission: namespaces that end take no new objects."""
        return [request for request in self.requests if not request.allowed]


def user(namespace: str, account: str) -> str:
    """A service account's name in the log."""
    return f"system:serviceaccount:{namespace}:{account}"


def read(log: Path, account: str, since: int = 0) -> Asked:
    """What the account asked since the log had so many bytes."""
    requests, paths = [], set()
    with log.open("rb") as file:
        file.seek(since)
        for line in file:
            entry = json.loads(line)
            if entry["user"]["username"] != account:
                continue
            if "objectRef" in entry:
                requests.append(_request(entry))
            else:
                paths.add(entry["requestURI"].partition("?")[0])
    return Asked(requests, paths)


def _request(entry: dict[str, Any]) -> Request:
    target = entry["objectRef"]
    parts = [target["resource"], *([target["subresource"]] if "subresource" in target else [])]
    return Request(
        Right(target.get("apiGroup", ""), "/".join(parts), entry["verb"]),
        target.get("namespace", ""),
        target.get("name", ""),
        entry["annotations"]["authorization.k8s.io/decision"] == "allow",
    )
