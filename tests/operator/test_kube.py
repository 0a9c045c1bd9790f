"""Requests to the real API server through a proxy that injects faults."""

import asyncio
import gc
import time
import warnings

import pytest
from kubernetes import client, config

from finetune_api import names
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError
from finetune_operator import informer
from finetune_operator.health import Health
from finetune_operator.informer import Pods

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def kube(configuration):
    async with Api(configuration) as api:
        yield api


def sent(proxy, method: str, path: str) -> list[float]:
    return [s.at for s in proxy.seen if s.method == method and path in s.path]


def config_map(name: str) -> dict:
    return {"metadata": {"generateName": f"{name}-", "labels": {"test": name}}}


async def count(kube, name: str) -> int:
    return len((await kube.list(MAPS, labelSelector=f"test={name}"))[0])


async def test_a_write_is_repeated_after_the_delay_of_a_429(kube, proxy):
    with proxy.fault(methods=("POST",), code=429, headers={"Retry-After": "2"}, times=1):
        await kube.create(MAPS, config_map("later"))
    first, second = sent(proxy, "POST", "configmaps")
    assert second - first >= 2
    assert await count(kube, "later") == 1


@pytest.mark.parametrize("fault", [{"code": 500}, {"cut": True}, {"lose": True}], ids=str)
async def test_a_failed_read_is_repeated(kube, proxy, fault):
    with proxy.fault(methods=("GET",), times=2, **fault):
        assert (await kube.get("/api/v1/namespaces/default"))["metadata"]["name"] == "default"
    assert len(sent(proxy, "GET", "/namespaces/default")) == 3


FAULTS = {
    "refused": ({"code": 503}, ApiError, 0),
    "cut": ({"cut": True}, TRANSIENT, 0),
    "carried out, the response lost": ({"lose": True}, TRANSIENT, 1),
}


@pytest.mark.parametrize(("fault", "error", "exist"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_write_that_may_have_been_carried_out_is_not_repeated(
    kube, proxy, fault, error, exist
):
    name = f"once{len(str(fault))}"
    with proxy.fault(methods=("POST",), **fault), pytest.raises(error):
        await kube.create(MAPS, config_map(name))
    assert len(sent(proxy, "POST", "configmaps")) == 1
    assert await count(kube, name) == exist


async def test_a_response_that_is_not_from_kubernetes_is_not_quoted(kube, proxy):
    page = "<html>your header was: Bearer s3cr3t</html>"
    with proxy.fault(code=502, body=page), pytest.raises(ApiError) as refused:
        await kube.create(MAPS, {})
    assert refused.value.message == "HTTP 502 without a Status of Kubernetes"
    with proxy.fault(code=200, body=page), pytest.raises(TRANSIENT) as away:
        await kube.create(MAPS, {})
    assert "s3cr3t" not in str(away.value)


def pod(name: str) -> dict:
    return {
        "metadata": {"name": name, "labels": {names.LABEL_JOB_UID: "watched"}},
        "spec": {"containers": [{"name": "trainer", "image": "i"}]},
    }


def known(pods: Pods) -> set[str]:
    return {pod.name for pod in pods.of("watched") if not pod.gone}


async def until(check) -> None:
    async with asyncio.timeout(20):
        while True:
            if check():
                return
            await asyncio.sleep(0.02)


WATCHES = {
    "refused as too old": {"code": 410, "times": 1},
    "refused for a while": {"code": 500, "times": 2},
    "cut again and again": {"cut": True, "times": 3},
    "silent": {"mute": True, "times": 1},
}


@pytest.mark.parametrize("fault", WATCHES.values(), ids=WATCHES.keys())
async def test_the_cache_of_pods_is_correct_again_after_a_watch_failed(configuration, proxy, fault):
    kube, pods = Api(configuration, watch_timeout=2.0), Pods(lambda _: None, lambda _: None)
    path = informer.path("default")
    await kube.create(path, pod("watched-1"))
    heart = Health().heart("pods", 60, filled=False)
    task = asyncio.create_task(informer.run(kube, pods, "default", heart))
    await until(lambda: known(pods) == {"watched-1"})
    with proxy.fault(path="/pods", watch=True, **fault) as broken:
        proxy.cut_streams()
        await until(lambda: broken.met)
        before = len(proxy.seen)
        await kube.create(path, pod("watched-2"))
        await kube.delete(f"{path}/watched-1", {"gracePeriodSeconds": 0})
        await until(lambda: known(pods) == {"watched-2"})
    again = [s for s in proxy.seen[before:] if s.method == "GET" and not s.watch]
    assert bool(again) == ("code" in fault), "listed again only if the watch cannot continue"
    task.cancel()
    await kube.delete(f"{path}/watched-2", {"gracePeriodSeconds": 0})
    await kube.close()


async def test_a_watch_that_ends_at_once_does_not_cause_a_busy_loop(configuration, proxy):
    kube = Api(configuration)
    heart = Health().heart("pods", 60, filled=False)
    task = asyncio.create_task(
        informer.run(kube, Pods(lambda _: None, lambda _: None), None, heart)
    )
    begin = time.monotonic()
    with proxy.fault(path="/pods", watch=True, code=200, body="") as fault:
        await asyncio.sleep(4)
    assert 2 <= fault.met <= 10
    assert heart.age < time.monotonic() - begin
    task.cancel()
    await kube.close()


def test_a_cancelled_watch_leaves_no_connection(control_plane):
    direct = client.Configuration()
    config.load_kube_config(str(control_plane.kubeconfig), client_configuration=direct)
    path = informer.path("default")

    async def watch(kube: Api, version: str) -> None:
        async for _ in kube.watch(path, version):
            pass

    async def cancel_a_watch() -> None:
        kube = Api(direct)
        _, version = await kube.list(path)
        task = asyncio.create_task(watch(kube, version))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kube.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(cancel_a_watch())
        gc.collect()
    assert not [str(warning.message) for warning in caught]
