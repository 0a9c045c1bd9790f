"""Newest known version of every FineTuneJob."""

from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api.base import API_VERSION
from finetune_api.names import PLURAL
from finetune_operator.kube import Object
from finetune_operator.queue import Key


def path(key: Key) -> str:
    """Of one job."""
    namespace, name = key
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}/{name}"


@dataclass
class Jobs:
    """Fed by the watch and by the answers to our own writes, which may arrive in any order."""

    notify: Callable[[Key], None]
    removed: Callable[[str], None]  # with the uid of a job that is gone
    _items: dict[Key, Object] = field(default_factory=dict)

    def get(self, key: Key) -> Object | None:
        """The object, None when it does not exist."""
        return self._items.get(key)

    def items(self) -> list[tuple[Key, Object]]:
        """All jobs."""
        return list(self._items.items())

    def take(self, item: Object) -> None:
        """A version; an older one changes nothing, nor does one of a job of that name before."""
        metadata = item["metadata"]
        key = (metadata["namespace"], metadata["name"])
        known = self._items.get(key)
        # Versions are of the whole collection: they order two jobs of one name as well.
        if known and int(metadata["resourceVersion"]) <= int(known["metadata"]["resourceVersion"]):
            return
        if known and known["metadata"]["uid"] != metadata["uid"]:
            self.removed(known["metadata"]["uid"])
        self._items[key] = item
        self.notify(key)

    def remove(self, key: Key, uid: str) -> None:
        """The object of that uid is gone."""
        known = self._items.get(key)
        if known and known["metadata"]["uid"] == uid:
            del self._items[key]
            self.removed(uid)
            self.notify(key)
