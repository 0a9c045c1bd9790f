"""The cache of jobs: versions arrive in any order, and only jobs that go on are kept parsed."""

import copy
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


# What is kept of jobs that have ended, and of large ones

ATTEMPT = {"number": 1, "startTime": "2026-01-01T00:00:00Z", "message": "m" * 200}
RUNNING = {"phase": "Running", "attempt": 1, "attempts": [ATTEMPT]}
ENDED = {
    "phase": "Succeeded",
    "completionTime": "2026-01-01T00:00:00Z",
    "attempts": [ATTEMPT | {"number": n, "outcome": "Failed"} for n in range(1, 6)],
    "message": "the model is at pvc://w/runs/a/final",
}
LARGE = {"spec": {"containers": [{"name": f"c{n}", "args": []} for n in range(5_000)]}}


def named(name: str, version: int = 5, **changes: Any) -> dict[str, Any]:
    status = changes.pop("status", None)
    found = item(version, uid=name, metadata={"name": name}, **changes)
    return found | ({"status": status} if status else {})


def large(name: str, version: int = 5, **changes: Any) -> dict[str, Any]:
    workers = {"replicas": 2, "devicesPerWorker": 4, "template": copy.deepcopy(LARGE)}
    return named(name, version, workers=workers, status=RUNNING, **changes)


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Give a function that returns the bytes that were allocated since, and still are."""

    def size() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        yield size
    finally:
        tracemalloc.stop()


def test_of_a_job_that_has_ended_a_small_record_is_kept():
    cache, count = Cache(), 100
    with traced() as size:
        for number in range(count):
            cache.jobs.take(named(f"j{number}", status=ENDED))
            assert cache.jobs.get(("default", f"j{number}")).status.finished
        assert size() / count < 3_000
    assert cache.jobs.read() == cache.jobs.seen() == []


def test_a_job_that_ends_while_it_is_reconciled_becomes_a_small_record():
    cache, count = Cache(), 100
    with traced() as size:
        for number in range(count):
            name = f"j{number}"
            cache.jobs.take(named(name, status=RUNNING))
            assert cache.jobs.get(("default", name))
            cache.jobs.take(named(name, 6, status=ENDED), notify=False)
            assert cache.jobs.get(("default", name)).status.finished
        assert size() / count < 3_000


@pytest.mark.slow
@pytest.mark.parametrize("notify", [True, False], ids=["watched", "read"])
def test_large_jobs_are_not_kept_parsed(notify):
    cache, count = Cache(), 5
    with traced() as size:
        for number in range(count):
            name = f"j{number}"
            cache.jobs.take(large(name), notify=notify)
            job = cache.jobs.get(("default", name))
            assert job.spec.workers.template == LARGE
            del job
        cache.jobs.take(named("last", status=RUNNING))
        assert cache.jobs.get(("default", "last"))
        assert size() / count < 600_000


def test_a_large_job_is_polled_and_shown_like_any_other():
    jobs = Cache().jobs
    jobs.take(large("a"))
    jobs.get(KEY)
    (shown,) = jobs.seen()
    assert jobs.read() == [(KEY, shown)]
    assert (shown.uid, shown.status.attempt, shown.spec.workers.replicas) == ("a", 1, 2)


def test_a_large_job_keeps_its_templates_in_all_its_versions():
    jobs = Cache().jobs
    jobs.take(large("a"))
    jobs.get(KEY)
    jobs.take(large("a", 6))
    assert jobs.get(KEY).spec.workers.template == LARGE
    jobs.take(large("a", 7), notify=False)
    assert jobs.get(KEY).spec.workers.template == LARGE
    jobs.take(named("a", 8, generation=2, status=RUNNING))
    assert jobs.get(KEY).spec.workers.template is None
    jobs.take(large("a", 9, generation=3))
    assert jobs.get(KEY).spec.workers.template == LARGE


def test_a_deeply_nested_template_does_not_break_the_cache():
    nested: Any = {}
    for _ in range(400):
        nested = {"a": nested}
    jobs = Cache().jobs
    jobs.take(item(5, workers={"replicas": 2, "devicesPerWorker": 4, "template": {"spec": nested}}))
    assert jobs.get(KEY).spec.workers.template == {"spec": nested}


def test_jobs_that_have_ended_are_processed_after_all_others():
    cache, ended = Cache(), []
    cache.jobs.notify_ended = ended.append
    cache.jobs.take(named("a", status=ENDED))
    cache.jobs.take(named("b", status=RUNNING))
    assert (ended, cache.keys) == ([("default", "a")], [("default", "b")])
