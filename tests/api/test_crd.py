"""Tests the CustomResourceDefinition on the real API server."""

import copy
import json
import re
import subprocess
import sys

import pytest
import yaml

from finetune_api.spec import FineTuneJobSpec
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster, ClusterError
from hack import crd
from tests.api.constraints import Place, broken, field, rules, walk
from tests.api.jobs import BAD_SOURCES, BAD_URIS, SOURCES, full_job, make_job
from tests.api.server import JOBS, Server

FILE = TREE / "crds" / "finetune.dev_finetunejobs.yaml"
DEFINITION = yaml.safe_load(FILE.read_text())
SCHEMA = DEFINITION["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]
CONSTRAINTS = {constraint.name: constraint for constraint in walk(SPEC)}
# The message of the API server for each kind of violation.
ALLOWED = {
    "type": r"must be of type|Invalid value",
    "enum": r"supported values",
    "minimum": r"should be greater than",
    "maximum": r"should be less than",
    "minLength": r"should be at least \d+ chars? long",
    "maxLength": r"may not be more than \d+",
    "minItems": r"should have at least \d+ items",
    "maxItems": r"must have at most \d+ items",
    "required": r"Required value",
}


def training(**changes):
    return make_job(training=changes)


def dataset(**changes):
    return make_job(dataset={"train": [{"source": "pvc://w/x"}], **changes})


def template(**spec):
    return make_job(workers={"template": {"spec": spec}})


def prepare(**spec):
    return make_job(prepare={"template": {"spec": spec}})


TEMPLATES = {"spec.workers": template, "spec.prepare": prepare}


def trainer(**fields):
    return {"containers": [{"name": "side", "image": "x"}, {"name": "trainer", **fields}]}


# Addresses that the API server refuses although a pod would accept them.
CONTROLS = (
    *("\n", "\r", "\t", "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\u2029"),
    *("\u061c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069"),
)
LONG_CLAIM = f"pvc://{'a' * 254}/x"  # storage is shorter than that
STRICTER = (
    *("pvc://W/x", "pvc://w/x?y", "pvc://w/x#y", "pvc://w\n/x", "\npvc://w/x"),
    *(f"pvc://w/a{control}b" for control in CONTROLS),
    *(f"pvc://w/a{control}" for control in CONTROLS),
)
STRICTER_SOURCES = (
    *(*STRICTER, LONG_CLAIM, "hf://org/a?b", "hf://org/model@main", "s3://Bucket/x", "s3://b/x"),
    *(
        f"{scheme}{control}b"
        for scheme in ("hf://org/model/a", "s3://bucket/a", "gs://bucket/a")
        for control in CONTROLS
    ),
)
# A function for each place of an entry with a source, which returns a manifest with that entry.
ENTRIES = {
    "spec.model": lambda **entry: make_job(model=entry),
    "spec.dataset.train[0]": lambda **entry: make_job(dataset={"train": [entry]}),
    "spec.dataset.validation[0]": lambda **entry: make_job(
        dataset={"train": [{"source": "pvc://w/x"}], "validation": [entry]}
    ),
}
DATA_ENTRIES = {place: make for place, make in ENTRIES.items() if place != "spec.model"}
SECRET = {"credentialsSecretRef": {"name": "s"}}
HUB, DATA = "hf://org/model", "hf://org/data"
URIS = {
    "spec.dataset.chatTemplate.path": lambda uri: dataset(chatTemplate={"path": uri}),
    "spec.checkpoints.storage": lambda uri: make_job(checkpoints={"storage": uri}),
    "spec.cache": lambda uri: make_job(cache=uri),
}
# Manifests that violate the rules of each field.
BAD = {name: [make(uri) for uri in BAD_URIS + STRICTER] for name, make in URIS.items()}
BAD["spec.cache"].append(make_job(cache=LONG_CLAIM))
BAD["spec.dataset.chatTemplate.path"].append(dataset(chatTemplate={"path": LONG_CLAIM}))
BAD |= {
    f"{place}.source": [make(source=uri) for uri in BAD_SOURCES + STRICTER_SOURCES]
    for place, make in ENTRIES.items()
}
BAD |= {
    f"{place}.revision": [
        *(make(source=uri, revision="main") for uri in ("pvc://w/x", "s3://bucket/x")),
        *(make(source=HUB, revision=revision) for revision in ("a b", "../x", "/x", "a?b", "a\n")),
    ]
    for place, make in ENTRIES.items()
}
BAD |= {
    f"{place}.split": [
        *(make(source=uri, split="test") for uri in ("pvc://w/x", "gs://bucket/x", f"{DATA}/x")),
        *(make(source=DATA, split=split) for split in ("train[:10%]", "a+b", "a/b", "a\n")),
    ]
    for place, make in DATA_ENTRIES.items()
}
BAD |= {
    f"{place}.credentialsSecretRef": [make(source="pvc://w/x", **SECRET)]
    for place, make in ENTRIES.items()
}
BAD |= {
    f"{place}.credentialsSecretRef.name": [
        make(source=HUB, credentialsSecretRef={"name": name})
        for name in ("a/b", "A", "-a", "a\n", "a\x00")
    ]
    for place, make in ENTRIES.items()
}
BAD |= {
    "spec.dataset.validation": [
        DATA_ENTRIES["spec.dataset.validation[0]"](source=uri) for uri in (DATA, f"{DATA}/")
    ],
    "spec.dataset.train": [
        make_job(
            dataset={"train": [{"source": "pvc://w/x", "weight": 1.0}, {"source": "pvc://w/y"}]}
        )
    ],
    "spec.dataset.validationFraction": [
        dataset(validation=[{"source": "pvc://w/x"}], validationFraction=0.1)
    ],
    "spec.dataset.chatTemplate": [
        dataset(chatTemplate={}),
        dataset(chatTemplate={"inline": "x", "path": "pvc://w/x"}),
    ],
    "spec.training.maxSteps": [training(epochs=1.0, maxSteps=5)],
    "spec.training.warmupSteps": [training(warmupRatio=0.1, warmupSteps=5)],
    "spec.training.globalBatchSize": [
        make_job(training={"globalBatchSize": 5}, workers={"replicas": 2}),
        make_job(training={"globalBatchSize": 6}, deepspeed={"microBatchSize": 4}),
    ],
    "spec.deepspeed.offload": [
        make_job(deepspeed={"offload": "Optimizer", "zeroStage": 1}),
        make_job(deepspeed={"offload": "OptimizerAndParameters"}),
        make_job(deepspeed={"offload": "OptimizerAndParameters", "zeroStage": 2}),
    ],
    "spec.evaluation": [make_job(evaluation={"intervalSteps": 5})],
    "spec.output.weights": [make_job(output={"weights": "Best"})],
    "spec.workers.deviceResource": [make_job(workers={"deviceResource": "gpus"})],
    "spec.tracking": [make_job(tracking=[{"type": "WandB"}, {"type": "WandB", "project": "p"}])],
    "spec.tracking[0].type": [
        make_job(tracking=[{"type": "TensorBoard", "project": "p"}]),
        make_job(tracking=[{"type": "TensorBoard", "secretRef": {"name": "keys"}}]),
    ],
    "spec.tracking[0].secretRef.name": [
        make_job(tracking=[{"type": "WandB", "secretRef": {"name": name}}])
        for name in ("-keys", "Keys", "a/b", "keys.", "keys\n")
    ],
    "spec.tracking[0].project": [
        make_job(tracking=[{"type": "WandB", "project": f"a{control}"}]) for control in CONTROLS
    ],
    "spec.workers.image": [
        make_job(workers={"image": image})
        for image in ("a b", " a", "a\n", *(f"a{control}b" for control in CONTROLS))
    ],
    "spec.scheduling.priorityClassName": [
        make_job(scheduling={"priorityClassName": name}) for name in ("High", "a b", "a\n", "-a")
    ],
    "metadata.name": [make_job("a" * 53), make_job("1a"), make_job("a.b")],
}
for place, make in TEMPLATES.items():
    BAD |= {
        f"{place}.template.spec.restartPolicy": [make(restartPolicy="Always")],
        f"{place}.template.spec.hostname": [make(hostname="x")],
        f"{place}.template.spec.subdomain": [make(subdomain="x")],
        f"{place}.template.spec.terminationGracePeriodSeconds": [
            make(terminationGracePeriodSeconds=5)
        ],
    }
# Manifests that violate the rules about containers, by the beginning of the message.
BAD_CONTAINERS = {
    "every container needs a name": [
        trainer(command=["x"]),
        trainer(args=["x"]),
        {"containers": [{"image": "x"}]},
    ],
    "the image of the container 'trainer'": [trainer(image="x")],
    "the container 'trainer' must not be restarted in place": [
        trainer(restartPolicy="Always"),
        trainer(restartPolicy="OnFailure"),
        trainer(restartPolicyRules=[{"action": "Restart"}]),
    ],
}
DATA_FILE, HELD_OUT = {"source": "pvc://w/data/train.jsonl"}, "pvc://w/held-out/"
APART = "must not be the folder of the model or of data, nor be in one"
AMONG_INPUTS = {
    f"{name} {APART}": [
        make("pvc://w/models/base"),
        make("pvc://w/models/base/run"),
        make("pvc://w/data/train.jsonl/"),
        make("pvc://w/held-out/a", {"train": [DATA_FILE], "validation": [{"source": HELD_OUT}]}),
    ]
    for name, make in {
        "checkpoints.storage": lambda uri, data=None: make_job(
            checkpoints={"storage": uri}, **({"dataset": data} if data else {})
        ),
        "cache": lambda uri, data=None: make_job(cache=uri, **({"dataset": data} if data else {})),
    }.items()
}
# The tests of the rules about changes follow below.
OF_CHANGES = (crd.FROZEN_RULE.message, crd.SUSPENDED_RULE.message)
AT_THE_ROOT = {key: SCHEMA[key] for key in ("x-kubernetes-validations",)}
PLACES = {
    f"{place.field}: {place.message}": place
    for place in (*rules(SPEC, ("spec",)), *rules(AT_THE_ROOT, ()))
    if place.message not in OF_CHANGES
}


@pytest.mark.parametrize(
    ("module", "path"),
    [("crd", FILE), ("reference", TREE / "docs" / "reference" / "api.md")],
    ids=["crd", "reference"],
)
def test_the_checked_in_file_equals_the_generated_one(module, path):
    command = [sys.executable, "-m", f"hack.{module}"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True)
    assert done.stdout == path.read_text(), "run `make crds`"


def fields(schema, path):
    """Return the path and the schema of every field below a schema; open objects are one field."""
    for name, inner in schema.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        yield here, inner
        element = inner.get("items", inner)
        if not element.get("x-kubernetes-preserve-unknown-fields"):
            yield from fields(element, here)


PARTS = ("spec", "status")
FIELDS = dict(fields({"properties": {part: SCHEMA["properties"][part] for part in PARTS}}, ""))
SPEC_FIELDS = {path: schema for path, schema in FIELDS.items() if path.startswith("spec.")}


def test_every_description_is_whole_sentences_about_the_field():
    for path, schema in FIELDS.items():
        name, text = path.rpartition(".")[2], schema.get("description", "")
        assert re.match(rf"{name} [a-z]+ ", text), f"{path}: {text}"
        assert text.endswith("."), f"{path}: {text}"
        assert not re.search(r"\bAbsent\b", text), f"{path}: {text}"


def test_every_bound_of_the_spec_is_in_its_description():
    """`kubectl explain` shows no bounds. Those of the status only limit what a pod can report."""
    bounds = ("minimum", "maximum", "maxLength", "maxItems")
    for path, schema in SPEC_FIELDS.items():
        named = numbers(schema["description"])
        for bound in bounds:
            assert schema.get(bound) is None or schema[bound] in named, f"{path}: {bound}"


def test_every_default_of_the_spec_is_in_its_description():
    for path, schema in SPEC_FIELDS.items():
        if schema.get("type") == "object" or "default" not in schema:
            continue
        stated = schema["description"].rpartition("Default: ")[2].removesuffix(".")
        default = schema["default"]
        if isinstance(default, bool):
            assert stated == str(default).lower(), path
        elif isinstance(default, str):
            assert stated == default, path
        else:
            assert float(stated) == default, path


def test_every_optional_field_of_the_spec_names_its_default():
    parents = {"spec": SPEC} | SPEC_FIELDS
    for path, schema in SPEC_FIELDS.items():
        above, _, name = path.rpartition(".")
        parent = parents[above].get("items", parents[above])
        leaf = schema["type"] != "object" and path != "spec.dataset.chatTemplate.inline"
        if leaf and name not in parent.get("required", []) and above != "spec.dataset.chatTemplate":
            assert "Default: " in schema["description"], path


def numbers(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?", text)}


def test_every_rule_has_a_bad_manifest_at_every_place():
    containers = {f"{place}.template.spec.containers" for place in TEMPLATES}
    assert {place.field for place in PLACES.values()} == set(BAD) | containers
    messages = [p.message for p in PLACES.values() if p.field in containers]
    assert all(any(m.startswith(key) for m in messages) for key in BAD_CONTAINERS)


def test_rules_are_found_at_each_place_and_unknown_keywords_are_an_error():
    text = {"type": "string", "x-kubernetes-validations": [{"rule": "false", "message": "no"}]}
    schema = {"properties": {"a": text, "b": {"type": "array", "items": text}}}
    assert list(rules(schema, ("spec",))) == [Place("spec.a", "no"), Place("spec.b[0]", "no")]
    with pytest.raises(ValueError, match=r"spec.a: what do \['pattern'\] refuse"):
        list(walk({"properties": {"a": {"type": "string", "pattern": "x"}}}))


@pytest.mark.cluster
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_constraint_refuses_and_names_the_field(server: Server, name: str):
    constraint = CONSTRAINTS[name]
    if constraint.path == ("spec",) and constraint.keyword == "type":
        pytest.skip("a spec that is not an object cannot contain a job")
    code, answer = server.dry_run(broken(full_job(), constraint))
    assert code == 422, answer
    assert f"{field(constraint.path)}: " in answer["message"]
    assert re.search(ALLOWED[constraint.keyword], answer["message"]), answer["message"]


@pytest.mark.cluster
@pytest.mark.parametrize("name", PLACES)
def test_every_rule_refuses_with_its_message_and_names_the_field(server: Server, name: str):
    place = PLACES[name]
    if place.message in AMONG_INPUTS:
        bad = AMONG_INPUTS[place.message]
    elif place.field.endswith(".template.spec.containers"):
        specs = next(
            specs for key, specs in BAD_CONTAINERS.items() if place.message.startswith(key)
        )
        make = TEMPLATES[place.field.removesuffix(".template.spec.containers")]
        bad = [make(**spec) for spec in specs]
    else:
        bad = BAD[place.field]
    for job in bad:
        code, answer = server.dry_run(job)
        assert code == 422, (job, answer)
        assert place.message in answer["message"]
        assert f"{place.field}: Invalid value" in answer["message"]


@pytest.mark.cluster
@pytest.mark.parametrize("uri", SOURCES)
def test_every_form_of_a_source_is_accepted(server: Server, uri: str):
    for place, make in ENTRIES.items():
        named = "validation" in place and uri == HUB
        code, answer = server.dry_run(make(source=uri, **({"split": "test"} if named else {})))
        assert code == 201, answer


@pytest.mark.cluster
@pytest.mark.parametrize("job", [make_job(), full_job()], ids=["small", "full"])
def test_valid_manifests_are_stored_with_defaults_only(server: Server, job):
    code, answer = server.dry_run(job)
    assert code == 201, answer
    sent, stored = FineTuneJobSpec.model_validate(job["spec"]), answer["spec"]
    assert FineTuneJobSpec.model_validate(stored) == sent
    assert contains(stored, job["spec"])
    assert stored == sent.to_dict()


def contains(whole, part) -> bool:
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        pairs = zip(whole, part, strict=True)
        return all(contains(one, other) for one, other in pairs)
    return whole == part


ACCEPTED_TEMPLATES = {
    "a native sidecar": {
        "initContainers": [{"name": "log", "image": "x", "restartPolicy": "Always"}],
    },
    "the number of devices once more": trainer(
        resources={"limits": {"nvidia.com/gpu": 1}, "requests": {"nvidia.com/gpu": "1"}}
    ),
    "limits of everything else": trainer(
        resources={"limits": {"cpu": 1.5, "memory": "2Gi", "rdma/hca": 1}}
    ),
    "a null, which removes a default": {"securityContext": {"fsGroup": None}},
}


@pytest.mark.cluster
@pytest.mark.parametrize("name", ACCEPTED_TEMPLATES)
def test_a_template_is_stored_as_it_is(server: Server, name: str):
    spec = ACCEPTED_TEMPLATES[name]
    code, answer = server.dry_run(template(**spec))
    assert code == 201, answer
    assert answer["spec"]["workers"]["template"] == {"spec": spec}


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "  workers: {template: {nodeSelector: {a: b}}}\n",
            'unknown field "spec.workers.template.nodeSelector"',
        ),
        (
            "  prepare: {template: {metadata: {finalizers: [a/b]}}}\n",
            'unknown field "spec.prepare.template.metadata.finalizers"',
        ),
        ("  traning: {}\n", 'unknown field "spec.traning"'),
        ("  training: {learningRate: fast}\n", "spec.training.learningRate"),
        ("  training: {schedule: Cosinus}\n", '"Cosine", "Linear", "Constant"'),
        ("  training: {epochs: 1.5, maxSteps: 3}\n", "set at most one of epochs and maxSteps"),
        ("  deepspeed: {zeroStage: 4}\n", "spec.deepspeed.zeroStage"),
    ],
)
def test_kubectl_shows_what_is_wrong(control_plane: Cluster, server, change: str, message: str):
    text = (
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: bad}\nspec:\n"
        "  model: {source: pvc://w/m}\n  dataset: {train: [{source: pvc://w/t.jsonl}]}\n"
        "  checkpoints: {storage: pvc://w/r}\n" + change
    )
    with pytest.raises(ClusterError, match=re.escape(message)):
        control_plane.kubectl("apply", "-f", "-", stdin=text)


@pytest.mark.cluster
def test_kubectl_explains_fields_and_lists_jobs(control_plane: Cluster, server):
    text = control_plane.kubectl("explain", "finetunejob.spec.training")
    assert "learningRate" in text
    assert "2.0e-5 below 2e9" in " ".join(text.split())
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(make_job("listed")))
    header = control_plane.kubectl("get", "ftj").splitlines()[0].split()
    assert header == [
        "NAME",
        "PHASE",
        "REASON",
        "STAGE",
        "PROGRESS",
        "STEP",
        "LOSS",
        "ETA",
        "GPU-HOURS",
        "RESTARTS",
        "AGE",
    ]


FROZEN = {
    "model": {"model": {"source": "pvc://w/other"}},
    "revision": {"model": {"source": "hf://org/model", "revision": "v2"}},
    "credentials": {
        "model": {"source": "hf://org/model", "credentialsSecretRef": {"name": "other"}}
    },
    "split": {"dataset": {"train": [{"source": "hf://org/data", "split": "other"}]}},
    "dataset": {"dataset": {"train": [{"source": "pvc://w/other.jsonl"}]}},
    "loss": {"dataset": {"lossOn": "All"}},
    "training": {"training": {"seed": 1}},
    "cache": {"cache": "pvc://w/elsewhere"},
    "storage": {"checkpoints": {"storage": "pvc://w/elsewhere"}},
}
SUSPENDED_ONLY = {
    "workers": {"workers": {"replicas": 2}},
    "image": {"workers": {"image": "other:1"}},
    "template": {"workers": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}},
    "deepspeed": {"deepspeed": {"zeroStage": 1}},
    "scheduling": {"scheduling": {"priorityClassName": "high"}},
    "spread": {"scheduling": {"workerAntiAffinity": "Required"}},
}
FREE = {
    "checkpoints": {"keepLast": 5},
    "runPolicy": {"maxRestarts": 9, "activeDeadlineSeconds": 60},
    "output": {"weights": "Last", "dtype": "BF16"},
    "tracking": [{"type": "MLflow"}],
    "suspend": True,
}


def refused(server: Server, path: str, changes, message: str) -> None:
    for name, change in changes.items():
        code, answer = server.patch(f"{path}?dryRun=All", {"spec": change})
        assert code == 422, name
        assert message in answer["message"], name


@pytest.mark.cluster
def test_inputs_of_training_cannot_change_after_the_first_commit(server: Server):
    code, _ = server.request("POST", JOBS, make_job("frozen"))
    assert code == 201
    path = f"{JOBS}/frozen"
    for change in (FROZEN | SUSPENDED_ONLY).values():
        assert server.patch(f"{path}?dryRun=All", {"spec": change})[0] == 200
    assert server.patch(f"{path}/status", {"status": {"attempt": 1}})[0] == 200
    refused(server, path, FROZEN, "are frozen once the first attempt")
    refused(server, path, SUSPENDED_ONLY, "only while condition Suspended is True")
    assert server.patch(path, {"spec": FREE, "metadata": {"labels": {"a": "b"}}})[0] == 200
    assert server.patch(f"{path}/status", {"status": {"attempt": 2}})[0] == 200


def suspended(state: str):
    condition = {
        "type": "Suspended",
        "status": state,
        "reason": "Suspended",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    return {"status": {"attempt": 1, "conditions": [condition]}}


@pytest.mark.cluster
def test_workers_change_only_while_no_pod_exists(server: Server):
    job = make_job("held", deepspeed={"zeroStage": 2}, suspend=True)
    assert server.request("POST", JOBS, job)[0] == 201
    path = f"{JOBS}/held"
    # Suspension is requested, but pods still save.
    assert server.patch(f"{path}/status", suspended("False"))[0] == 200
    refused(server, path, SUSPENDED_ONLY, "only while condition Suspended is True")
    refused(server, path, {"removal": {"deepspeed": None}}, "only while condition Suspended")
    assert server.patch(f"{path}/status", suspended("True"))[0] == 200
    for change in SUSPENDED_ONLY.values():
        assert server.patch(f"{path}?dryRun=All", {"spec": change})[0] == 200
    refused(server, path, FROZEN, "are frozen once the first attempt")
    # Queueing systems change the gang in the update that ends the suspension.
    both = {"workers": {"replicas": 4}, "deepspeed": None, "suspend": False}
    assert server.patch(path, {"spec": both})[0] == 200
    refused(server, path, SUSPENDED_ONLY, "only while condition Suspended is True")


def tightened(schema, *, top=True):
    """Return the schema with rules that never hold and bounds that no value meets."""
    tight = copy.deepcopy(schema)
    if tight.get("x-kubernetes-preserve-unknown-fields"):
        return tight
    # The API server does not compare an open object with its old version, nor an object that
    # contains one. Their rules may never be tightened, except for new objects.
    compared = "x-kubernetes-preserve-unknown-fields" not in str(tight)
    for rule in tight.get("x-kubernetes-validations", []) if compared or top else []:
        # The rules of the complete spec read several of its parts. An edit of any part evaluates
        # them again, so they cannot be tightened without blocking stored objects.
        if not top:
            rule["rule"] = "self == self && false" if "oldSelf" not in rule["rule"] else "true"
    if tight.get("type") in ("integer", "number") and "maximum" in tight:
        tight["maximum"] = tight.get("minimum", 0)
    tight.pop("default", None)
    for name, inner in tight.get("properties", {}).items():
        tight["properties"][name] = tightened(inner, top=False)
    if "items" in tight:
        tight["items"] = tightened(tight["items"], top=False)
    return tight


@pytest.mark.cluster
def test_rules_tightened_later_do_not_lock_stored_objects(control_plane: Cluster, server: Server):
    server.request("POST", JOBS, full_job("stored"))
    definition = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"
    _, live = server.request("GET", definition)
    tight = copy.deepcopy(live)
    version = tight["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    version["spec"] = tightened(version["spec"])
    code, answer = server.request("PUT", definition, tight)
    assert code == 200, answer
    try:
        wait_until_refused(server)
        path = f"{JOBS}/stored"
        for body in (
            {"metadata": {"labels": {"team": "x"}}},
            {"spec": {"checkpoints": {"keepLast": 1}}},
            {"spec": {"suspend": False}},
        ):
            code, answer = server.patch(path, body)
            assert code == 200, answer["message"]
        code, answer = server.patch(f"{path}/status", {"status": {"phase": "Running"}})
        assert code == 200, answer
    finally:
        _, now = server.request("GET", definition)
        live["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"]
        assert server.request("PUT", definition, live)[0] == 200


def wait_until_refused(server: Server) -> None:
    """Wait until the API server uses the changed definition."""
    for _ in range(200):
        if server.dry_run(make_job("probe"))[0] == 422:
            return
    raise AssertionError("the tightened definition is not used")
