"""Whether quotas admit a gang: the arithmetic, the scopes and the message, in tables."""

from decimal import Decimal

import pytest

from finetune_api.base import Object
from finetune_operator.plan.quota import Demand, applies, charges, parse, shortage, written

QUANTITIES = {
    "2": 2,
    "500m": "0.5",
    "1.5": "1.5",
    "2Gi": 2 * 1024**3,
    "1.5Gi": 3 * 2**29,
    "12k": 12_000,
    "3M": 3_000_000,
    "1e3": 1000,
    "2E": 2 * 10**18,
    "1Ei": 2**60,
    "250u": "0.00025",
    "": 0,
    "many": 0,
    "Gi": 0,
    "NaN": 0,
    "1e999999": 0,
}


@pytest.mark.parametrize(("text", "amount"), QUANTITIES.items())
def test_a_quantity(text, amount):
    assert parse(text) == Decimal(amount)


@pytest.mark.parametrize(
    ("resource", "amount", "text"),
    [
        ("requests.nvidia.com/gpu", "24", "24"),
        ("limits.memory", 6 * 1024**3, "6Gi"),
        ("memory", 1500 * 1024**2, "1500Mi"),
        ("requests.memory", "1000", "1000"),
        ("requests.cpu", "1.5", "1500m"),
        ("cpu", "1000", "1000"),
        ("pods", "100", "100"),
        ("requests.hugepages-2Mi", 2**21, "2Mi"),
    ],
)
def test_a_quantity_is_written_as_kubernetes_writes_it(resource, amount, text):
    assert written(resource, Decimal(amount)) == text


def container(**parts: dict[str, str]) -> Object:
    return {"name": "c", "resources": parts}


def pod(*containers: Object, **spec: object) -> Object:
    return {"spec": {"containers": list(containers), **spec}}


GPU = "nvidia.com/gpu"
TRAINER = container(requests={"cpu": "4", "memory": "8Gi", GPU: "8"}, limits={GPU: "8"})
CHARGES = {
    "a worker": (
        pod(TRAINER),
        {"cpu": 4, "requests.cpu": 4, "requests.nvidia.com/gpu": 8, "pods": 1, "count/pods": 1},
    ),
    "a limit is the default of a request": (
        pod(container(limits={"memory": "2Gi"})),
        {"requests.memory": 2 * 1024**3, "limits.memory": 2 * 1024**3, "requests.cpu": None},
    ),
    "containers add up": (
        pod(TRAINER, container(requests={"cpu": "500m"})),
        {"requests.cpu": "4.5", "cpu": "4.5"},
    ),
    "the largest init container": (
        pod(TRAINER, initContainers=[container(requests={"cpu": "6"})]),
        {"requests.cpu": 6, "requests.nvidia.com/gpu": 8},
    ),
    "a sidecar adds up, also with later init containers": (
        pod(
            TRAINER,
            initContainers=[
                container(requests={"cpu": "3"}) | {"restartPolicy": "Always"},
                container(requests={"cpu": "6"}),
            ],
        ),
        {"requests.cpu": 9},
    ),
    "a sidecar beside the containers": (
        pod(
            TRAINER,
            initContainers=[container(requests={"cpu": "3"}) | {"restartPolicy": "Always"}],
        ),
        {"requests.cpu": 7},
    ),
    "the overhead of a runtime class": (pod(TRAINER, overhead={"cpu": "250m"}), {"cpu": "4.25"}),
    "resources of the pod": (
        pod(TRAINER, resources={"requests": {"cpu": "10"}}),
        {"requests.cpu": 10, "requests.nvidia.com/gpu": 8},
    ),
    "huge pages and ephemeral storage": (
        pod(container(requests={"hugepages-2Mi": "4Mi", "ephemeral-storage": "1Gi"})),
        {
            "hugepages-2Mi": 4 * 1024**2,
            "requests.hugepages-2Mi": 4 * 1024**2,
            "ephemeral-storage": 1024**3,
            "requests.ephemeral-storage": 1024**3,
        },
    ),
    "no resources": (pod({"name": "c"}, {"name": "d", "resources": None}), {"pods": 1}),
}


@pytest.mark.parametrize(("item", "amounts"), CHARGES.values(), ids=CHARGES)
def test_what_a_pod_is_charged(item, amounts):
    found = charges(item)
    for name, amount in amounts.items():
        assert found.get(name) == (None if amount is None else Decimal(amount)), name


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: object) -> Object:
    used = used if used is not None else dict.fromkeys(hard, "0")
    return {
        "metadata": {"name": "gpus"},
        "spec": {"hard": hard, **spec},
        "status": {"hard": hard, "used": used},
    }


def expression(operator: str, *values: str, name: str = "PriorityClass") -> Object:
    found = {"scopeName": name, "operator": operator, "values": list(values)}
    return {"scopeSelector": {"matchExpressions": [found]}}


PLAIN = pod({"name": "c"})
URGENT = pod(TRAINER, priorityClassName="urgent")
AFFINITY = {
    "podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "podAffinityTerm": {"namespaceSelector": {}}}
        ]
    }
}
SCOPES = [
    ({}, TRAINER, True),
    ({"scopes": ["BestEffort"]}, PLAIN, True),
    ({"scopes": ["BestEffort"]}, pod(TRAINER), False),
    ({"scopes": ["NotBestEffort"]}, pod(TRAINER), True),
    ({"scopes": ["NotBestEffort"]}, PLAIN, False),
    ({"scopes": ["NotTerminating"]}, PLAIN, True),
    ({"scopes": ["Terminating"]}, PLAIN, False),
    ({"scopes": ["Terminating"]}, pod(TRAINER, activeDeadlineSeconds=5), True),
    ({"scopes": ["NotTerminating", "BestEffort"]}, pod(TRAINER), False),
    ({"scopes": ["PriorityClass"]}, URGENT, True),
    ({"scopes": ["PriorityClass"]}, PLAIN, False),
    (expression("In", "urgent", "low"), URGENT, True),
    (expression("In", "low"), URGENT, False),
    (expression("NotIn", "low"), URGENT, True),
    (expression("Exists"), URGENT, True),
    (expression("DoesNotExist"), URGENT, False),
    (expression("DoesNotExist"), PLAIN, True),
    (expression("Exists", name="NotTerminating"), PLAIN, True),
    ({"scopes": ["CrossNamespacePodAffinity"]}, PLAIN, False),
    ({"scopes": ["CrossNamespacePodAffinity"]}, pod(TRAINER, affinity=AFFINITY), True),
    ({"scopes": ["OfANewerKubernetes"]}, PLAIN, False),
]


@pytest.mark.parametrize(("spec", "item", "expected"), SCOPES)
def test_which_pods_a_quota_selects(spec, item, expected):
    assert applies(quota({"pods": "1"}, **spec), item) is expected


GANG = Demand(pod(TRAINER), 3)
ROOM = {
    "no quota": [],
    "just enough": [quota({"requests.nvidia.com/gpu": "24"})],
    "just enough beside others": [
        quota({"requests.nvidia.com/gpu": "32"}, {"requests.nvidia.com/gpu": "8"})
    ],
    "of another resource": [quota({"requests.amd.com/gpu": "0", "services": "0"})],
    "of other pods": [quota({"pods": "1"}, scopes=["BestEffort"])],
    "overused, in what the pods do not request": [
        quota({"requests.storage": "1", "pods": "3"}, {"requests.storage": "5", "pods": "0"})
    ],
}


@pytest.mark.parametrize("quotas", ROOM.values(), ids=ROOM)
def test_a_gang_has_room(quotas):
    assert shortage(quotas, GANG) is None


def test_the_message_names_the_quota_what_is_used_and_what_is_needed():
    short = quota(
        {"requests.nvidia.com/gpu": "32", "pods": "9", "requests.memory": "20Gi"},
        {"requests.nvidia.com/gpu": "16", "pods": "2", "requests.memory": "1Gi"},
    )
    found = shortage([quota({"pods": "100"}), short], GANG)
    assert found
    assert found.reason == "QuotaExceeded"
    assert found.message == (
        "the API server would not admit all 3 pods of the gang: exceeded quota: gpus, requested: "
        "requests.memory=24Gi,requests.nvidia.com/gpu=24, used: "
        "requests.memory=1Gi,requests.nvidia.com/gpu=16, limited: "
        "requests.memory=20Gi,requests.nvidia.com/gpu=32; waiting until the quota has room"
    )


def test_pods_that_other_jobs_are_about_to_create_are_counted():
    tight = quota({"requests.nvidia.com/gpu": "32"})
    other = Demand(pod(container(requests={GPU: "8"})), 2)
    assert shortage([tight], GANG) is None
    found = shortage([tight], GANG, [other])
    assert found
    assert "about to be used by other jobs: requests.nvidia.com/gpu=16" in found.message
    best_effort = quota({"pods": "3"}, scopes=["NotBestEffort"])
    assert shortage([best_effort], GANG, [Demand(PLAIN, 9)]) is None


def test_a_gang_that_no_free_quota_would_admit():
    small = quota({"pods": "2"}, {"pods": "2"})
    enough = quota({"pods": "3"}, {"pods": "3"})
    assert shortage([enough], GANG, ever=True) is None
    found = shortage([small], GANG, ever=True)
    assert found
    assert "exceeded quota: gpus, requested: pods=3, limited: pods=2" in found.message
    assert "raise the quota or use a smaller gang" in found.message


def test_a_new_quota_without_a_status_limits_as_well():
    new = {"metadata": {"name": "new"}, "spec": {"hard": {"count/pods": "2"}}}
    assert shortage([new], GANG)
    assert shortage([new], Demand(pod(TRAINER), 2)) is None
