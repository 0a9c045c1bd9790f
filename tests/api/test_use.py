"""Tests the lists that are derived from the declarations on the fields of the spec."""

import hashlib
from typing import Annotated

import pytest

from finetune_api.base import Object
from finetune_api.run import RunConfig
from finetune_api.spec import (
    Checkpoints,
    Dataset,
    DataSource,
    FineTuneJobSpec,
    Training,
    TrainSource,
)
from finetune_api.spec.common import Spec
from finetune_api.spec.use import (
    INPUT,
    OPERATOR_SETTING,
    TRAINER_SETTING,
    WORKER_SETTING,
    Change,
    Rows,
    declared,
    received,
    row_uses,
    row_values,
)
from finetune_operator.plan import inputs, pods, run_config
from finetune_operator.plan.observe import Job
from hack import crd
from tests.api.jobs import full_job, make_job

# The digest of the inputs must stay valid after an upgrade: a changed value would prepare the data
# of every job again. A changed digest of the template replaces only pods that do not run yet.
DIGESTS = {
    "full": ("782b6147ffe738d37d2531a27450aff9", "a0fdf347c582956c46d5861903d4af2c"),
    "small": ("7d5f4b8ff1e120f2f4bf68b4b4cf8513", "f4d2d0eb8881f2ea37aadda262d0dc85"),
}
PREPARE_CONFIGS = {
    "full": "f7b61354cfbc0e55ec2ecafdbe50c529ff0628cd27f5716dc517c3b8a16ec44d",
    "small": "abc284e88f0c38233391e908ba3b9f7d22d88ea9afb211050e78f219ccf89fd0",
}
ITEMS = {"full": full_job(), "small": make_job()}


def job(item: Object) -> Job:
    identity = {"namespace": "default", "uid": "u", "resourceVersion": "1", "generation": 1}
    return Job.of(item | {"metadata": item["metadata"] | identity})


@pytest.mark.parametrize("name", ITEMS)
def test_digests_and_configuration_stay_as_they_were(name: str):
    found = job(ITEMS[name])
    assert (inputs.inputs_digest(found, "image:1"), pods.template_digest(found)) == DIGESTS[name]
    config = run_config.for_prepare(found).to_json()
    assert hashlib.sha256(config.encode()).hexdigest() == PREPARE_CONFIGS[name]


def test_the_rules_about_changes_stay_as_they_were():
    committed = "!(has(oldSelf.status) && has(oldSelf.status.attempt)) || "
    assert crd.FROZEN_RULE.rule == (
        f"{committed}self.spec.model == oldSelf.spec.model && "
        "self.spec.dataset == oldSelf.spec.dataset && "
        "self.spec.training == oldSelf.spec.training && "
        "self.spec.checkpoints.storage == oldSelf.spec.checkpoints.storage && "
        "has(self.spec.cache) == has(oldSelf.spec.cache) && "
        "(!has(self.spec.cache) || self.spec.cache == oldSelf.spec.cache)"
    )
    assert crd.SUSPENDED_RULE.rule == (
        f"{committed}self.spec.workers == oldSelf.spec.workers && "
        "has(self.spec.deepspeed) == has(oldSelf.spec.deepspeed) && "
        "(!has(self.spec.deepspeed) || self.spec.deepspeed == oldSelf.spec.deepspeed) && "
        "has(self.spec.scheduling) == has(oldSelf.spec.scheduling) && "
        "(!has(self.spec.scheduling) || self.spec.scheduling == oldSelf.spec.scheduling) || "
        "oldSelf.spec.suspend && has(oldSelf.status.conditions) && "
        "oldSelf.status.conditions.exists(c, c.type == 'Suspended' && c.status == 'True')"
    )


def test_every_field_of_the_spec_declares_its_use():
    paths = [field.wire_path for field in declared(FineTuneJobSpec)]
    parts = {path.partition(".")[0] for path in paths}
    assert parts == {field.alias for field in FineTuneJobSpec.model_fields.values()}
    for model in (Dataset, DataSource, TrainSource, Training):
        assert row_uses(model)


def test_a_field_without_a_declaration_is_an_error():
    class Part(Spec):
        known: Annotated[int, INPUT] = 1
        new: int = 2

    class Whole(Spec):
        part: Part

    with pytest.raises(TypeError, match=r"part\.new: declare its Use"):
        declared(Whole)
    with pytest.raises(TypeError, match="known: declare its Rows"):
        row_uses(Part)


def test_a_change_of_each_declared_input_discards_the_result_of_the_prepare_pod():
    before = job(full_job())
    for field in declared(FineTuneJobSpec):
        part, *rest = field.path
        changed = without(before.spec, part, *rest)
        after = inputs.inputs_digest(Job(**(vars(before) | {"spec": changed})), "image:1")
        differs = after != inputs.inputs_digest(before, "image:1")
        assert differs == field.use.prepare, field.wire_path


def without(spec: FineTuneJobSpec, part: str, inner: str = "") -> FineTuneJobSpec:
    """Return the spec with one field replaced by a value that no other job has."""
    found = getattr(spec, part)
    other = found.model_copy(update={inner: "other"}) if inner else None
    return spec.model_copy(update={part: other or type(spec).model_construct()})


def test_a_part_is_passed_to_a_pod_as_a_whole_only_if_the_pod_receives_all_of_it():
    class Some(Spec):
        one: Annotated[int, TRAINER_SETTING] = 1
        two: Annotated[int, OPERATOR_SETTING] = 2

    class All(Spec):
        three: Annotated[int, TRAINER_SETTING] = 3
        four: Annotated[int, INPUT] = 4

    class Whole(Spec):
        some: Some = Some()
        every: All = All()
        five: Annotated[int, WORKER_SETTING] = 5

    assert received(Whole(), "prepare") == {"one": 1, "every": All()}
    assert received(Whole(), "worker") == {"one": 1, "every": All(), "five": 5}


@pytest.mark.parametrize("role", ["prepare", "worker"])
def test_a_run_config_has_a_field_for_everything_that_a_pod_receives(role):
    assert set(received(job(full_job()).spec, role)) <= set(RunConfig.model_fields)


def test_only_values_that_shape_rows_belong_to_the_digest_of_the_prepared_data():
    spec = job(full_job()).spec
    assert row_values(spec.dataset) == {"validationFraction": None, "overlong": "Truncate"}
    assert row_values(spec.training) == {"sequenceLength": 2048, "packing": False}
    assert row_uses(Training)["learning_rate"] is Rows.UNRELATED


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, 900),
        ({"intervalSeconds": 60}, 60),
        ({"intervalSteps": 10}, None),
        ({"intervalSeconds": 60, "intervalSteps": 10}, 60),
    ],
)
def test_a_checkpoint_is_due_after_900_seconds_unless_an_interval_is_set(given, seconds):
    found = Checkpoints.model_validate({"storage": "pvc://w/runs/a", **given})
    assert found.seconds_between == seconds


def test_a_setting_of_the_prepare_pod_is_not_necessarily_frozen():
    uses = {field.wire_path: field.use for field in declared(FineTuneJobSpec)}
    assert uses["checkpoints.onExisting"].prepare
    assert uses["checkpoints.onExisting"].change is Change.ALWAYS
