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
@pytest.mark.parametrize("dtype", ["BF16", "FP16", "FP32"])
def test_transformers_4_computes_what_transformers_5_computes(
    configured: Configure, transformers_4: Path, tmp_path: Path, dtype: str
) -> None:
    config = exports.make_run(configured, output={"dtype": dtype})
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
    names = {"BF16": "torch.bfloat16", "FP16": "torch.float16", "FP32": "torch.float32"}
    assert new["dtype"] == names[dtype]
    assert new["stops"] == [7, 1]
    logits = [load_file(out.with_suffix(".safetensors"))["logits"] for out in (ours, theirs)]
    assert (logits[0] - logits[1]).abs().max() < 1e-5
    assert logits[0].abs().max() > 0.1
