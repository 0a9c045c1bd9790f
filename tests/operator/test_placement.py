"""Where the scheduler may place the workers of a job."""

import pytest

from finetune_api.status import AvoidedNode
from finetune_operator.plan import pods
from tests.operator.worlds import committed

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def avoiding(template=None, **faults):
    job = committed(workers={"replicas": 2, "template": template} if template else {"replicas": 2})
    nodes = [
        AvoidedNode(name=name, reason="UnexpectedAdmissionError", faults=count)
        for name, count in faults.items()
    ]
    job = job.with_status(job.status.replace(avoided_nodes=nodes))
    return pods.worker_pods(job, 0, [1])[0]["spec"]


def is_not(name):
    return {"key": "metadata.name", "operator": "NotIn", "values": [name]}


def test_a_job_without_faulty_nodes_has_no_node_affinity():
    assert "nodeAffinity" not in avoiding().get("affinity", {})


def test_a_node_with_one_fault_is_avoided_if_another_one_is_free():
    assert avoiding(a=1, b=1)["affinity"]["nodeAffinity"] == {
        PREFERRED: [
            {"weight": 100, "preference": {"matchFields": [is_not("a")]}},
            {"weight": 100, "preference": {"matchFields": [is_not("b")]}},
        ]
    }


def test_nodes_with_two_faults_are_excluded_together():
    assert avoiding(a=2, b=3)["affinity"]["nodeAffinity"] == {
        REQUIRED: {"nodeSelectorTerms": [{"matchFields": [is_not("a"), is_not("b")]}]}
    }


def test_the_affinity_of_the_template_still_applies():
    zones = [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]},
        {"matchFields": [is_not("z")]},
    ]
    wanted = {"weight": 5, "preference": {"matchExpressions": [{"key": "fast"}]}}
    other = {"podAffinity": {PREFERRED: []}}
    own = {REQUIRED: {"nodeSelectorTerms": zones}, PREFERRED: [wanted]}
    spec = avoiding({"spec": {"affinity": {"nodeAffinity": own, **other}}}, a=2, b=1)
    assert spec["affinity"]["podAffinity"] == other["podAffinity"]
    node = spec["affinity"]["nodeAffinity"]
    assert node[REQUIRED]["nodeSelectorTerms"] == [
        zones[0] | {"matchFields": [is_not("a")]},
        {"matchFields": [is_not("z"), is_not("a")]},
    ]
    assert node[PREFERRED][0] == wanted
    assert node[PREFERRED][1]["preference"] == {"matchFields": [is_not("b")]}


@pytest.mark.parametrize("terms", [[], [{}]])
def test_a_node_affinity_that_matches_no_node_still_matches_none(terms):
    own = {REQUIRED: {"nodeSelectorTerms": terms}}
    spec = avoiding({"spec": {"affinity": {"nodeAffinity": own}}}, a=2)
    assert spec["affinity"]["nodeAffinity"] == own
