"""Reads the requests of a service account from the audit log of the API server."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ALL = "*"


class Right(NamedTuple):
    """A right that RBAC grants or that a request needs."""

    group: str
    resource: str  # including the subresource
    verb: str

    def __str__(self) -> str:
        return f"{self.verb:7} {self.resource}" + (f".{self.group}" if self.group else "")


@dataclass(frozen=True)
class Request:
    """One request for an object or a collection."""

    right: Right
    namespace: str  # of the object; empty for all namespaces
    name: str
    allowed: bool  # by RBAC; admission may still have refused it


@dataclass(frozen=True)
class Asked:
    """All requests of one account."""

    requests: list[Request]
    paths: set[str]  # without a resource: discovery, which every account may read

    @property
    def rights(self) -> set[Right]:
        return {request.right for request in self.requests}

    @property
    def refused(self) -> list[Request]:
        """Requests that lacked a right. Those that only admission refused are not included."""
        return [request for request in self.requests if not request.allowed]


def user(namespace: str, account: str) -> str:
    """Return the name of a service account in the log."""
    return f"system:serviceaccount:{namespace}:{account}"


def read(log: Path, account: str, since: int = 0) -> Asked:
    """Return the requests of the account after an offset in bytes."""
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
