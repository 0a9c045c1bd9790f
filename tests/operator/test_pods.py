"""The pods as the API server receives them."""

import json
from dataclasses import replace

import pytest

from finetune_api.run import RunConfig
from finetune_operator.plan import inputs, pods
from tests.operator.worlds import committed, make_job


def worker_pod(**spec):
    return pods.worker_pods(committed(**spec), 0, [1])[0]


def container(pod):
    return next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")


def env(pod):
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(pod)["env"]}


def test_a_worker_gets_its_rank_in_the_variables_of_torchrun():
    found = env(worker_pod())
    assert found["PET_NNODES"] == "2"
    assert found["PET_NODE_RANK"] == "1"
    assert found["PET_NPROC_PER_NODE"] == "4"
    assert found["PET_MASTER_ADDR"] == "a-1-0.a.default.svc"
    assert found["FINETUNE_POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_the_stop_of_every_pod_waits_until_the_trainer_handles_it():
    """`tests/trainer/test_process_1.py` runs the hook."""
    prepare = pods.prepare_pod(make_job(), "trainer:1", "digest")
    hooks = [container(pod)["lifecycle"]["preStop"] for pod in (prepare, worker_pod())]
    assert hooks[0] == hooks[1]
    assert "/proc/1/status" in hooks[0]["exec"]["command"][-1]


def test_the_hooks_of_the_template_remain():
    own = {"postStart": {"exec": {"command": ["true"]}}, "preStop": {"sleep": {"seconds": 5}}}
    containers = [{"name": "trainer", "lifecycle": own}]
    pod = worker_pod(workers={"template": {"spec": {"containers": containers}}})
    assert container(pod)["lifecycle"] == own


def test_the_run_configuration_survives_the_kubelets_expansion():
    source = "pvc://w/$(HOME)/$x"
    pod = worker_pod(model={"source": source})
    text = env(pod)["FINETUNE_RUN"]
    assert "$" not in text
    assert RunConfig.model_validate_json(text).model.source == source


def test_pods_and_their_sidecars_meet_the_restricted_level():
    template = {"spec": {"containers": [{"name": "side", "image": "x", "command": ["y"]}]}}
    pod = worker_pod(workers={"replicas": 2, "template": template})
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    for found in pod["spec"]["containers"]:
        assert found["securityContext"]["allowPrivilegeEscalation"] is False
        assert found["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_the_root_file_system_is_read_only_and_tmp_is_a_volume():
    pod = worker_pod()
    assert container(pod)["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": "finetune-tmp", "mountPath": "/tmp"} in container(pod)["volumeMounts"]
    assert {"name": "finetune-tmp", "emptyDir": {}} in pod["spec"]["volumes"]


@pytest.mark.parametrize("limits", [{"memory": "1Gi"}, {"memory": "1Gi", "cpu": "250m"}])
def test_a_limit_below_the_default_request_replaces_it(limits):
    own = {"name": "trainer", "resources": {"limits": dict(limits)}}
    template = {"spec": {"containers": [own]}}
    job = make_job(prepare={"template": template})
    worker = container(worker_pod(workers={"replicas": 2, "template": template}))
    for resources in (
        worker["resources"],
        container(pods.prepare_pod(job, "trainer:1", "x"))["resources"],
    ):
        assert not set(limits) & set(
            resources["requests"]
        )  # Kubernetes uses the limits as requests
        assert {"memory", "cpu"} <= set(resources["requests"]) | set(limits)


def test_a_template_may_mount_its_own_tmp_and_have_a_writable_root():
    own = {
        "name": "trainer",
        "securityContext": {"readOnlyRootFilesystem": False},
        "volumeMounts": [{"name": "fast", "mountPath": "/tmp"}],
    }
    template = {"spec": {"containers": [own], "volumes": [{"name": "fast", "emptyDir": {}}]}}
    pod = worker_pod(workers={"replicas": 2, "template": template})
    assert container(pod)["securityContext"]["readOnlyRootFilesystem"] is False
    paths = [mount["mountPath"] for mount in container(pod)["volumeMounts"]]
    assert paths.count("/tmp") == 1
    assert "finetune-tmp" not in [volume["name"] for volume in pod["spec"]["volumes"]]


def test_variables_of_the_template_are_kept():
    own = {"name": "trainer", "env": [{"name": "A"}]}
    pod = worker_pod(workers={"replicas": 2, "template": {"spec": {"containers": [own]}}})
    assert "A" in env(pod)


def test_a_job_from_before_the_rules_keeps_the_operators_variables():
    job = committed()
    own = {"name": "trainer", "image": "x", "env": [{"name": "FINETUNE_RUN", "value": "x"}]}
    workers = job.spec.workers.replace(template={"spec": {"containers": [own]}})
    job = replace(job, spec=job.spec.replace(workers=workers))
    pod = pods.worker_pods(job, 0, [1])[0]
    assert env(pod)["FINETUNE_RUN"] != "x"
    assert container(pod)["image"] == "trainer:1"


@pytest.mark.parametrize(("sidecars", "most"), [(0, 4096), (4, 1755), (8, 1117), (14, 1024)])
def test_the_result_leaves_space_for_the_other_containers(sidecars, most):
    side = [{"name": f"side-{n}", "image": "x"} for n in range(sidecars)]
    half = sidecars // 2
    spec = {"initContainers": side[:half], "containers": side[half:]}
    pod = worker_pod(workers={"replicas": 2, "template": {"spec": spec}})
    assert RunConfig.model_validate_json(env(pod)["FINETUNE_RUN"]).result_max_bytes == most


def test_rendering_does_not_change_the_template_in_the_spec():
    template = {"spec": {"containers": [{"name": "trainer", "env": [{"name": "A"}]}]}}
    job = committed(workers={"replicas": 2, "template": template})
    before = json.dumps(job.spec.workers.template)
    pods.worker_pods(job, 0, [0, 1])
    assert json.dumps(job.spec.workers.template) == before


REMOTE = {
    "model": {"source": "hf://org/model", "credentialsSecretRef": {"name": "hf"}},
    "dataset": {
        "train": [
            {"source": "s3://bucket/a.jsonl", "credentialsSecretRef": {"name": "aws"}},
            {"source": "hf://org/data", "credentialsSecretRef": {"name": "hf"}},
        ],
        "validation": [{"source": "gs://bucket/b", "credentialsSecretRef": {"name": "google"}}],
    },
}


def test_only_the_prepare_pod_is_given_the_credentials_of_inputs():
    job = committed(**REMOTE)
    secrets = [{"secretRef": {"name": name}} for name in ("aws", "google", "hf")]
    assert container(pods.prepare_pod(job, "i", "d"))["envFrom"] == secrets
    for pod in pods.worker_pods(job, 0, [0, 1]):
        assert "envFrom" not in container(pod)


def test_credentials_follow_the_environment_sources_of_the_template():
    own = [{"configMapRef": {"name": "proxy"}}]
    template = {"spec": {"containers": [{"name": "trainer", "envFrom": own}]}}
    job = committed(**REMOTE, workers={"replicas": 2, "template": template})
    assert container(pods.prepare_pod(job, "i", "d"))["envFrom"][0] == own[0]
    assert container(pods.worker_pods(job, 0, [0])[0])["envFrom"] == own


def test_a_job_without_credentials_has_none():
    assert "envFrom" not in container(pods.prepare_pod(make_job(), "i", "d"))


def test_a_pod_mounts_claims_only_for_pvc_addresses():
    assert inputs.claims(make_job(**REMOTE)) == {"w": False}


def test_workers_get_the_resolved_revision_of_the_model():
    pod = worker_pod(**REMOTE)
    assert RunConfig.model_validate_json(env(pod)["FINETUNE_RUN"]).model_revision == "m"


def test_another_secret_changes_the_digest_of_the_inputs():
    other = {"model": {"source": "hf://org/model", "credentialsSecretRef": {"name": "other"}}}
    one, two = (inputs.inputs_digest(make_job(**spec), "i") for spec in (REMOTE, REMOTE | other))
    assert one != two


def test_claims_that_are_only_sources_are_read_only():
    job = make_job(model={"source": "pvc://models/a"}, cache="pvc://cache/c")
    assert inputs.claims(job) == {"cache": False, "models": True, "w": False}


TRACKING = [
    {"type": "WandB", "secretRef": {"name": "keys"}},
    {"type": "MLflow", "secretRef": {"name": "keys"}},
    {"type": "TensorBoard"},
]


def test_workers_get_each_secret_of_a_tracker_once_after_the_sources_of_the_template():
    own = {"name": "trainer", "envFrom": [{"configMapRef": {"name": "proxy"}}]}
    workers = {"replicas": 2, "template": {"spec": {"containers": [own]}}}
    pod = worker_pod(workers=workers, tracking=TRACKING)
    assert container(pod)["envFrom"] == [
        {"configMapRef": {"name": "proxy"}},
        {"secretRef": {"name": "keys"}},
    ]
    config = RunConfig.model_validate_json(env(pod)["FINETUNE_RUN"])
    assert [tracker.type for tracker in config.tracking] == ["WandB", "MLflow", "TensorBoard"]
    side = {"name": "side", "image": "x"}
    pod = worker_pod(
        workers={"replicas": 2, "template": {"spec": {"containers": [side]}}}, tracking=TRACKING
    )
    assert "envFrom" not in next(c for c in pod["spec"]["containers"] if c["name"] == "side")


def test_the_prepare_pod_gets_no_secret_of_a_tracker():
    pod = pods.prepare_pod(make_job(tracking=TRACKING), "trainer:1", "digest")
    assert "envFrom" not in container(pod)
    assert RunConfig.model_validate_json(env(pod)["FINETUNE_RUN"]).tracking is None


def test_another_tracker_does_not_change_the_digest_of_the_inputs():
    one, other = make_job(), make_job(tracking=TRACKING)
    assert inputs.inputs_digest(one, "i") == inputs.inputs_digest(other, "i")
