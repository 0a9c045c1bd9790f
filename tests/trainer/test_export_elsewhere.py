"""The exported folder in transformers 4, which most servers use."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import exports
from tests.trainer.exports import Configure
from tests.trainer.other_transformers import load, overlay


@pytest.fixture(scope="session")
def transformers_4() -> Path:
    return overlay()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["BF16", "FP32"])
def test_transformers_4_computes_what_transformers_5_computes(
    configured: Configure, transformers_4: Path, tmp_path: Path, precision: str
) -> None:
    training = {"sequenceLength": 128, "precision": precision}
    config = exports.make_run(configured, training=training)
    base = exports.as_published_before_transformers_5(RunPaths.of(config).model)
    exports.edit(base / "generation_config.json", eos_token_id=7)
    exports.save(config, exports.trained(config))
    final = exports.run(config).final

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    new, old = load(final, ours), load(final, theirs, transformers_4)
    assert new.pop("transformers").startswith("5.")
    assert old.pop("transformers").startswith("4.57.")
    assert old == new
    assert new["problems"] == {}
    assert new["dtype"] == {"BF16": "torch.bfloat16", "FP32": "torch.float32"}[precision]
    assert new["stops"] == [7, 1]
    logits = [load_file(out.with_suffix(".safetensors"))["logits"] for out in (ours, theirs)]
    assert (logits[0] - logits[1]).abs().max() < 1e-5
    assert logits[0].abs().max() > 0.1
