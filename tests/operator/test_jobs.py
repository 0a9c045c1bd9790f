"""The cache of jobs: versions arrive in any order, and each is parsed at most once."""

from typing import Any

import pytest

from finetune_operator.jobs import Jobs
from finetune_operator.selector import Selector
from tests.operator.worlds import make_spec

KEY = ("default", "a")


def item(version: int, *, uid: str = "u1", generation: int = 1, **changes: Any) -> dict[str, Any]:
    metadata = {
        "name": "a",
        "namespace": "default",
        "uid": uid,
        "resourceVersion": str(version),
        "generation": generation,
    }
    return {"metadata": metadata | changes.pop("metadata", {}), "spec": make_spec(**changes)}


class Cache:
    """A cache and its notifications."""

    def __init__(self, **settings: Any) -> None:
        self.keys: list[Any] = []
        self.gone: list[str] = []
        self.jobs = Jobs(self.keys.append, self.gone.append, **settings)


def test_an_older_version_changes_nothing():
    cache = Cache()
    for version in (5, 4, 5):
        assert cache.jobs.take(item(version))
    assert cache.jobs.get(KEY).resource_version == "5"
    assert cache.keys == [KEY]


def test_a_version_read_while_reconciling_causes_no_notification():
    cache = Cache()
    cache.jobs.take(item(5))
    cache.jobs.take(item(6), notify=False)
    assert cache.jobs.get(KEY).resource_version == "6"
    assert cache.keys == [KEY]


def test_a_spec_is_parsed_again_only_if_it_changed():
    jobs = Cache().jobs
    jobs.take(item(5))
    spec = jobs.get(KEY).spec
    assert jobs.get(KEY).spec is spec
    for version in (6, 7):  # The first of them is never parsed.
        jobs.take(item(version))
    assert jobs.get(KEY).spec is spec
    jobs.take(item(8, generation=2, suspend=True))
    assert jobs.get(KEY).spec.suspend


def test_a_new_job_of_the_same_name_replaces_the_old_one():
    cache = Cache()
    cache.jobs.take(item(5))
    spec = cache.jobs.get(KEY).spec
    cache.jobs.take(item(9, uid="u2"))
    assert cache.gone == ["u1"]
    assert cache.jobs.get(KEY).uid == "u2"
    assert cache.jobs.get(KEY).spec is not spec
    cache.jobs.remove(KEY, "u1")  # The deletion of the previous one arrives late.
    assert cache.jobs.uid(KEY) == "u2"


def test_a_job_whose_labels_leave_the_scope_is_removed():
    cache = Cache(scope=Selector.parse("team=a"))
    assert cache.jobs.take(item(5, metadata={"labels": {"team": "a"}}))
    assert not cache.jobs.take(item(6, metadata={"labels": {"team": "b"}}))
    assert cache.jobs.get(KEY) is None
    assert cache.gone == ["u1"]


def test_only_parsed_jobs_are_listed():
    jobs = Cache().jobs
    jobs.take(item(5))
    assert jobs.read() == []
    job = jobs.get(KEY)
    assert jobs.read() == [(KEY, job)]


def test_a_job_that_cannot_be_parsed_raises_an_error_each_time():
    jobs = Cache().jobs
    jobs.take(item(5, model={"source": 7}))
    for _ in range(2):
        with pytest.raises(ValueError, match="model"):
            jobs.get(KEY)
