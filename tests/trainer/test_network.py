"""The network between two pods is cut, in real network namespaces."""

import time

import pytest

from tests.trainer import gang
from tests.trainer.cable import NETWORK, NETWORK_6, Cable
from tests.trainer.conftest import MakeJob

pytestmark = pytest.mark.slow


def test_ranks_without_a_network_end_in_bounded_time(make_job: MakeJob) -> None:
    """They end a sixth of the progress deadline after the cut, long before the deadline."""
    job = make_job()
    job.config["progressDeadlineSeconds"] = 240
    with Cable() as cable:
        job.network, job.enter = NETWORK, cable.enter
        job.start(gang.make_plan(totalSteps=10_000))
        job.wait_for_text("saved a checkpoint of step 4")
        cable.cut()
        began = time.monotonic()
        assert job.wait(150) == [88, 88], job.log
    assert time.monotonic() - began > 30  # no connection was closed
    for pod in job.pods:
        assert pod.result.reason == "PeerLost"
        assert "a peer was lost: " in pod.result.message
    assert "Traceback" not in job.log
    assert job.pods[0].result.checkpoints[0].verified


def test_a_stop_while_the_network_is_cut_does_not_wait_for_the_grace_period(
    make_job: MakeJob,
) -> None:
    job = make_job()
    with Cable() as cable:
        job.network, job.enter = NETWORK, cable.enter
        job.start(gang.make_plan(totalSteps=10_000))
        job.wait_for_text("saved a checkpoint of step 4")
        cable.cut()
        for pod in job.pods:
            pod.terminate()
        assert job.wait(60) == [88, 88], job.log
    for pod in job.pods:  # neither pod can see how the other one ends
        assert "no step was finished after SIGTERM" in pod.result.message


async def test_two_ranks_train_on_the_loopback_address_of_ipv6(make_job: MakeJob) -> None:
    job = make_job()
    job.nodes, job.devices, job.network = 1, 2, ":"
    (pod,) = job.start(gang.make_plan(totalSteps=20))
    assert pod.address == "::1"
    job.wait_for_step(1)
    assert (await pod.report()).stage == "Training"
    assert job.wait() == [0], job.log


def test_a_gang_trains_in_a_network_without_ipv4(make_job: MakeJob) -> None:
    job = make_job()
    with Cable(NETWORK_6) as cable:
        job.network, job.enter = NETWORK_6, cable.enter
        job.start(gang.make_plan(totalSteps=4))
        assert job.wait() == [0, 0], job.log
    assert job.pods[0].address == "fd00:9::1"
