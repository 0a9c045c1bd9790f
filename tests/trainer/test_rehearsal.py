"""The rehearsal of the export in the prepare pod: which files it refuses, and what it accepts."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.run import RunConfig
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.tokenize_block import Recipe
from finetune_trainer.export import load_back
from finetune_trainer.model import kernels
from finetune_trainer.model.stored_layout import stored_layout
from finetune_trainer.prepare import preparation, rehearsal, side_files
from finetune_trainer.prepare.rehearsal import shrunk
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import exports, families, tiny
from tests.trainer.exports import Configure, edit, read
from tests.trainer.silent import SilentReporter
from tests.trainer.test_architectures import rows_of_page
from tests.trainer.test_families import FAMILIES, tokenizer_of

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
NOT_UTF8 = "{{ 'caf\xe9' }}".encode("latin-1")


@pytest.fixture
def config(configured: Configure) -> RunConfig:
    """Return the configuration of a prepare pod that needs no chat template of the model."""
    template = {"inline": tiny.TEMPLATE}
    made = configured()
    return made.replace(dataset=made.dataset.replace(chat_template=template))


@pytest.fixture
def model(claim: Path) -> Path:
    return exports.as_published_before_transformers_5(claim / "model")


def recipe(paths: RunPaths, template: str | None = None) -> Recipe:
    return Recipe(paths.model, "pvc://w/model", None, template, "Drop", 128)


def rehearse(config: RunConfig, template: str | None = None) -> None:
    paths = RunPaths.of(config)
    paths.storage.mkdir(parents=True, exist_ok=True)
    side_files.check(paths.model, config.model.source)
    rehearsal.run(config, paths, recipe(paths, template), lambda: None)
    assert not list(paths.storage.iterdir())


def set_template(value: Any) -> Callable[[Path], None]:
    return lambda model: edit(model / "tokenizer_config.json", chat_template=value)


def set_generation(**values: Any) -> Callable[[Path], None]:
    return lambda model: edit(model / "generation_config.json", **values)


def write(name: str, text: bytes) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(text)

    return change


# What is wrong with the file, how it comes about, and what the message says.
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "generation settings are cut off": (
        write("generation_config.json", b'{"do_sample": tr'),
        "generation_config.json is not JSON (Expecting value: line 1 column 15 (char 14))",
    ),
    "generation settings are a list": (
        write("generation_config.json", b"[]"),
        "generation_config.json holds a JSON list, not an object",
    ),
    "generation settings contradict each other": (
        set_generation(num_return_sequences=2),
        "generation_config.json is refused by transformers (Greedy methods (do_sample != True)",
    ),
    "a stop token is text": (
        set_generation(eos_token_id="<|im_end|>"),
        "generation_config.json has eos_token_id '<|im_end|>', which is not a token id",
    ),
    "the stop token of the model is text": (
        lambda model: edit(model / "config.json", eos_token_id=["1"]),
        "Validation error for field 'eos_token_id'",
    ),
    "tokenizer settings are cut off": (
        write("tokenizer_config.json", b"{"),
        "tokenizer_config.json is not JSON (Expecting property name",
    ),
    "tokenizer settings are not UTF-8": (
        write("tokenizer_config.json", b'{"a": "\xff"}'),
        "tokenizer_config.json is not JSON ('utf-8' codec can't decode byte 0xff",
    ),
    "special tokens are empty": (
        write("special_tokens_map.json", b""),
        "special_tokens_map.json is not JSON (Expecting value",
    ),
    "added tokens are a list": (
        write("added_tokens.json", b'["<new>"]'),
        "added_tokens.json holds a JSON list, not an object",
    ),
    "a template is not UTF-8": (
        write("chat_template.jinja", NOT_UTF8),
        "chat_template.jinja is not UTF-8 text (invalid continuation byte at byte 7)",
    ),
    "another template is not UTF-8": (
        write("additional_chat_templates/tool_use.jinja", NOT_UTF8),
        "additional_chat_templates/tool_use.jinja is not UTF-8 text",
    ),
    "a template has no name": (
        set_template([{"name": "default", "template": "x"}, {"template": "y"}]),
        "tokenizer_config.json has a chat_template whose entry 2 is not a name with a template",
    ),
    "a template is a number": (
        set_template(1),
        "tokenizer_config.json has a chat_template that is a JSON number, not text",
    ),
    "a special token is a list": (
        lambda model: edit(model / "tokenizer_config.json", eos_token=["<|im_end|>"]),
        "tokenizer_config.json",
    ),
}


@pytest.mark.parametrize(("change", "found"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_ends_in_preparation(
    config: RunConfig, model: Path, change: Callable[[Path], None], found: str
) -> None:
    change(model)
    with pytest.raises(TrainerError) as caught:
        preparation.run(config, SilentReporter())
    assert caught.value.code == 64, caught.value.message
    assert caught.value.message.startswith("pvc://w/model: ")
    assert found in caught.value.message
    assert "correct " in caught.value.message
    assert not [path for path in RunPaths.of(config).storage.iterdir() if path.name != "cache"]


def test_a_file_that_nothing_here_reads_is_copied_with_a_warning(
    config: RunConfig, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (model / "preprocessor_config.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        rehearse(config)
    assert "pvc://w/model: preprocessor_config.json is not JSON" in caplog.text
    assert "it is copied as it is" in caplog.text


def test_a_failure_that_no_check_foresees_names_the_file(
    config: RunConfig, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = load_back.check

    def refuse(folder: Path, *others: Any) -> None:
        if (folder / "vocab.json").exists():
            raise KeyError("unk")
        check(folder, *others)

    monkeypatch.setattr(load_back, "check", refuse)
    (model / "vocab.json").write_text("{}")
    (model / "merges.txt").write_text("")
    with pytest.raises(TrainerError) as caught:
        rehearse(config)
    assert caught.value.message == (
        "pvc://w/model: the export was rehearsed with a tiny model that has all files of this one "
        "except its weights, and failed ('unk'); the cause is vocab.json: correct it, remove it or "
        "copy it again"
    )


def test_storage_on_which_permissions_cannot_be_changed_is_refused(
    config: RunConfig, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted", "final.tmp-1")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(TrainerError) as caught:
        rehearse(config)
    assert caught.value.code == 73
    assert caught.value.message.startswith("pvc://w/runs/a: the model could not be written")


def test_what_a_killed_rehearsal_left_is_removed(config: RunConfig, model: Path) -> None:
    storage = RunPaths.of(config).storage
    (storage / ".rehearsal-uid-1-a/run/final.tmp-1").mkdir(parents=True)
    (storage / ".rehearsal-uid-2-b/run").mkdir(parents=True)
    paths = RunPaths.of(config)
    rehearsal.run(config, paths, recipe(paths), lambda: None)
    assert [path.name for path in storage.iterdir()] == [".rehearsal-uid-2-b"]


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "one key for each head": {"num_key_value_heads": 12},
    "a size of heads that the width does not give": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "scaled RoPE": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "RoPE with a factor for each pair of a head": {
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 64,
        },
    },
    "a padding token outside": {"pad_token_id": -1},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_rehearsed(
    config: RunConfig, model: Path, architecture: str, changes: dict[str, Any]
) -> None:
    kind = architecture.removesuffix("ForCausalLM").lower()
    values = {
        "hidden_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 400,
        "vocab_size": 400,
        "sliding_window": None,
        **changes,
    }
    if kind == "qwen3":
        values.setdefault("head_dim", 16)
    made = AutoConfig.for_model(kind, architectures=[architecture], **values)
    (model / "config.json").write_text(json.dumps(made.to_dict()))
    if kind.startswith("qwen"):
        assert len(read(model / "config.json")["layer_types"]) == 3
    assert AutoModelForCausalLM.from_config(made)  # the base itself can be built
    rehearse(config)


@pytest.mark.slow
def test_a_tiny_model_of_every_supported_family_can_be_built() -> None:
    """A family that the check accepts must not fail in the rehearsal."""
    for family, row in zip(families.FAMILIES, rows_of_page(), strict=True):
        if row.endswith("| yes |"):
            full = family.config()
            small = type(full).from_dict(shrunk(full.to_dict(), full))
            with torch.device("meta"):
                made = AutoModelForCausalLM.from_config(small)
            assert stored_layout(made).tensors, family.models
            with torch.device("meta"):  # the self-check on devices makes a tiny model as well
                assert AutoModelForCausalLM.from_config(kernels._one_layer(full))
            assert kernels._heads(full)[0] == full.num_attention_heads


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_tokenizers_is_rehearsed(
    config: RunConfig, model: Path, family: str
) -> None:
    tokenizer = tokenizer_of(family)
    tokenizer.save_pretrained(model)
    edit(model / "config.json", vocab_size=max(400, len(tokenizer)))
    rehearse(config)
    rehearse(config, tiny.TEMPLATE)
