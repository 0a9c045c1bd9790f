"""The image of a job is frozen as the digest that ran, where a reference allows it."""

from dataclasses import replace

import pytest

from finetune_operator.plan import images, pods
from finetune_operator.plan.observe import Pod
from tests.operator.worlds import (
    committed,
    ended,
    follow,
    look,
    make_job,
    prepare_pod,
    prepared,
    result,
    worker,
)

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
LONG = "r.example/" + "t" * 480
# Reference in the spec, image id in the status of the container -> what is frozen.
CASES = {
    "containerd": ("r.example/t:1", f"r.example/t@{DIGEST}", f"r.example/t:1@{DIGEST}"),
    "no tag": ("r.example/t", f"r.example/t@{DIGEST}", f"r.example/t@{DIGEST}"),
    "a port": ("r:5000/a/t:1", f"r:5000/a/t@{DIGEST}", f"r:5000/a/t:1@{DIGEST}"),
    "a port and no tag": ("r:5000/t", f"r:5000/t@{DIGEST}", f"r:5000/t@{DIGEST}"),
    "docker": ("r.io/t:1", f"docker-pullable://r.io/t@{DIGEST}", f"r.io/t:1@{DIGEST}"),
    "Docker Hub": ("me/t:1", f"docker.io/me/t@{DIGEST}", f"me/t:1@{DIGEST}"),
    "Docker Hub's own": ("t:1", f"docker.io/library/t@{DIGEST}", f"t:1@{DIGEST}"),
    "localhost": ("localhost/t:1", f"localhost/t@{DIGEST}", f"localhost/t:1@{DIGEST}"),
    "a digest already": (f"r.example/t@{OTHER}", f"r.example/t@{DIGEST}", f"r.example/t@{OTHER}"),
    "imported into the node": ("r.example/t:1", DIGEST, "r.example/t:1"),
    "imported by kind": ("me/t:1", f"docker.io/library/import-2026@{DIGEST}", "me/t:1"),
    "the same content of another repository": ("r/t:1", f"r.example/u@{DIGEST}", "r/t:1"),
    "the process node": ("trainer:1", "local/trainer:1", "trainer:1"),
    "nonsense": ("r.example/t:1", "r.example/t@sha256:x y", "r.example/t:1"),
    "unknown": ("r.example/t:1", "", "r.example/t:1"),
    "too long": (LONG, f"{LONG}@{DIGEST}", LONG),
}


@pytest.mark.parametrize("name", CASES)
def test_a_digest_is_added_only_if_the_same_reference_can_be_pulled_by_it(name):
    asked, image_id, frozen = CASES[name]
    assert images.frozen(asked, image_id) == frozen


def test_pods_name_the_digest_alone_because_some_runtimes_refuse_both():
    assert images.pullable(f"r:5000/t:1@{DIGEST}") == f"r:5000/t@{DIGEST}"
    assert images.pullable(f"r:5000/t@{DIGEST}") == f"r:5000/t@{DIGEST}"
    assert images.pullable("r:5000/t:1") == "r:5000/t:1"


def with_image(pod: Pod, digest: str) -> Pod:
    return replace(pod, image_id=f"r.example/t@{digest}")


def committed_by_digest(**workers):
    job = make_job(workers={"replicas": 2, "image": "r.example/t:1", **workers})
    done = ended(prepare_pod(job), 0, 5, result(prepared=prepared()))
    decision = look(job, with_image(done, DIGEST), now=6)
    return job.with_status(decision.status)


def image_of(job):
    return pods.worker_pods(job, 0, [0])[0]["spec"]["containers"][0]["image"]


def test_workers_run_the_image_that_prepared_although_its_tag_moves():
    job = committed_by_digest()
    assert job.status.resolved.image == f"r.example/t:1@{DIGEST}"
    assert image_of(job) == f"r.example/t@{DIGEST}"
    crashed = [with_image(ended(worker(n), 1, 40), OTHER) for n in (0, 1)]
    _, job = follow(job, *(with_image(worker(n), OTHER) for n in (0, 1)), now=20)
    _, job = follow(job, *crashed, now=60)
    _, job = follow(job, *crashed, now=90)
    assert job.status.attempt == 2
    assert job.status.resolved.image == f"r.example/t:1@{DIGEST}"


def test_the_digest_of_an_image_that_was_changed_while_suspended_is_taken_from_its_worker():
    job = committed_by_digest()
    attempt = job.status.attempts[-1].replace(outcome="Suspended", settled=True)
    status = job.status.replace(attempts=[attempt], next_attempt_time=attempt.start_time)
    spec = job.spec.replace(workers=job.spec.workers.replace(image="r.example/t:2"))
    _, job = follow(replace(job, spec=spec, status=status), now=50)
    assert (job.status.attempt, image_of(job)) == (2, "r.example/t:2")
    _, job = follow(job, *(with_image(worker(n, 2), OTHER) for n in (0, 1)), now=70)
    assert job.status.resolved.image == f"r.example/t:2@{OTHER}"


def test_the_image_id_is_read_from_the_trainers_container():
    item = {
        "metadata": {"name": "a", "uid": "u", "namespace": "default"},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": "side", "imageID": f"x@{OTHER}", "state": {"running": {}}},
                {"name": "trainer", "imageID": f"t@{DIGEST}", "state": {"running": {}}},
            ],
        },
    }
    assert Pod.of(item).image_id == f"t@{DIGEST}"
    assert committed().status.resolved.image == "trainer:1"
