"""What the planner chooses for a device that it knows, and what it says about it."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.devices import DeviceType
from finetune_api.memory import ModelFacts
from finetune_api.progress import Plan
from finetune_operator.plan.decision import Decision
from finetune_operator.plan.resolve import DoesNotFitError, resolve
from finetune_operator.settings import Settings, SettingsError
from tests.api.test_memory import FACTS
from tests.operator import worlds

H100 = DeviceType(
    resource="nvidia.com/gpu",
    memory_bytes=85_000_000_000,
    peak_flops=989e12,
    link_bytes_per_second=360e9,
    node_labels={"nvidia.com/gpu.product": ["NVIDIA-H100-80GB-HBM3"]},
)
L40S = DeviceType(resource="nvidia.com/gpu", memory_bytes=48_000_000_000, peak_flops=362e12)
CATALOGUE = {"H100": H100, "L40S": L40S}
SETTINGS = replace(worlds.SETTINGS, device_types=CATALOGUE)
LLAMA_70B = ModelFacts(
    layers=80,
    hidden=8192,
    vocabulary=128_256,
    layer_parameters=855_654_400,
    largest_parameter=1_050_673_152,
    active_parameters=68_451_041_280,
    attention_width=655_360,
    row_tokens=4096,
    layer_bytes=1_631_014_708,
)
SIZES = {"8B": (8_030_261_248, FACTS), "70B": (70_553_706_496, LLAMA_70B)}


def workers(devices: int, device: str | None = "H100", **changes: Any) -> dict[str, Any]:
    found = {"replicas": max(1, devices // 8), "devicesPerWorker": min(8, devices), **changes}
    return found | ({"deviceType": device} if device else {})


def planned(size: str, devices: int, device: str | None = "H100", **spec: Any) -> Plan:
    parameters, facts = SIZES[size]
    job = worlds.make_job(**{"workers": workers(devices, device)} | spec)
    prepared = worlds.prepared(parameter_count=parameters, model_facts=facts)
    return resolve(job.spec, prepared, CATALOGUE)[0]


def does_not_fit(size: str, devices: int, device: str = "H100", **spec: Any) -> str:
    with pytest.raises(DoesNotFitError) as caught:
        planned(size, devices, device, **spec)
    return str(caught.value)


@pytest.mark.parametrize(
    ("size", "devices", "chosen"),
    [
        ("8B", 1, (2, "Never", "Optimizer")),
        ("8B", 8, (2, "Never", "None")),
        ("70B", 16, (3, "Always", "Optimizer")),
        ("70B", 32, (3, "Always", "None")),
    ],
)
def test_the_choice_follows_model_and_devices(size: str, devices: int, chosen: tuple) -> None:
    plan = planned(size, devices)
    assert (plan.zero_stage, plan.activation_checkpointing, plan.offload) == chosen
    assert plan.device_bytes.total <= H100.memory_bytes
    assert plan.device_type == "H100"
    assert plan.reasons[0].startswith("H100: ")
    names = ("zeroStage", "activationCheckpointing", "microBatchSize")
    assert all(any(reason.startswith(name) for reason in plan.reasons) for name in names)


def test_a_larger_micro_batch_never_changes_the_global_batch() -> None:
    training = {"globalBatchSize": 48, "sequenceLength": 4096}
    plan = planned("8B", 8, training=training)
    assert plan.micro_batch_size * plan.gradient_accumulation_steps * 8 == 48


def test_what_the_spec_sets_is_taken() -> None:
    wanted = {"zeroStage": 3, "microBatchSize": 2, "activationCheckpointing": "Always"}
    plan = planned("8B", 16, deepspeed=wanted | {"offload": "None"})
    assert (plan.zero_stage, plan.micro_batch_size) == (3, 2)
    assert (plan.activation_checkpointing, plan.offload) == ("Always", "None")
    assert len(plan.reasons) == 1


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ({"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}, "H100"),
        ({"nodeSelector": {"nvidia.com/gpu.product": "another"}}, None),
        ({}, None),
    ],
)
def test_the_template_can_say_which_device_it_is(template: dict, found: str | None) -> None:
    plan = planned("8B", 8, workers=workers(8, None, template={"spec": template}))
    assert plan.device_type == found


def test_node_affinity_can_say_which_device_it_is() -> None:
    rule = {
        "key": "nvidia.com/gpu.product",
        "operator": "In",
        "values": ["NVIDIA-H100-80GB-HBM3"],
    }
    required = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    template = {"spec": {"affinity": affinity}}
    assert planned("8B", 8, workers=workers(8, None, template=template)).device_type == "H100"


def test_careful_defaults_are_used_for_an_unknown_device() -> None:
    plan = planned("8B", 8, None)
    assert (plan.zero_stage, plan.micro_batch_size, plan.offload) == (2, 1, "None")
    assert plan.activation_checkpointing == "Always"
    assert "set workers.deviceType" in plan.reasons[0]
    assert plan.device_bytes is not None


def test_the_only_type_with_the_resource_is_taken() -> None:
    job = worlds.make_job(workers=workers(8, None))
    prepared = worlds.prepared(parameter_count=SIZES["8B"][0], model_facts=FACTS)
    amd = H100.replace(resource="amd.com/gpu")
    plan, _ = resolve(job.spec, prepared, {"H100": H100, "MI300X": amd})
    assert plan.device_type == "H100"


def test_a_model_that_does_not_fit_is_refused_with_the_changes_that_would_help() -> None:
    none = {"offload": "None"}
    assert does_not_fit("70B", 16, deepspeed=none) == (
        "a model of 70.6e9 parameters needs at least 104.3 GB on each of 16 devices H100 of "
        "85.0 GB; it would fit with workers.replicas 3 (24 devices), or with deepspeed.offload "
        "Optimizer (1146 GB of host memory per worker)"
    )


def test_no_node_is_expected_to_have_more_than_2_tb_for_an_offload() -> None:
    text = does_not_fit("70B", 8)
    assert "needs at least 183.6 GB on each of 8 devices" in text
    assert "workers.replicas 2 (16 devices)" in text
    assert planned("70B", 8, deepspeed={"offload": "Optimizer"}).host_bytes_per_worker > 2e12


def test_devices_that_are_named_divide_the_global_batch() -> None:
    text = does_not_fit("70B", 16, deepspeed={"offload": "None"}, training={"globalBatchSize": 128})
    assert "workers.replicas 4 (32 devices)" in text


def test_every_remedy_is_sufficient() -> None:
    none = {"deepspeed": {"offload": "None"}}
    planned("70B", 24, **none)
    planned("70B", 16)
    text = does_not_fit("8B", 2, **none)
    assert "training.optimizer.momentPrecision BF16" in text
    planned("8B", 2, training={"optimizer": {"momentPrecision": "BF16"}}, **none)
    long = {"training": {"sequenceLength": 4096}, "deepspeed": {"offload": "None", "zeroStage": 3}}
    assert "sequenceLength" not in does_not_fit("70B", 8, **long)


def prepared_pod(devices: dict[str, Any]) -> Decision:
    job = worlds.make_job(workers=devices, deepspeed={"offload": "None"})
    created = worlds.look(job, now=0, settings=SETTINGS).create
    if not created:
        return worlds.look(job, now=0, settings=SETTINGS)
    parameters, facts = SIZES["70B"]
    done = worlds.prepared(parameter_count=parameters, model_facts=facts)
    pod = worlds.Pod.of(created[0] | {"status": {}} | worlds._identity(created[0]))
    ended = worlds.ended(pod, 0, 10, worlds.result(prepared=done))
    return worlds.look(job, ended, settings=SETTINGS)


def test_a_job_that_does_not_fit_fails_before_it_has_a_worker() -> None:
    decision = prepared_pod(workers(8))
    assert (decision.status.phase, decision.status.reason) == ("Failed", "DoesNotFit")
    assert "it would fit with workers.replicas" in decision.status.message
    assert decision.create == []


def test_a_job_with_an_unknown_device_type_waits_for_a_change() -> None:
    decision = prepared_pod(workers(8, "H1000"))
    assert decision.status.reason == "UnknownDeviceType"
    assert decision.status.message == (
        "workers.deviceType H1000 is not in the operator's catalogue; known are: H100, L40S"
    )
    assert decision.create == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "the text: Invalid JSON"),
        ('{"A": {"resource": "x/y", "peakFlops": 1e12}}', "A.memoryBytes: Field required"),
        ('{"A": {"resource": "x/y", "peakFlops": 0, "memoryBytes": 1}}', "A.peakFlops: Input"),
    ],
)
def test_an_invalid_catalogue_ends_the_operator(monkeypatch, text: str, problem: str) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "trainer:1")
    monkeypatch.setenv("FINETUNE_DEVICE_TYPES", text)
    with pytest.raises(SettingsError, match=f"FINETUNE_DEVICE_TYPES: {problem}"):
        Settings.from_environment()


def test_a_running_job_keeps_its_choice_and_recomputes_its_memory() -> None:
    from finetune_api.status import Resolved
    from finetune_operator.plan.resolve import rescaled

    parameters, facts = SIZES["70B"]
    plan = planned("70B", 64)
    resolved = Resolved(
        image="i",
        model_revision="m",
        prepared_digest="p",
        run_digest="r",
        parameter_count=parameters,
        model_facts=facts,
    )
    same = worlds.make_job(workers=workers(64))
    assert rescaled(plan, same.spec, resolved) == plan
    fewer = worlds.make_job(workers=workers(32))
    changed = rescaled(plan, fewer.spec, resolved)
    assert changed.zero_stage == plan.zero_stage
    assert changed.device_bytes.masters == 2 * plan.device_bytes.masters
    assert changed.reasons is None
