"""The exported folder in the programs that read it.

Each test covers a way in which exports are read wrongly without an error: vllm#42624,
LlamaFactory#10310, safetensors#782, vllm#4180, transformers#20082.
"""

import hashlib
import json
import os
import re
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetune_api.progress import StepLedger
from finetune_api.run import RunConfig
from finetune_api.storage import AttemptFile
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.export import card, metadata_files, model_export
from finetune_trainer.export.weights import contents_of
from finetune_trainer.model import folder
from finetune_trainer.run_dir import records
from finetune_trainer.run_dir.evaluations import History
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import exports, weights
from tests.trainer.checkpoints import DIGEST
from tests.trainer.exports import Configure, edit, read

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture
def config(configured: Configure) -> RunConfig:
    """Return a run on a base model that transformers 4 wrote, without a checkpoint."""
    made = exports.make_run(configured)
    exports.as_published_before_transformers_5(RunPaths.of(made).model)
    return made


@pytest.fixture
def base(config: RunConfig) -> Path:
    return RunPaths.of(config).model


def final(config: RunConfig, masters: exports.Masters | None = None) -> Path:
    """Save a checkpoint, export it and return the folder."""
    exports.save(config, masters or exports.trained(config))
    return exports.run(config).final


def refused(config: RunConfig, masters: exports.Masters) -> str:
    exports.save(config, masters)
    with pytest.raises(TrainerError) as caught:
        exports.run(config)
    assert caught.value.code == 78
    return caught.value.message


@pytest.mark.parametrize("precision", ["BF16", "FP32"])
def test_logits_are_those_of_the_trained_model(configured: Configure, precision: str) -> None:
    training = {"sequenceLength": 128, "precision": precision}
    config = exports.make_run(configured, training=training)
    exports.as_published_before_transformers_5(RunPaths.of(config).model)
    masters = exports.trained(config)
    exported = weights.load(final(config, masters))
    # `.to(dtype)` would also round the RoPE frequencies.
    expected = weights.load(RunPaths.of(config).model, dtype=exported.dtype)
    for name, parameter in expected.named_parameters():
        parameter.data.copy_(masters[name])
    tokens = torch.arange(200).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(exported(tokens).logits, expected(tokens).logits)


def test_config_keeps_the_keys_of_the_base(config: RunConfig, base: Path) -> None:
    """transformers 4 ignores rope_parameters and computes with a theta of 10,000."""
    before, after = read(base / "config.json"), read(final(config) / "config.json")
    assert after["rope_theta"] == 500000.0
    assert "rope_parameters" not in after
    assert after.keys() - before.keys() == {"dtype"}
    assert {key: after[key] for key in before} == before


def test_config_keeps_the_new_keys_of_a_newer_base(configured: Configure) -> None:
    config = exports.make_run(configured)
    before = read(RunPaths.of(config).model / "config.json")
    after = read(final(config) / "config.json")
    assert after["rope_parameters"] == before["rope_parameters"]
    assert "rope_theta" not in after


# Type of the base's weights, output.dtype, and the type of the finished model.
TYPES = [
    ("bfloat16", None, "bfloat16"),
    ("float16", None, "float16"),
    ("float32", None, "float32"),
    ("bfloat16", "FP32", "float32"),
    ("float32", "BF16", "bfloat16"),
    ("float32", "FP16", "float16"),
]


@pytest.mark.parametrize(("stored", "wanted", "name"), TYPES)
def test_the_model_has_the_type_of_the_base_or_the_one_that_the_job_names(
    configured: Configure, stored: str, wanted: str | None, name: str
) -> None:
    training = {"sequenceLength": 128, "precision": "BF16" if name == "float32" else "FP32"}
    config = exports.make_run(configured, training=training, output={"dtype": wanted})
    store_as(RunPaths.of(config).model, stored)
    folder = final(config)
    settings = read(folder / "config.json")
    assert (settings["dtype"], settings["torch_dtype"]) == (name, name)
    assert {str(t.dtype) for t in load_file(folder / "model.safetensors").values()} == {
        f"torch.{name}"
    }
    assert f"| stored as | {name} |" in (folder / "README.md").read_text()


def store_as(base: Path, name: str) -> None:
    """Rewrite the weights of a model in another type, but one norm as some bases have it."""
    tensors = load_file(base / "model.safetensors")
    changed = {key: tensor.to(getattr(torch, name)) for key, tensor in tensors.items()}
    changed["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(changed, base / "model.safetensors", {"format": "pt"})


def test_a_weight_beyond_the_range_of_float16_is_refused(configured: Configure) -> None:
    config = exports.make_run(configured, output={"dtype": "FP16"})
    masters = exports.trained(config)
    masters["model.norm.weight"][3] = 70_000.0
    assert "model.norm.weight has a value that FP16 cannot hold; set output.dtype to BF16" in (
        refused(config, masters)
    )


def test_tokenizer_files_are_copied_byte_for_byte(config: RunConfig, base: Path) -> None:
    """transformers 5 would write a tokenizer_class that transformers 4 does not know."""
    added = {"special_tokens_map.json": {"eos_token": "<|im_end|>"}, "added_tokens.json": {"a": 1}}
    for name, values in added.items():
        (base / name).write_text(json.dumps(values))
    (base / "tokenizer.model").write_bytes(b"\x00sentencepiece")
    (base / "merges.txt").write_text("a b\n")
    (base / "preprocessor_config.json").write_text("{}")
    (base / "LICENSE.txt").write_text("license")
    folder = final(config)
    for name in (*TOKENIZER_FILES, "added_tokens.json", "tokenizer.model", "merges.txt",
                 "preprocessor_config.json", "LICENSE.txt"):  # fmt: skip
        assert (folder / name).read_bytes() == (base / name).read_bytes(), name
    assert read(folder / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_chat_template_is_written_to_both_places(config: RunConfig, base: Path) -> None:
    """transformers 5 writes only the file, TGI reads only tokenizer_config.json."""
    template = read(base / "tokenizer_config.json")["chat_template"]
    folder = final(config)
    assert (folder / "chat_template.jinja").read_text() == template
    assert read(folder / "tokenizer_config.json")["chat_template"] == template


def test_a_template_file_takes_precedence_and_is_written_to_both_places(
    config: RunConfig, base: Path
) -> None:
    template = read(base / "tokenizer_config.json")["chat_template"] + "{# newer #}"
    (base / "chat_template.jinja").write_text(template)
    before = read(base / "tokenizer_config.json")
    folder = final(config)
    assert (folder / "chat_template.jinja").read_text() == template
    assert read(folder / "tokenizer_config.json") == before | {"chat_template": template}


def test_all_of_several_named_templates_are_kept(config: RunConfig, base: Path) -> None:
    """A chat_template.jinja without the other files would hide the other templates."""
    template = read(base / "tokenizer_config.json")["chat_template"]
    named = [
        {"name": "default", "template": template},
        {"name": "tool_use", "template": template + "{# tools #}"},
    ]
    edit(base / "tokenizer_config.json", chat_template=named)
    folder = final(config)
    assert read(folder / "tokenizer_config.json")["chat_template"] == named
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder).chat_template
    assert found == {entry["name"]: entry["template"] for entry in named}


def test_the_template_of_the_training_replaces_all_of_the_base(
    config: RunConfig, base: Path, tmp_path: Path
) -> None:
    named = [{"name": name, "template": name} for name in ("default", "tool_use")]
    edit(base / "tokenizer_config.json", chat_template=named)
    exports.save(config, exports.trained(config))
    paths = RunPaths.of(config)
    reader = CheckpointReader(*next(store.candidates(paths, DIGEST)))
    own = "{{ messages[-1]['content'] + '<|im_start|>' }}"
    metadata_files.write(base, tmp_path, contents_of(base, reader, torch.bfloat16), own)
    assert (tmp_path / "chat_template.jinja").read_text() == own
    assert read(tmp_path / "tokenizer_config.json")["chat_template"] == own
    assert not (tmp_path / "additional_chat_templates").exists()
    assert read(tmp_path / "generation_config.json")["eos_token_id"] == [1, 0]  # its own stop token


def test_generation_stops_at_the_end_of_a_turn(config: RunConfig, base: Path) -> None:
    """A pre-trained base stops only at the end of a document, so a chat would never end."""
    edit(base / "generation_config.json", eos_token_id=7, temperature=0.6, do_sample=True)
    before = read(base / "generation_config.json")
    folder = final(config)
    end = read(base / "tokenizer.json")["added_tokens"][1]
    assert end["content"] == "<|im_end|>"
    after = read(folder / "generation_config.json")
    assert after == before | {"eos_token_id": [7, end["id"]]}
    assert (
        read(folder / "config.json")["eos_token_id"] == read(base / "config.json")["eos_token_id"]
    )


def test_a_generation_config_with_all_stop_tokens_is_copied_unchanged(
    config: RunConfig, base: Path
) -> None:
    name = "generation_config.json"
    assert (final(config) / name).read_bytes() == (base / name).read_bytes()


def test_a_base_without_a_generation_config_gets_one_that_stops(
    config: RunConfig, base: Path
) -> None:
    (base / "generation_config.json").unlink()
    edit(base / "config.json", eos_token_id=7, bos_token_id=5)
    after = read(final(config) / "generation_config.json")
    assert after == {"bos_token_id": 5, "eos_token_id": [7, 1], "pad_token_id": None}


def test_files_can_be_read_by_another_user(config: RunConfig, base: Path) -> None:
    """safetensors writes 0600, but servers run as another user."""
    template = read(base / "tokenizer_config.json")["chat_template"]
    named = [{"name": name, "template": template} for name in ("default", "rag")]
    edit(base / "tokenizer_config.json", chat_template=named)
    before = os.umask(0o077)
    try:
        folder = final(config)
    finally:
        os.umask(before)
    for path in [folder, *folder.rglob("*")]:
        expected = 0o755 if path.is_dir() else 0o644
        assert path.stat().st_mode & 0o777 == expected, path.name
    assert (folder / "additional_chat_templates" / "rag.jinja").is_file()


def test_no_second_set_of_weights_is_copied(config: RunConfig, base: Path) -> None:
    """consolidated*.safetensors switches vLLM to another format; TGI loads every safetensors."""
    for name in ("consolidated.safetensors", "consolidated.00.pth", "pytorch_model.bin",
                 "optimizer.safetensors", "model.gguf", "params.json", "training_args.bin",
                 "README.md", "custom.py"):  # fmt: skip
        shutil.copyfile(base / "model.safetensors", base / name)
    folder = final(config)
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "export.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "README.md").read_text().startswith("---\n")


def test_code_that_config_names_is_copied(config: RunConfig, base: Path) -> None:
    auto_map = {"AutoConfig": "configuration_own.OwnConfig"}
    edit(base / "config.json", auto_map=auto_map)
    (base / "configuration_own.py").write_text("x = 1\n")
    folder = final(config)
    assert read(folder / "config.json")["auto_map"] == auto_map
    assert (folder / "configuration_own.py").read_text() == "x = 1\n"


def test_a_weight_file_has_the_format_in_its_metadata(config: RunConfig) -> None:
    with safe_open(str(final(config) / "model.safetensors"), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_index_covers_all_tensors_and_all_files(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_export.weights, "SHARD_BYTES", 60_000)
    folder = final(config)
    index = read(folder / "model.safetensors.index.json")
    files = {path.name for path in folder.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    tensors = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == tensors
    size = sum(t.nbytes for file in folder.glob("*.safetensors") for t in load_file(file).values())
    assert index["metadata"] == {"total_size": size}


def test_a_tied_head_is_stored_once(config: RunConfig) -> None:
    names = load_file(final(config) / "model.safetensors").keys()
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names


def store_head(base: Path, *, equal: bool) -> None:
    path = base / "model.safetensors"
    tensors = load_file(path)
    head = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"] = head if equal else head + 1
    save_file(tensors, path, {"format": "pt"})


def test_a_tied_head_that_the_base_stores_twice_is_exported_with_its_training(
    config: RunConfig, base: Path
) -> None:
    store_head(base, equal=True)
    folder = final(config)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded = weights.load(folder)
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_a_head_that_was_trained_separately_is_stored_and_not_tied(
    config: RunConfig, base: Path
) -> None:
    """Readers that rely on tie_word_embeddings silently drop the head."""
    store_head(base, equal=False)
    masters = exports.trained(config)
    assert "lm_head.weight" in masters  # transformers does not tie what differs
    folder = final(config, masters)
    assert read(folder / "config.json")["tie_word_embeddings"] is False
    loaded = weights.load(folder)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(loaded.get_parameter(name), masters[name].to(torch.bfloat16))


def test_a_separate_head_that_equals_the_embedding_is_stored_once(config: RunConfig) -> None:
    masters = exports.trained(config)
    masters["lm_head.weight"] = masters["model.embed_tokens.weight"].clone()
    folder = final(config, masters)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert read(folder / "config.json")["tie_word_embeddings"] is True


def test_an_empty_tensor_is_refused(config: RunConfig) -> None:
    """Other trainers leave empty tensors in files after training with ZeRO-3."""
    masters = exports.trained(config)
    name = "model.layers.1.mlp.up_proj.weight"
    masters[name] = torch.empty(0)
    assert f"{name} has 0 elements, its shape is [128, 64]" in refused(config, masters)


def test_a_parameter_of_only_the_base_or_the_checkpoint_is_named(config: RunConfig) -> None:
    masters = exports.trained(config)
    masters["model.extra"] = masters.pop("model.norm.weight")
    message = refused(config, masters)
    assert "parameters of only one of them: model.extra, model.norm.weight" in message


@pytest.mark.parametrize(
    ("file", "change", "found"),
    [
        ("generation_config.json", {"eos_token_id": [1, 50_000]}, "50000 (eos_token_id)"),
        ("config.json", {"bos_token_id": 400}, "400 (bos_token_id)"),
        (
            "tokenizer.json",
            {"added_tokens": [{"id": 999, "content": "<new>", "special": True}]},
            "999 ('<new>')",
        ),
    ],
)
def test_a_token_without_an_embedding_is_refused_by_the_prepare_pod(
    base: Path, file: str, change: dict, found: str
) -> None:
    edit(base / file, **change)
    with pytest.raises(TrainerError) as caught:
        folder.inspect(base, "pvc://w/model", lambda: None)
    assert caught.value.code == 64
    rows = read(base / "config.json")["vocab_size"]
    assert f"pvc://w/model: {file} has the id {found}" in caught.value.message
    assert f"has {rows} rows (0 to {rows - 1})" in caught.value.message


def test_the_card_states_how_the_model_was_trained_and_how_to_load_it(config: RunConfig) -> None:
    paths = RunPaths.of(config)
    measured = History()
    for step, loss in ((0, 4.5), (6, 3.125), (8, 3.25)):
        measured = measured.with_loss(step, loss)
    paths.evaluations.write_text(measured.to_json())
    paths.logs.mkdir()
    lines = [{"step": 8, "part": "train", "loss": loss} for loss in (9.0, 2.75)]
    for epoch, line in enumerate(lines, 1):  # the newer attempt repeated the step
        paths.log(epoch).write_text(json.dumps(line) + "\n")
    folder = final(config)
    text = (folder / "README.md").read_text()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    for part in (
        "`pvc://w/model`",
        "`pvc://w/data/train.jsonl`: 60 examples in 20 rows",
        "60 examples, 2000 tokens, 900 of them trained on",
        "| training, at this step | 2.7500 |",
        "| validation, before training | 4.5000 |",
        "| validation, best (step 6) | 3.1250 |",
        "| validation, last (step 8) | 3.2500 |",
        "| learning rate | 0.001, 2 steps of warm-up |",
        "| rows per step | 4 |",
        "AutoModelForCausalLM.from_pretrained(",
        f"| `model.safetensors` | sha256 `{digest}` |",
    ):
        assert part in text, part


# What the base's owner wrote for other programs, or for a version of transformers of his own.
UNUSUAL: dict[str, dict[str, object]] = {
    "stop strings": {"stop_strings": ["</answer>"]},
    "several sequences": {"do_sample": True, "num_return_sequences": 2},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "a limit below the prompt": {"max_length": 1, "max_new_tokens": 1},
    "an assistant": {"prompt_lookup_num_tokens": 3},
    "its own code": {"custom_generate": "own/code"},
}


@pytest.mark.parametrize("settings", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_the_check_generates_with_settings_of_its_own(
    config: RunConfig, base: Path, settings: dict[str, object]
) -> None:
    edit(base / "generation_config.json", **settings)
    before = read(base / "generation_config.json")
    assert read(final(config) / "generation_config.json") == before


def test_a_tokenizer_without_a_token_for_the_prompt_of_the_check_is_exported(
    config: RunConfig, base: Path
) -> None:
    vocabulary = read(base / "tokenizer.json")
    letters = {token for token in vocabulary["model"]["vocab"] if set(token) & set("Hello")}
    kept = {t: i for t, i in vocabulary["model"]["vocab"].items() if t not in letters}
    vocabulary["model"] |= {"vocab": kept, "merges": []}
    (base / "tokenizer.json").write_text(json.dumps(vocabulary))
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(base)("Hello")["input_ids"] == []
    assert (final(config) / "tokenizer.json").is_file()


def test_training_does_not_read_the_settings_of_generation(base: Path) -> None:
    edit(base / "generation_config.json", num_return_sequences=2)  # transformers refuses it
    from finetune_trainer.model import language_model

    assert language_model.load(base, torch.bfloat16)


def test_the_card_states_where_the_model_comes_from(configured: Configure) -> None:
    config = exports.make_run(configured, modelRevision="0123abcd")
    exports.as_published_before_transformers_5(RunPaths.of(config).model)
    paths = RunPaths.of(config)
    (paths.prepared("data") / "rows.digest").write_text("digest-of-rows")
    for epoch, hour in ((1, 9), (2, 11)):
        moment = datetime(2026, 11, 30, hour, 30, tzinfo=UTC)
        record = AttemptFile(
            epoch=epoch,
            attempt=epoch,
            job_uid=config.job_uid,
            start_time=moment,
            update_time=moment,
            ledger=StepLedger(),
        )
        records.write(paths, record)
    text = (final(config) / "README.md").read_text()
    for part in (
        "| base model | `pvc://w/model`, revision `0123abcd` |",
        f"| trained | 2026-11-30 09:30 to {datetime.now(UTC):%Y-%m-%d} ",
        "| hardware | 2 processes on CPUs |",
        f"torch {version('torch')}",
        "| prepared data | `data` |",
        "| rows | `digest-of-rows` |",
    ):
        assert part in text, part
    assert "base_model" not in text  # a claim is not on the Hub


def test_the_card_of_a_model_of_the_hub_names_it_for_the_hub(config: RunConfig) -> None:
    found = card.front_matter("hf://org/name/part")
    assert found == "library_name: transformers\nbase_model: org/name\ntags: [full-fine-tuning]"


@pytest.mark.parametrize("chat", [True, False])
def test_the_example_of_the_card_runs(
    config: RunConfig, base: Path, chat: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not chat:
        edit(base / "tokenizer_config.json", ("chat_template",))
    folder = final(config)
    text = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert ("apply_chat_template" in code) == chat
    assert "path/to/this/folder" in code
    exec(code.replace("path/to/this/folder", str(folder)), {})
    assert capsys.readouterr().out
