"""Tests pods under the restricted Pod Security level, which the real API server enforces."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from finetune_api.base import Object
from finetune_api.status import AvoidedNode
from finetune_local.cluster import Cluster, ClusterError
from finetune_operator.plan import pods
from tests.chart.helm import Helm, find
from tests.chart.renderings import VALUES
from tests.installed import Operator, install, wait_for
from tests.operator.lives import Life, View, viewed
from tests.operator.test_live import CLAIM
from tests.operator.worlds import committed, spec_of
from tests.security.templates import ADMITTED, LEVEL, REFUSED

pytestmark = pytest.mark.cluster
SPACE = "restricted"


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE, "labels": LEVEL}}
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(space))
    control_plane.kubectl("apply", "-n", SPACE, "-f", "-", stdin=CLAIM)
    accounts = ("serviceaccount", "default", "-n", SPACE)
    wait_for("the namespace's account", lambda: _is_there(control_plane, *accounts), 30)
    control_plane.kubectl("create", "serviceaccount", "builder", "-n", SPACE)
    return control_plane


def _is_there(api: Cluster, *what: str) -> bool:
    try:
        api.kubectl("get", *what)
    except ClusterError:
        return False
    return True


def rendered(name: str, template: Object) -> list[Object]:
    """Return the prepare pod and a worker of a job with the template."""
    job = committed(workers={"replicas": 2, "template": template}, prepare={"template": template})
    job = replace(job, name=name, namespace=SPACE)
    return [pods.prepare_pod(job, "trainer:1", "d"), *pods.worker_pods(job, 0, [0])]


def admit(api: Cluster, items: list[Object]) -> list[Object]:
    """Return the pods as they would be stored; ClusterError with the text of each refusal."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    where = ("create", "--dry-run=server", "-n", SPACE, "-o", "json", "-f", "-")
    printed, found = api.kubectl(*where, stdin=text), []
    while printed.strip():  # one object after another
        item, end = json.JSONDecoder().raw_decode(printed)
        printed = printed[end:].lstrip()
        found.append(item)
    return found


def test_pods_of_every_kind_of_template_are_admitted(api):
    items = [pod for name in ADMITTED for pod in rendered(name, ADMITTED[name])]
    stored = admit(api, items)
    assert len(stored) == len(items) == 2 * len(ADMITTED)
    for pod in stored:
        assert pod["spec"]["serviceAccountName"] == "default"
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert not tokens(pod)


def test_the_placement_of_workers_is_what_the_api_server_takes(api):
    zones = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": zones}}
    own = {"spec": {"affinity": {"nodeAffinity": required}}}
    nodes = [AvoidedNode(name=f"n{n}", reason="OutOfcpu", faults=n) for n in (1, 2, 3)]
    items = []
    for anti_affinity in ("Preferred", "Required"):
        job = committed(
            workers={"replicas": 2, "template": own},
            scheduling={"workerAntiAffinity": anti_affinity},
        )
        job = job.with_status(job.status.replace(avoided_nodes=nodes))
        job = replace(job, name=f"place-{anti_affinity.lower()}", namespace=SPACE)
        items += pods.worker_pods(job, 0, [0])
    for sent, stored in zip(items, admit(api, items), strict=True):
        for field in ("affinity", "topologySpreadConstraints", "enableServiceLinks"):
            assert stored["spec"].get(field) == sent["spec"].get(field)


def tokens(pod: Object) -> list[str]:
    """Return the volumes that contain the token of a service account."""
    volumes = pod["spec"].get("volumes", [])
    return [v["name"] for v in volumes if "serviceAccountToken" in json.dumps(v.get("projected"))]


def test_an_account_and_its_token_are_used_only_if_the_template_requests_them(api):
    named = {"spec": {"serviceAccountName": "builder"}}
    asked = {"spec": {"serviceAccountName": "builder", "automountServiceAccountToken": True}}
    items = [*rendered("named", named), *rendered("asked", asked)]
    *without, prepare, worker = admit(api, items)
    assert {p["spec"]["serviceAccountName"] for p in (*without, prepare, worker)} == {"builder"}
    assert not any(tokens(pod) for pod in without)
    assert tokens(prepare)
    assert tokens(worker)


def test_admission_refuses_templates_that_lift_a_restriction(api):
    items = [pod for name in REFUSED for pod in rendered(name, REFUSED[name][0])]
    with pytest.raises(ClusterError) as refused:
        admit(api, items)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(items), refused.value
    for name, (_, text) in REFUSED.items():
        for pod in (f"{name}-prepare", f"{name}-1-0"):
            (line,) = [line for line in lines if f'pods "{pod}"' in line]
            assert 'violates PodSecurity "restricted:latest"' in line
            assert text in line


@pytest.mark.slow
@pytest.mark.parametrize("values", VALUES)
def test_pods_of_the_operator_are_admitted(api, values, tmp_path):
    template = find(Helm(tmp_path).objects(*VALUES[values]), "Deployment")["spec"]["template"]
    # Other admission plugins look up accounts and Secrets.
    spec = template["spec"] | {"serviceAccountName": "builder"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": spec}
    (stored,) = admit(api, [pod])
    assert tokens(stored)


# The operator itself.


@pytest.fixture
def operator(api: Cluster, tmp_path) -> Iterator[Operator]:
    running = Operator(api, tmp_path / "operator.log")
    running.start()
    yield running
    running.kill()


FULL = {
    "metadata": {"labels": {"team": "a"}},
    "spec": {
        **ADMITTED["volumes"]["spec"],
        **{k: ADMITTED["place"]["spec"][k] for k in ("nodeSelector", "tolerations")},
        "initContainers": ADMITTED["native-sidecar"]["spec"]["initContainers"],
    },
}


@pytest.mark.slow
def test_complete_lives_in_a_restricted_namespace(api, operator):
    async def story(view: View) -> list[Object]:
        workers = {"replicas": 2, "devicesPerWorker": 4}
        lives = [
            Life(view, "restricted-plain", labels=LEVEL),
            Life(
                view,
                "restricted-full",
                spec={"workers": workers | {"template": FULL}},
                labels=LEVEL,
            ),
        ]
        await asyncio.gather(*(life.live() for life in lives))
        return [life.end_state() for life in lives]

    for end in asyncio.run(viewed(api, story)):
        assert end["phase"] == "Succeeded"
        assert [a["outcome"] for a in end["attempts"]] == ["Failed", "Suspended", "Succeeded"]


@pytest.mark.slow
def test_the_refusal_of_a_template_is_shown_until_the_template_is_fixed(api, operator):
    template, text = REFUSED["host-path"]
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "refused"},
        "spec": spec_of("refused", prepare={"template": template}),
    }
    api.kubectl("create", "-n", SPACE, "-f", "-", stdin=json.dumps(job))
    where = ("get", "-n", SPACE, "-o", "json")

    def accepted() -> Object:
        found = json.loads(api.kubectl(*where, "ftj", "refused")).get("status", {})
        return next((c for c in found.get("conditions", []) if c["type"] == "Accepted"), {})

    refused = wait_for("a refusal", accepted, 30)
    assert (refused["status"], refused["reason"]) == ("False", "Forbidden")
    status = json.loads(api.kubectl(*where, "ftj", "refused"))["status"]
    assert 'violates PodSecurity "restricted:latest"' in status["message"]
    assert text in status["message"]
    about = ("--field-selector", "involvedObject.name=refused")
    events = json.loads(api.kubectl(*where, "events", *about))["items"]
    (event,) = [event for event in events if event["type"] == "Warning"]
    assert event["reason"] == "Forbidden"
    assert text in event["message"]
    assert json.loads(api.kubectl(*where, "pods"))["items"] == []
    assert operator.running
    patch = json.dumps({"spec": {"prepare": None}})
    api.kubectl("patch", "-n", SPACE, "ftj", "refused", "--type=merge", "-p", patch)
    wait_for("its prepare pod", lambda: _is_there(api, "-n", SPACE, "pod", "refused-prepare"), 30)
    wait_for("it is accepted", lambda: accepted()["status"] == "True", 30)
    assert "Traceback" not in operator.log
    api.kubectl("delete", "-n", SPACE, "ftj", "refused")
