"""The cache of jobs: versions in any order, each read at most once."""

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


class Told:
    """A cache, and what it told."""

    def __init__(self, **settings: Any) -> None:
        self.keys: list[Any] = []
        self.gone: list[str] = []
        self.jobs = Jobs(self.keys.append, self.gone.append, **settings)


def test_an_older_version_changes_nothing():
    told = Told()
    for version in (5, 4, 5):
        assert told.jobs.take(item(version))
    assert told.jobs.get(KEY).resource_version == "5"
    assert told.keys == [KEY]


def test_what_a_look_took_itself_is_no_news():
    told = Told()
    told.jobs.take(item(5))
    told.jobs.take(item(6), tell=False)
    assert told.jobs.get(KEY).resource_version == "6"
    assert told.keys == [KEY]


def test_a_spec_is_read_again_only_when_it_changed():
    jobs = Told().jobs
    jobs.take(item(5))
    spec = jobs.get(KEY).spec
    assert jobs.get(KEY).spec is spec
    for version in (6, 7):  # the first of them is never looked at
        jobs.take(item(version))
    assert jobs.get(KEY).spec is spec
    jobs.take(item(8, generation=2, suspend=True))
    assert jobs.get(KEY).spec.suspend


def test_a_job_of_the_same_name_is_another_one():
    told = Told()
    told.jobs.take(item(5))
    spec = told.jobs.get(KEY).spec
    told.jobs.take(item(9, uid="u2"))
    assert told.gone == ["u1"]
    assert told.jobs.get(KEY).uid == "u2"
    assert told.jobs.get(KEY).spec is not spec
    told.jobs.remove(KEY, "u1")  # the late end of the one before
    assert told.jobs.uid(KEY) == "u2"


def test_a_job_that_leaves_the_scope_is_gone():
    told = Told(scope=Selector.parse("team=a"))
    assert told.jobs.take(item(5, metadata={"labels": {"team": "a"}}))
    assert not told.jobs.take(item(6, metadata={"labels": {"team": "b"}}))
    assert told.jobs.get(KEY) is None
    assert told.gone == ["u1"]


def test_only_jobs_that_were_looked_at_are_listed():
    jobs = Told().jobs
    jobs.take(item(5))
    assert jobs.read() == []
    job = jobs.get(KEY)
    assert jobs.read() == [(KEY, job)]


def test_what_cannot_be_read_is_an_error_for_who_looks():
    jobs = Told().jobs
    jobs.take(item(5, model={"source": 7}))
    for _ in range(2):
        with pytest.raises(ValueError, match="model"):
            jobs.get(KEY)
