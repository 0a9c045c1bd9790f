"""Newest known version of every FineTuneJob."""

from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api.base import API_VERSION
from finetune_api.names import PLURAL
from finetune_operator.kube import Object
from finetune_operator.queue import Key
from finetune_operator.selector import Selector


def path(key: Key) -> str:
    """Of one job."""
    namespace, name = key
    return f"{collection(namespace)}/{name}"


def collection(namespace: str | None) -> str:
    """Of the jobs of one namespace, or of all."""
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API_VERSION}{where}/{PLURAL}"


def _version(item: Object) -> int:
    """Ordered over all objects of the kind, so also over those that had the same name."""
    return int(item["metadata"]["resourceVersion"])


@dataclass
class Jobs:
    """Fed by the watch and by the answers to our own writes, which may arrive in any order."""

    notify: Callable[[Key], None]
    removed: Callable[[str], None]  # with the uid of a job that is gone
    scope: Selector = field(default_factory=Selector)  # jobs outside it belong to another operator
    _items: dict[Key, Object] = field(default_factory=dict)
    _uids: set[str] = field(default_factory=set)

    def get(self, key: Key) -> Object | None:
        """The object, None when it does not exist."""
        return self._items.get(key)

    def items(self) -> list[tuple[Key, Object]]:
        """All jobs."""
        return list(self._items.items())

    def knows(self, uid: str) -> bool:
        """Whether a job of that uid is here."""
        return uid in self._uids

    def take(self, item: Object) -> bool:
        """A version; one older than is known changes nothing. False: it is not our job."""
        metadata = item["metadata"]
        metadata.pop("managedFields", None)  # two thirds of an object, and nobody reads them
        key = (metadata["namespace"], metadata["name"])
        known = self._items.get(key)
        if known and _version(item) <= _version(known):
            return True
        if not self.scope.matches(metadata.get("labels", {})):
            self.forget(key)
            return False
        if known and known["metadata"]["uid"] != metadata["uid"]:
            self._gone(known)
        self._items[key] = item
        self._uids.add(metadata["uid"])
        self.notify(key)
        return True

    def remove(self, key: Key, uid: str) -> None:
        """The object of that uid is gone."""
        known = self._items.get(key)
        if known and known["metadata"]["uid"] == uid:
            self.forget(key)

    def forget(self, key: Key) -> None:
        """No job of that name is ours any more."""
        known = self._items.pop(key, None)
        if known:
            self._gone(known)
            self.notify(key)

    def _gone(self, item: Object) -> None:
        uid = item["metadata"]["uid"]
        self._uids.discard(uid)
        self.removed(uid)
