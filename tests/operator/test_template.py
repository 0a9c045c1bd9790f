"""What a user's pod template may set, what becomes of it, and what is refused by name."""

from dataclasses import replace

import pytest

from finetune_operator.plan import pods
from finetune_operator.plan.observe import Ended
from tests.operator.worlds import at, committed, condition, look, make_job
from tests.operator.worlds import prepare_pod as a_prepare_pod

ENDED = Ended(0, "Completed", at(5), "")


def trainer(**fields):
    return {"spec": {"containers": [{"name": "trainer", **fields}]}}


def workers(template, **more):
    return {"workers": {"replicas": 2, "devicesPerWorker": 4, "template": template, **more}}


def container(pod, name="trainer"):
    return next(c for c in pod["spec"]["containers"] if c["name"] == name)


def worker_pod(template=None, **spec):
    return pods.worker_pods(committed(**(workers(template) if template else {}), **spec), 0, [1])[0]


def prepare_pod(**spec):
    return pods.prepare_pod(make_job(**spec), "trainer:1", "digest")


REFUSED = {
    "a container whose name is almost trainer": (
        {"spec": {"containers": [{"name": "trainner", "image": "x"}]}},
        "workers.template has no container named 'trainer', but one named 'trainner', which would "
        "be a sidecar: name it 'trainer', or give the sidecar a name that differs more",
    ),
    "a variable of the operator": (
        trainer(env=[{"name": "PET_NNODES", "value": "9"}]),
        "workers.template.spec.containers[trainer].env: PET_NNODES is set by the operator; "
        "remove it",
    ),
    "the configuration of the trainer": (
        trainer(env=[{"name": "FINETUNE_RUN", "value": "{}"}]),
        "workers.template.spec.containers[trainer].env: FINETUNE_RUN is set by the operator; "
        "remove it",
    ),
    "the image of the trainer": (
        trainer(image="x"),
        "workers.template.spec.containers[trainer].image: the image is that of workers.image; "
        "remove it",
    ),
    "a restart in place": (
        trainer(restartPolicy="Always"),
        "workers.template.spec.containers[trainer].restartPolicy is set by the operator; remove it",
    ),
    "the file of the result": (
        trainer(terminationMessagePath="/tmp/log"),
        "workers.template.spec.containers[trainer].terminationMessagePath is set by the operator; "
        "remove it",
    ),
    "the policy of the result": (
        trainer(terminationMessagePolicy="File"),
        "workers.template.spec.containers[trainer].terminationMessagePolicy is set by the "
        "operator; remove it",
    ),
    "a label of the operator": (
        {"metadata": {"labels": {"finetune.dev/role": "x"}}},
        "workers.template.metadata.labels: finetune.dev/role is set by the operator; remove it",
    ),
    "an annotation of the operator": (
        {"metadata": {"annotations": {"finetune.dev/retry": "1"}}},
        "workers.template.metadata.annotations: finetune.dev/retry is set by the operator; "
        "remove it",
    ),
    "more than 64 kB": (
        {"metadata": {"annotations": {"a": "x" * 65_536}}},
        "workers.template has 65573 bytes as JSON, at most 65536 are allowed",
    ),
}


def waits(job):
    decision = look(job)
    assert decision.create == []
    accepted = condition(decision.status, "Accepted")
    return accepted.status, accepted.reason, decision.status.message


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_ignored_or_replaced_is_refused_before_anything_is_created(name):
    template, message = REFUSED[name]
    job = make_job(workers={"template": template})
    assert waits(job) == ("False", "InvalidTemplate", message)


@pytest.mark.parametrize("name", REFUSED)
def test_the_template_of_the_prepare_pod_has_the_same_rules(name):
    template, message = REFUSED[name]
    if name == "a variable of the operator":
        return  # the prepare pod has no rank
    found = waits(make_job(prepare={"template": template}))
    assert found[:2] == ("False", "InvalidTemplate")
    assert found[2] == message.replace("workers.template", "prepare.template")


def test_a_priority_in_both_places_is_refused():
    spec = workers({"spec": {"priorityClassName": "low"}})
    job = make_job(**spec, scheduling={"priorityClassName": "high"})
    assert waits(job)[2] == (
        "workers.template.spec.priorityClassName is low and scheduling.priorityClassName is high; "
        "remove one of them"
    )
    job = committed(**spec)
    assert pods.worker_pods(job, 0, [0])[0]["spec"]["priorityClassName"] == "low"


@pytest.mark.parametrize("part", ["limits", "requests"])
def test_another_number_of_devices_in_the_template_is_refused(part):
    template = trainer(resources={part: {"nvidia.com/gpu": 8}})
    assert waits(make_job(**workers(template)))[2] == (
        f"workers.template.spec.containers[trainer].resources.{part}: nvidia.com/gpu is 8, and "
        "workers.devicesPerWorker is 4; remove it from the template"
    )
    for same in (4, "4"):
        template = trainer(resources={part: {"nvidia.com/gpu": same}})
        assert look(make_job(**workers(template))).create


def test_a_device_in_the_template_of_the_prepare_pod_is_refused():
    template = trainer(resources={"limits": {"nvidia.com/gpu": 1}})
    assert waits(make_job(prepare={"template": template}))[2] == (
        "prepare.template.spec.containers[trainer].resources: the prepare pod requests no device; "
        "remove nvidia.com/gpu"
    )


SIDECARS = ("side", "tensorboard", "metrics", "vector", "trace")


@pytest.mark.parametrize("name", SIDECARS)
def test_a_sidecar_without_a_trainer_is_accepted(name):
    template = {"spec": {"containers": [{"name": name, "image": "x"}]}}
    assert look(make_job(workers={"template": template})).create
    assert container(worker_pod(template), name)["image"] == "x"


def test_ports_of_the_template_are_kept():
    pod = worker_pod(trainer(ports=[{"name": "metrics", "containerPort": 9400}]))
    assert [p["containerPort"] for p in container(pod)["ports"]] == [9400, 29500, 29600]


def test_the_host_network_resolves_the_names_of_the_gang():
    assert worker_pod({"spec": {"hostNetwork": True}})["spec"]["dnsPolicy"] == (
        "ClusterFirstWithHostNet"
    )
    own = {"spec": {"hostNetwork": True, "dnsPolicy": "Default"}}
    assert worker_pod(own)["spec"]["dnsPolicy"] == "Default"
    assert "dnsPolicy" not in worker_pod()["spec"]


def test_pods_get_no_service_links_and_name_their_container():
    for pod in (worker_pod(), prepare_pod()):
        assert pod["spec"]["enableServiceLinks"] is False
        annotations = pod["metadata"]["annotations"]
        assert annotations["kubectl.kubernetes.io/default-container"] == "trainer"
    own = {
        "metadata": {"annotations": {"kubectl.kubernetes.io/default-container": "side"}},
        "spec": {"enableServiceLinks": True, "containers": [{"name": "side", "image": "x"}]},
    }
    pod = worker_pod(own)
    assert pod["spec"]["enableServiceLinks"] is True
    assert pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "side"


def test_a_null_in_a_security_context_removes_what_the_operator_would_set():
    own = {"spec": {"securityContext": {"fsGroup": None}}}
    for pod in (worker_pod(own), prepare_pod(workers={"template": own})):
        assert "fsGroup" not in pod["spec"]["securityContext"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    pod = worker_pod(trainer(securityContext={"seccompProfile": None}))
    assert "seccompProfile" not in container(pod)["securityContext"]
    assert worker_pod()["spec"]["securityContext"]["fsGroup"] == 65532


# The workers' requests


def requests(template=None, replicas=2, devices=4, **spec):
    job = committed(
        workers={"replicas": replicas, "devicesPerWorker": devices, "template": template or {}},
        **spec,
    )
    found = job.status.resolved.replace(parameter_count=8_000_000_000)
    plan = job.status.plan.replace(checkpoint_bytes=96_000_000_000)
    job = job.with_status(job.status.replace(resolved=found, plan=plan))
    return container(pods.worker_pods(job, 0, [0])[0])["resources"]["requests"]


GIB = 2**30


def gib(quantity):
    assert quantity.endswith("Mi")
    return int(quantity[:-2]) * 2**20 / GIB


def test_requests_follow_the_share_of_the_checkpoint_and_the_devices():
    found = requests(replicas=1, devices=8)
    assert found["cpu"] == "4"
    assert found["nvidia.com/gpu"] == "8"
    assert gib(found["memory"]) == pytest.approx(8 * 2 + 96e9 / GIB, abs=0.1)
    assert gib(requests(replicas=2)["memory"]) == pytest.approx(4 * 2 + 48e9 / GIB, abs=0.1)


def test_offload_adds_the_state_that_is_kept_in_host_memory():
    offload = {"zeroStage": 3, "offload": "Optimizer"}
    found = gib(requests(replicas=1, devices=8, deepspeed=offload)["memory"])
    assert found == pytest.approx(8 * 2 + 256e9 / GIB, abs=0.1)
    offload["offload"] = "OptimizerAndParameters"
    more = gib(requests(replicas=1, devices=8, deepspeed=offload)["memory"])
    assert more == pytest.approx(found + 16e9 / GIB, abs=0.1)


def test_requests_of_the_template_replace_the_default_ones():
    found = requests(trainer(resources={"requests": {"memory": "5Gi"}}))
    assert (found["memory"], found["cpu"]) == ("5Gi", "2")


# The prepare pod

GPU_NODES = {
    "metadata": {
        "labels": {"scheduling.x-k8s.io/pod-group": "gang", "team": "a"},
        "annotations": {"scheduling.volcano.sh/queue": "q"},
    },
    "spec": {
        "nodeSelector": {"pool": "h100"},
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"topologyKey": "zone"}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
        "hostNetwork": True,
        "hostIPC": True,
        "serviceAccountName": "reader",
        "imagePullSecrets": [{"name": "registry"}],
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "securityContext": {"runAsUser": 1000},
        "hostAliases": [{"ip": "10.0.0.9", "hostnames": ["mirror"]}],
        "initContainers": [{"name": "warm", "image": "x", "restartPolicy": "Always"}],
        "volumes": [
            {"name": "hub", "persistentVolumeClaim": {"claimName": "hub"}},
            {"name": "huge", "emptyDir": {"medium": "HugePages-2Mi"}},
            {"name": "side", "emptyDir": {}},
        ],
        "containers": [
            {"name": "side", "image": "x", "volumeMounts": [{"name": "side", "mountPath": "/s"}]},
            {
                "name": "trainer",
                "env": [{"name": "HF_ENDPOINT", "value": "http://mirror"}],
                "envFrom": [{"configMapRef": {"name": "proxy"}}],
                "volumeMounts": [
                    {"name": "hub", "mountPath": "/hub"},
                    {"name": "huge", "mountPath": "/huge"},
                ],
                "resources": {
                    "requests": {"cpu": "180", "memory": "1800Gi", "hugepages-2Mi": "5Gi"},
                    "limits": {"vpc.amazonaws.com/efa": 32, "memory": "1800Gi"},
                },
                "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
            },
        ],
    },
}


NOT_INHERITED = (
    *("nodeSelector", "affinity", "topologySpreadConstraints", "schedulerName"),
    *("priorityClassName", "runtimeClassName", "hostNetwork", "hostIPC", "initContainers"),
)


def test_the_prepare_pod_does_not_need_the_nodes_of_the_workers():
    pod = prepare_pod(workers={"template": GPU_NODES})
    spec, own = pod["spec"], container(pod)
    for field in NOT_INHERITED:
        assert field not in spec, field
    assert [c["name"] for c in spec["containers"]] == ["trainer"]
    assert own["resources"] == {"requests": {"cpu": "1", "memory": "2Gi"}}
    assert "sleep" not in own["lifecycle"]["preStop"]
    assert not {"team", "scheduling.x-k8s.io/pod-group"} & set(pod["metadata"]["labels"])
    assert "scheduling.volcano.sh/queue" not in pod["metadata"]["annotations"]


def test_the_prepare_pod_reads_the_inputs_with_the_rights_of_the_workers():
    pod = prepare_pod(workers={"template": GPU_NODES})
    spec, own = pod["spec"], container(pod)
    for field in ("serviceAccountName", "imagePullSecrets", "tolerations", "hostAliases"):
        assert spec[field] == GPU_NODES["spec"][field]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert {"name": "HF_ENDPOINT", "value": "http://mirror"} in own["env"]
    assert {"configMapRef": {"name": "proxy"}} in own["envFrom"]
    assert {"name": "hub", "mountPath": "/hub"} in own["volumeMounts"]
    volumes = [volume["name"] for volume in spec["volumes"]]
    assert volumes == ["hub", "finetune-tmp", "claim-0"]  # no hugepages, none of a sidecar
    assert not any(mount["name"] == "huge" for mount in own["volumeMounts"])


def test_the_template_of_the_prepare_pod_has_precedence():
    own = {
        "metadata": {"labels": {"team": "b"}},
        "spec": {
            "nodeSelector": {"pool": "cpu"},
            "tolerations": [],
            "serviceAccountName": None,
            "volumes": [{"name": "more", "emptyDir": {}}],
            "containers": [
                {
                    "name": "trainer",
                    "env": [{"name": "HF_ENDPOINT", "value": "x"}, {"name": "A", "value": "b"}],
                    "volumeMounts": [{"name": "more", "mountPath": "/more"}],
                    "resources": {"limits": {"memory": "16Gi"}},
                },
                {"name": "proxy", "image": "proxy:1"},
            ],
        },
    }
    pod = prepare_pod(workers={"template": GPU_NODES}, prepare={"template": own})
    spec, found = pod["spec"], container(pod)
    assert (spec["nodeSelector"], spec["tolerations"]) == ({"pool": "cpu"}, [])
    assert "serviceAccountName" not in spec
    assert pod["metadata"]["labels"]["team"] == "b"
    assert [volume["name"] for volume in spec["volumes"]][:2] == ["hub", "more"]
    values = {entry["name"]: entry.get("value") for entry in found["env"]}
    assert (values["HF_ENDPOINT"], values["A"]) == ("x", "b")
    assert {mount["mountPath"] for mount in found["volumeMounts"]} >= {"/hub", "/more"}
    assert found["resources"] == {"requests": {"cpu": "1"}, "limits": {"memory": "16Gi"}}
    assert container(pod, "proxy")["image"] == "proxy:1"


def test_workers_get_nothing_of_the_prepare_pods_template():
    own = {"spec": {"nodeSelector": {"pool": "cpu"}}}
    assert "nodeSelector" not in worker_pod(prepare={"template": own})["spec"]


def test_an_edit_replaces_a_waiting_prepare_pod_only_if_it_concerns_it():
    def digest(**spec):
        return prepare_pod(**spec)["metadata"]["annotations"]["finetune.dev/template-digest"]

    one = digest()
    assert one == digest(workers={"template": {"spec": {"nodeSelector": {"a": "b"}}}})
    assert one == digest(scheduling={"priorityClassName": "high"})
    assert one != digest(prepare={"template": {"spec": {"nodeSelector": {"a": "b"}}}})
    assert one != digest(workers={"template": {"spec": {"serviceAccountName": "x"}}})


def test_a_prepare_pod_whose_sidecar_runs_on_is_deleted_with_the_first_pods_of_the_gang():
    job = committed()
    done = replace(a_prepare_pod(job=make_job()), ended=ENDED, phase="Running", running=False)
    deletions = look(job, done, now=7).delete
    assert [(d.name, d.grace) for d in deletions] == [("a-prepare", 10)]
    over = replace(done, containers_ended=True)  # its logs are kept
    assert look(job, over, now=7).delete == []
    assert look(job, replace(done, deletion=at(8)), now=7).delete == []


# Other workers of the gang

SPREAD = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {
        "matchLabels": {"finetune.dev/job-uid": "job-uid", "finetune.dev/attempt": "1"}
    },
}


def test_workers_prefer_different_nodes():
    assert worker_pod()["spec"]["topologySpreadConstraints"] == [SPREAD]
    assert "topologySpreadConstraints" not in prepare_pod()["spec"]
    alone = pods.worker_pods(committed(workers={"replicas": 1}), 0, [0])[0]
    assert "topologySpreadConstraints" not in alone["spec"]


OWN_PLACEMENT = {
    "spread": {"topologySpreadConstraints": []},
    "affinity": {"affinity": {"podAffinity": {}}},
    "anti-affinity": {"affinity": {"podAntiAffinity": {}}},
}


@pytest.mark.parametrize("name", OWN_PLACEMENT)
def test_a_template_that_places_workers_relative_to_pods_replaces_the_default(name):
    own = OWN_PLACEMENT[name]
    spec = worker_pod({"spec": own})["spec"]
    assert spec.get("topologySpreadConstraints", []) == []
    on_nodes = {"spec": {"affinity": {"nodeAffinity": {}}}}
    assert worker_pod(on_nodes)["spec"]["topologySpreadConstraints"] == [SPREAD]


def test_workers_can_be_required_to_run_on_different_nodes():
    own = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"own": 1}]}}
    spec = worker_pod({"spec": {"affinity": own}}, scheduling={"workerAntiAffinity": "Required"})[
        "spec"
    ]
    required = spec["affinity"]["podAntiAffinity"]
    assert required["requiredDuringSchedulingIgnoredDuringExecution"] == [
        {"own": 1},
        {"topologyKey": SPREAD["topologyKey"], "labelSelector": SPREAD["labelSelector"]},
    ]
    assert "priorityClassName" not in spec
