"""Write docs/reference/plans.md: what the planner chooses for well-known models and devices.

The facts of the models are what the prepare pod measures; tests/trainer/test_memory_facts.py
compares them with a measurement of the same architectures.
"""

from pathlib import Path
from typing import Any

import yaml

from finetune_api.devices import DeviceType
from finetune_api.memory import ModelFacts, Offload, host_bytes
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plan import choice
from finetune_operator.plan.choice import Choice, Model

_VALUES = Path(__file__).parent.parent / "charts" / "finetune-operator" / "values.yaml"
TOKENS = 4096
_BATCH = 64
_DEVICES = ("H100-SXM-80GB", "H200-141GB", "A100-SXM-80GB", "MI300X-192GB", "L40S-48GB")
_COUNTS = (1, 8, 16, 64)
_WITHOUT_OFFLOAD: Offload = "None"


def _facts(*numbers: int) -> ModelFacts:
    names = [name for name in ModelFacts.model_fields if name != "row_tokens"]
    return ModelFacts(row_tokens=TOKENS, **dict(zip(names, numbers, strict=True)))


# Parameters, and: layers, hidden, vocabulary, layer parameters, largest parameter, active
# parameters, attention width, bytes of a layer.
MODELS: dict[str, tuple[int, ModelFacts]] = {
    "Llama 3.2 1B": (
        1_235_814_400,
        _facts(16, 2048, 128_256, 60_821_504, 262_668_288, 973_078_528, 32_768, 448_367_616),
    ),
    "Llama 3.1 8B": (
        8_030_261_248,
        _facts(32, 4096, 128_256, 218_112_000, 525_336_576, 6_979_321_856, 131_072, 825_853_440),
    ),
    "Qwen3 32B": (
        32_762_123_264,
        _facts(
            *(64, 5120, 151_936, 487_598_336, 777_912_320),
            *(31_205_621_760, 524_288, 1_556_153_088),
        ),
    ),
    "Llama 3.1 70B": (
        70_553_706_496,
        _facts(
            *(80, 8192, 128_256, 855_654_400, 1_050_673_152),
            *(68_451_041_280, 655_360, 1_631_014_708),
        ),
    ),
    "Mixtral 8x7B": (
        46_702_792_704,
        _facts(
            *(32, 4096, 32_000, 1_451_270_144, 939_524_096),
            *(12_617_515_008, 131_072, 1_430_308_384),
        ),
    ),
    "gpt-oss-120b": (
        116_829_156_672,
        _facts(
            *(36, 2880, 201_088, 3_213_080_192, 2_123_366_400),
            *(4_553_210_880, 147_456, 1_165_213_753),
        ),
    ),
}


def catalogue() -> dict[str, DeviceType]:
    """Return the device types of the chart."""
    values = yaml.safe_load(_VALUES.read_text())["deviceTypes"]
    return {name: DeviceType.model_validate(entry) for name, entry in values.items()}


def page(note: str) -> str:
    """Return the page."""
    tables = "\n".join(_table(name, *model) for name, model in MODELS.items())
    return f"""# Plans of well-known models

{note}

What the planner chooses for full fine-tuning with rows of {TOKENS:,} tokens, a batch of {_BATCH}
rows and the default optimizer, on nodes of at most 8 devices.

* **Nothing on this page was measured.** The memory is computed, and the tokens per second of all
  devices are a [rough estimate](../design/memory-plan.md#the-choice). Real speeds can be
  much lower.
* Each cell has the ZeRO stage, the rows of a micro-batch, the memory of a device and the speed. R
  means that activations are recomputed.
* Italics mean that the model fits only with an offload. The memory of the host is that of one node.
* A dash means that the model does not fit, also not with an offload to 2 TB of host memory of
  each node.

{tables}"""


def _table(name: str, parameters: int, facts: ModelFacts) -> str:
    lines = [
        f"## {name}",
        "",
        f"{parameters / 1e9:.1f}e9 parameters.",
        "",
        "| devices | " + " | ".join(_DEVICES) + " |",
        "|---" * (len(_DEVICES) + 1) + "|",
    ]
    known = catalogue()
    for count in _COUNTS:
        cells = [_cell(parameters, facts, device, known[device], count) for device in _DEVICES]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(parameters: int, facts: ModelFacts, name: str, device: DeviceType, count: int) -> str:
    spec = _spec(count, device.resource)
    model = Model(parameters, facts, name, device, _BATCH)
    found = choice.choose(spec, model)
    return _text(model, found) if found.fits else "-"


def _spec(count: int, resource: str) -> FineTuneJobSpec:
    values: dict[str, Any] = {
        "model": {"source": "pvc://w/model"},
        "dataset": {"train": [{"source": "pvc://w/train.jsonl"}]},
        "checkpoints": {"storage": "pvc://w/run"},
        "workers": {
            "replicas": max(1, count // 8),
            "devicesPerWorker": min(8, count),
            "deviceResource": resource,
        },
    }
    return FineTuneJobSpec.model_validate(values)


def _text(model: Model, found: Choice) -> str:
    assert found.needed is not None
    assert model.facts is not None
    setting = found.setting
    text = f"{setting.zero_stage}, {setting.micro_batch_size}"
    text += " R" if setting.recompute == "Always" else ""
    text += f", {found.needed.total / 1e9:.0f} GB, {_rounded(choice.speed(model, setting))}/s"
    if setting.offload == _WITHOUT_OFFLOAD:
        return text
    host = host_bytes(model.parameters, model.facts.largest_parameter, setting).peak
    return f"*{text}, {_OFFLOADS[setting.offload]}, host {host / 1e9:,.0f} GB*"


_OFFLOADS = {"Optimizer": "optimizer offloaded", "OptimizerAndParameters": "all offloaded"}


def _rounded(speed: float) -> str:
    """Return a number with two digits, because no more of it mean anything."""
    return f"{float(f'{speed:.2g}'):,.0f}"
