"""Which parameters get weight decay."""

from transformers import AutoModelForCausalLM

from finetune_trainer.model.engine import _groups
from finetune_trainer.model.language_model import LanguageModel
from tests.trainer.test_architectures import tiny


def test_biases_of_experts_get_no_weight_decay_though_they_are_matrices() -> None:
    config = tiny("gpt_oss", num_local_experts=3).config()
    model = LanguageModel(AutoModelForCausalLM.from_config(config))
    names = model.names()
    decayed, others = (
        {names[id(parameter)] for parameter in group["params"]} for group in _groups(model, 0.1)
    )
    assert len(decayed) + len(others) == len(names)
    layer = {name.removeprefix("model.layers.0.") for name in decayed if ".0." in name}
    assert layer == {
        *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
        "mlp.router.weight",
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
    }
