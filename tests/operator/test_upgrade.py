"""A new version of the operator, or a changed setting, does not change a gang that runs."""

import asyncio
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from kubernetes import client, config

from finetune_api import names
from finetune_api.devices import DeviceType
from finetune_client.api import Api
from finetune_local.cluster import Cluster
from finetune_operator import informer
from finetune_operator.events import Recorder
from finetune_operator.informer import Pods
from finetune_operator.jobs import Jobs, collection
from finetune_operator.plan import requests
from finetune_operator.plan.observe import Job, Pod, World
from finetune_operator.plan.planner import plan
from finetune_operator.reconcile import Reconciler
from finetune_operator.reports import Reports
from finetune_operator.selector import Selector
from finetune_operator.settings import LeaseSettings, Settings
from finetune_operator.status import Throttle
from tests.installed import install
from tests.operator.older import OLDER, Left, facts, left_in
from tests.operator.stopping import StoppingKube
from tests.operator.worlds import (
    SETTINGS,
    at,
    committed,
    ended,
    look,
    make_job,
    pending,
    prepare_pod,
    progressed,
    result,
    running,
    suspended,
    worker,
)

CHANGED: dict[str, Any] = {
    "trainer_image": "registry.example/other-trainer:2",
    "namespaces": ("default",),
    "selector": Selector.parse("team=a"),
    "report_interval": 99.0,
    "restart_backoff": 99.0,
    "progress_write_interval": 99.0,
    "health_port": 8080,
    "lease": LeaseSettings("default", "operator"),
    "strict_certificates": False,
    "ended_metrics": 99.0,
    "device_types": {
        "GPU": DeviceType(resource="nvidia.com/gpu", memory_bytes=10**10, peak_flops=1e14)
    },
}

# The planner


def test_every_setting_has_a_changed_value():
    assert set(CHANGED) == {field.name for field in fields(Settings)}


def worlds_of_gangs() -> dict[str, World]:
    job = running()
    asked = suspended(job)
    asked = asked.with_status(look(asked, worker(0), worker(1), now=40).status)
    crashed = (
        ended(worker(0), 88, 38, result("Failed", reason="PeerLost", **progressed(20))),
        worker(1),
    )
    gangs = {
        "runs": (job, (worker(0), worker(1))),
        "starts": (committed(), (pending(0), pending(1))),
        "is created in part": (committed(), (pending(0),)),
        "was asked to stop": (asked, (worker(0), worker(1))),
        "waits for the cause of a lost peer": (job, crashed),
    }
    return {name: World(job, pods, at(41)) for name, (job, pods) in gangs.items()}


GANGS = worlds_of_gangs()


@pytest.mark.parametrize("setting", CHANGED)
@pytest.mark.parametrize("gang", GANGS)
def test_a_changed_setting_does_not_change_the_decision_about_a_gang(gang, setting):
    changed = replace(SETTINGS, **{setting: CHANGED[setting]})
    assert plan(GANGS[gang], changed) == plan(GANGS[gang], SETTINGS)


def test_a_changed_image_replaces_the_pod_of_a_job_that_is_not_committed():
    """This also shows that the test above can fail."""
    preparing = World(make_job(), (prepare_pod(),), at(5))
    changed = replace(SETTINGS, trainer_image="other:2")
    assert plan(preparing, changed).delete
    assert not plan(preparing, SETTINGS).delete


@pytest.fixture(params=["as it is", "other ports", "other requests"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Change what a release could change without a setting."""
    if request.param == "other ports":
        monkeypatch.setattr(names, "RENDEZVOUS_PORT", 30500)
        monkeypatch.setattr(names, "REPORT_PORT", 30600)
    if request.param == "other requests":
        other = {"cpu": "3", "memory": "7Gi"}
        monkeypatch.setattr(requests, "for_worker", lambda spec, status: other)
        monkeypatch.setattr(requests, "PREPARE", other)
    return str(request.param)


def test_the_planner_does_not_change_a_gang_of_an_earlier_operator(version):
    job = Job.of(OLDER["job"])
    pods = tuple(Pod.of(item) for item in OLDER["pods"])
    settings = replace(SETTINGS, trainer_image=CHANGED["trainer_image"])
    decision = plan(World(job, pods, at(1000)), settings)
    assert not decision.acts
    assert facts(decision.status.to_dict()) == facts(job.status.to_dict())
    assert decision.status.phase == "Running"
    assert decision.status.usage
    assert decision.status.usage.device_seconds == sum(
        4 * (at(1000) - pod.scheduled).total_seconds() for pod in pods if pod.scheduled
    )


# The reconciler, on the real API server


@pytest.fixture
def left(control_plane: Cluster, version: str) -> Iterator[Left]:
    install(control_plane)
    with left_in(control_plane, f"older-{version.replace(' ', '-')}") as found:
        yield found


async def start(api: Cluster, namespace: str, settings: Settings) -> list[str]:
    """Start an operator, reconcile all jobs twice and return the calls that it made."""
    configuration = client.Configuration()
    config.load_kube_config(str(api.kubeconfig), client_configuration=configuration)
    kube = Api(configuration)
    recording = StoppingKube(kube)
    try:
        pods = Pods(lambda _: None, lambda _: None)
        jobs = Jobs(lambda _: None, pods.forget)
        pods.replace((await kube.list(informer.path(namespace)))[0])
        for item in (await kube.list(collection(namespace)))[0]:
            jobs.take(item)
        recorder = Recorder(recording)
        reconciler = Reconciler(
            recording,
            jobs,
            pods,
            Reports(60.0, lambda _: [], lambda _: None),
            recorder,
            settings,
            Throttle(0.0),
        )
        key = (namespace, OLDER["job"]["metadata"]["name"])
        for _ in range(2):
            assert jobs.get(key)
            await reconciler.reconcile(key)
            await recorder.flush()
    finally:
        await kube.close()
    return recording.calls


@pytest.mark.slow
@pytest.mark.cluster
def test_an_upgraded_operator_does_not_change_a_running_gang(left):
    before = left.versions
    assert len(before) == 2
    changed = replace(SETTINGS, trainer_image=CHANGED["trainer_image"], restart_backoff=99.0)
    for settings in (SETTINGS, changed):
        calls = asyncio.run(start(left.api, left.namespace, settings))
        written = [call for call in calls if call.split()[0] in ("create", "delete", "patch")]
        message = left.get("ftj")[0]["status"]["message"]
        assert all("/status" in call for call in written), (calls, message)
    assert left.versions == before
    (job,) = left.get("ftj")
    known, found = Job.of(OLDER["job"]).status.to_dict(), Job.of(job).status.to_dict()
    assert facts(found) == facts(known)
    for field in ("attempt", "restarts", "resolved", "plan", "startTime"):
        assert found.get(field) == known.get(field)
