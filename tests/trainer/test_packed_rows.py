"""Packed rows, compared with the same documents one by one: loss and all gradients, in fp32."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.prepared import Row
from finetune_trainer.model import attention, language_model
from finetune_trainer.model.language_model import make_batch

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
LENGTHS = [3, 11, 1, 7, 10]


def build(architecture: str, implementation: str, **changes: Any) -> Any:
    """Return a tiny model with seeded weights."""
    import transformers

    family = architecture.removesuffix("ForCausalLM")
    settings = SIZES | ({"sliding_window": None} if family == "Mistral" else {}) | changes
    config = getattr(transformers, f"{family}Config")(**settings)
    config._attn_implementation = implementation
    torch.manual_seed(5)
    model = getattr(transformers, architecture)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # with the default, attention is nearly uniform
    return model.float()


def make_rows() -> list[Row]:
    """Return two rows of several documents, with about a third of all tokens trained."""
    generator = np.random.default_rng(3)

    def row(lengths: list[int]) -> Row:
        size = sum(lengths)
        trained = (generator.random(size) < 0.4).astype(np.uint8)
        trained[np.cumsum([0, *lengths])[:-1]] = 0
        trained[-1] = 1
        tokens = generator.integers(0, 64, size).astype(np.uint32)
        return Row(tokens, trained, np.asarray(lengths, dtype=np.uint32))

    return [row(LENGTHS), row([9, 5])]


def separate(rows: list[Row]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each document as tokens [1, n] and labels [n], which are -100 for untrained tokens."""
    for row in rows:
        cuts = np.cumsum(row.segments)[:-1]
        parts = zip(np.split(row.tokens, cuts), np.split(row.trained, cuts), strict=True)
        for tokens, trained in parts:
            ids = torch.from_numpy(tokens.astype(np.int64))
            yield ids[None], torch.where(torch.from_numpy(trained.copy()) == 1, ids, -100)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_equal_separate_documents(architecture: str, tied: bool) -> None:
    attention.register()
    rows = make_rows()
    plain = build(architecture, "eager", tie_word_embeddings=tied)
    plain.train()
    expected = torch.zeros(())
    for tokens, labels in separate(rows):
        logits = plain(input_ids=tokens, use_cache=False).logits[0]
        if (labels[1:] != -100).any():
            expected = expected + cross_entropy(logits[:-1], labels[1:], reduction="sum")
    expected.backward()

    packed = build(architecture, attention.NAME, tie_word_embeddings=tied)
    packed.train()
    model = language_model.LanguageModel(packed)
    loss = model(make_batch(rows, torch.device("cpu")))
    loss.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(packed), gradients(plain), rtol=1e-5, atol=1e-6)


def test_a_document_does_not_attend_to_other_documents() -> None:
    attention.register()
    model = language_model.LanguageModel(build("LlamaForCausalLM", attention.NAME))
    rows = make_rows()[:1]
    before = model.model.model(**inputs(rows)).last_hidden_state[0]
    rows[0].tokens[: LENGTHS[0]] = 1  # another first document
    after = model.model.model(**inputs(rows)).last_hidden_state[0]
    assert not torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])


def inputs(rows: list[Row]) -> dict[str, Any]:
    made = make_batch(rows, torch.device("cpu"))
    return {
        "input_ids": made.tokens,
        "position_ids": made.positions,
        "use_cache": False,
        "cu_seq_lens_q": made.bounds,
        "max_length_q": made.longest,
    }


def test_an_attention_mask_is_refused() -> None:
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(ValueError, match="no attention mask"):
        attention.segments_attention(
            torch.nn.Identity(),
            one,
            one,
            one,
            torch.ones(1),
            cu_seq_lens_q=torch.tensor([0, 1]),
            max_length_q=1,
        )


def test_tied_parameters_have_one_name() -> None:
    model = language_model.LanguageModel(
        build("LlamaForCausalLM", "eager", tie_word_embeddings=True)
    )
    names = set(model.names().values())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


class Config:
    """The fields of a configuration that `check` reads."""

    def __init__(self, **fields: object) -> None:
        self.__dict__ |= fields


REFUSED = {
    "dropout in attention": (
        {"attention_dropout": 0.1},
        "x: attention_dropout 0.1 is not supported; set it to 0.0 in config.json",
    ),
    "dropout under another name": (
        {"resid_pdrop": 0.1},
        "x: resid_pdrop 0.1 is not supported; set it to 0.0 in config.json",
    ),
    "quantised weights": (
        {"quantization_config": {"quant_method": "gptq"}},
        "x: quantised weights (quantization_config in config.json) cannot be fine-tuned in full; "
        "use the original model",
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_settings_that_are_not_trained_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(TrainerError) as error:
        language_model.check(Config(**fields), "x")
    assert error.value.code == 64
    assert error.value.message.startswith(message)


def test_dropout_of_parts_without_use_is_accepted() -> None:
    language_model.check(Config(classifier_dropout=0.1, attention_dropout=0.0), "x")
