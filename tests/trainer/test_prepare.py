"""The prepare pod's work, in process: its result, and the inputs that it refuses."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.run import PrepareResult, RunConfig
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.prepared import Rows
from finetune_trainer.prepare import preparation
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import tiny
from tests.trainer.silent import SilentReporter

Configure = Callable[..., RunConfig]


def run(config: RunConfig) -> PrepareResult:
    return preparation.run(config, SilentReporter())


def refusal(config: RunConfig) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        run(config)
    return caught.value


def test_the_result_has_what_the_plan_needs(configured: Configure, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = configured()
    result = run(config)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert result.parameter_count == sum(p.numel() for p in model.parameters())
    assert (result.data.examples, result.data.validation_examples) == (60, 10)
    data = result.data
    assert data.dropped_overlong == data.truncated == data.split == data.invalid == 0
    assert data.dropped_empty == data.dropped_untrained == data.duplicates == 0
    assert data.epoch_rows == data.rows
    assert result.finished is None
    rows = Rows(RunPaths.of(config).prepared(result.prepared_digest), "train")
    assert len(rows) == result.data.rows
    assert rows.trained_tokens.sum() == result.data.trained_tokens
    assert rows.trained_tokens.min() > 0
    assert sum(len(rows[n].tokens) for n in range(len(rows))) == result.data.tokens
    assert 0.5 < result.data.packing_efficiency <= 1


def test_prepared_data_is_reused(configured: Configure, caplog: pytest.LogCaptureFixture) -> None:
    first = run(configured())
    with caplog.at_level(logging.INFO):
        assert run(configured()) == first
    assert "data is already prepared" in caplog.text


def test_equal_contents_at_another_address_have_the_same_digest(
    configured: Configure, claim: Path
) -> None:
    first = run(configured())
    shutil.copytree(claim / "model", claim / "elsewhere/model")
    shutil.copytree(claim / "data", claim / "elsewhere/data")
    (claim / "elsewhere/data/train.jsonl").rename(claim / "elsewhere/data/chats-v1.2.jsonl")
    second = run(
        configured(
            model={"source": "pvc://w/elsewhere/model"},
            dataset={
                "train": [{"source": "pvc://w/elsewhere/data/chats-v1.2.jsonl"}],
                "validation": [{"source": "pvc://w/elsewhere/data/validation.jsonl"}],
            },
        )
    )
    assert second.prepared_digest == first.prepared_digest
    assert second.model_revision == first.model_revision
    assert [s.source for s in second.data.sources] == ["pvc://w/elsewhere/data/chats-v1.2.jsonl"]


CHANGES = {
    "data": lambda claim, config: tiny.write_jsonl(
        claim / "data/train.jsonl", tiny.make_messages(61, 1)
    ),
    "loss": lambda claim, config: config["dataset"].update(lossOn="LastAssistant"),
    "length": lambda claim, config: config["training"].update(sequenceLength=200),
    "packing": lambda claim, config: config["training"].update(packing=False),
    "overlong": lambda claim, config: config["dataset"].update(overlong="Truncate"),
    "fraction": lambda claim, config: (
        config["dataset"].pop("validation"),
        config["dataset"].update(validationFraction=0.5),
    ),
    "columns": lambda claim, config: config["dataset"]["train"][0].update(
        columns={"tools": "functions"}
    ),
    "template of the job": lambda claim, config: config["dataset"].update(
        chatTemplate={"inline": tiny.TEMPLATE + "{# another #}"}
    ),
    "template": lambda claim, config: (claim / "model/chat_template.jinja").write_text(
        tiny.TEMPLATE + "{# another #}"
    ),
    "template for tools": lambda claim, config: write(
        "model/additional_chat_templates/tool_use.jinja", tiny.TEMPLATE
    )(claim),
    "special tokens": lambda claim, config: write("model/special_tokens_map.json", "{}")(claim),
    "added tokens": lambda claim, config: write("model/added_tokens.json", "{}")(claim),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_rows_changes_the_digest(
    configured: Configure, claim: Path, change: Callable
) -> None:
    first = run(configured())
    changed = configured().to_dict()
    change(claim, changed)
    assert run(RunConfig.model_validate(changed)).prepared_digest != first.prepared_digest


def test_a_learning_rate_changes_the_run_and_not_the_data(configured: Configure) -> None:
    first = run(configured())
    config = configured()
    second = run(config.replace(training=config.training.replace(learning_rate=1e-4)))
    assert second.prepared_digest == first.prepared_digest
    assert second.run_digest != first.run_digest


def chats(*lengths: int) -> list[dict]:
    """Return conversations whose answers have about so many tokens."""
    return [
        {
            "messages": [
                {"role": "user", "content": "the cat"},
                {"role": "assistant", "content": " ".join(["mat"] * length)},
            ]
        }
        for length in lengths
    ]


def test_a_few_overlong_and_useless_examples_are_dropped_and_counted(
    configured: Configure, claim: Path
) -> None:
    useless = {"messages": [{"role": "user", "content": " "}]}
    rows = [*chats(*[5] * 40), *chats(500), useless]
    tiny.write_jsonl(claim / "data/train.jsonl", rows)
    data = run(configured()).data
    assert (data.examples, data.dropped_overlong, data.dropped_empty) == (40, 1, 1)
    assert data.duplicates == 39


def test_many_overlong_examples_are_bad_data(configured: Configure, claim: Path) -> None:
    tiny.write_jsonl(claim / "data/train.jsonl", chats(*[5] * 18, 150, 200))
    error = refusal(configured())
    assert error.code == 65
    assert error.message.startswith(
        "dataset.train: 2 of 20 examples are longer than sequenceLength 128 (the first: "
        "pvc://w/data/train.jsonl line 19, "
    )
    assert "; at most 5 % may be dropped; training.sequenceLength " in error.message
    keeps = int(error.message.split("sequenceLength ")[-1].split()[0])
    config = configured()
    config = config.replace(training=config.training.replace(sequence_length=keeps))
    assert run(config).data.examples == 20


def test_many_useless_examples_are_bad_data(configured: Configure, claim: Path) -> None:
    empty = {"messages": [{"role": "user", "content": ""}]}
    tiny.write_jsonl(claim / "data/train.jsonl", [*chats(*[5] * 9), empty])
    error = refusal(configured())
    assert (error.code, error.message) == (
        65,
        "dataset.train: 1 of 10 examples are empty (1) or train no token (0); at most 5 % may be "
        "dropped; clean the data, or check dataset.lossOn",
    )


def test_all_examples_overlong_is_bad_data(configured: Configure, claim: Path) -> None:
    tiny.write_jsonl(claim / "data/train.jsonl", chats(300, 300))
    assert "2 of 2 examples are longer" in refusal(configured()).message


def model_with(**changes: object) -> Callable[[Path], object]:
    def change(claim: Path) -> None:
        path = claim / "model/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut(claim: Path) -> None:
    path = claim / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def outside(claim: Path) -> Path:
    """Create a folder beside the claim, not on it."""
    path = claim.parent / "secret"
    path.mkdir()
    return path


def link_data(claim: Path) -> None:
    (claim / "data/train.jsonl").rename(outside(claim) / "train.jsonl")
    (claim / "data/train.jsonl").symlink_to(claim.parent / "secret/train.jsonl")


def link_model(claim: Path) -> None:
    (claim / "model").rename(outside(claim) / "model")
    (claim / "model").symlink_to(claim.parent / "secret/model")


def link_weights(claim: Path) -> None:
    (claim / "model/model.safetensors").rename(outside(claim) / "model.safetensors")
    (claim / "model/model.safetensors").symlink_to(claim.parent / "secret/model.safetensors")


def link_storage(claim: Path) -> None:
    (claim / "runs").symlink_to(outside(claim))


def rename_tensor(claim: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = claim / "model/model.safetensors"
    tensors = load_file(path)
    tensors["model.other.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, path, {"format": "pt"})


def write(name: str, text: str) -> Callable[[Path], object]:
    def change(claim: Path) -> None:
        (claim / name).parent.mkdir(parents=True, exist_ok=True)
        (claim / name).write_text(text)

    return change


def remove(name: str) -> Callable[[Path], object]:
    return lambda claim: (claim / name).unlink()


# A change of the claim, the exit code and the begin of the message.
REFUSED = {
    "empty data": (
        write("data/train.jsonl", ""),
        65,
        "dataset.train: no row in pvc://w/data/train.jsonl; add some",
    ),
    "a bad row": (
        write("data/train.jsonl", "{}\n{}\n"),
        65,
        "pvc://w/data/train.jsonl line 1: an object with the keys []; allowed: Messages, ",
    ),
    "a bad held-out row": (
        write("data/validation.jsonl", "not json\n"),
        65,
        "pvc://w/data/validation.jsonl line 1: not JSON (Expecting value at column 1)",
    ),
    "missing data": (
        remove("data/train.jsonl"),
        66,
        "pvc://w/data/train.jsonl: no such file on the claim; check the path, or copy the file "
        "there",
    ),
    "a folder as data": (
        lambda claim: ((claim / "data/train.jsonl").unlink(), (claim / "data/train.jsonl").mkdir()),
        66,
        "pvc://w/data/train.jsonl: no data file in this folder; allowed are .jsonl, ",
    ),
    "data behind a link": (
        link_data,
        64,
        "pvc://w/data/train.jsonl: a link leads out of the claim; copy the file onto the claim",
    ),
    "no model": (
        lambda claim: shutil.rmtree(claim / "model"),
        66,
        "pvc://w/model: this folder does not exist on the claim; check the path",
    ),
    "a model behind a link": (
        link_model,
        64,
        "pvc://w/model: a link leads out of the claim; copy the file onto the claim",
    ),
    "weights behind a link": (
        link_weights,
        64,
        "pvc://w/model/model.safetensors: a link leads out of the claim; copy the file onto the "
        "claim",
    ),
    "no config": (
        remove("model/config.json"),
        66,
        "pvc://w/model: no config.json; name a Hugging Face model folder",
    ),
    "a broken config": (
        write("model/config.json", "{,}"),
        64,
        "pvc://w/model: config.json is not JSON (",
    ),
    "a config that is a list": (
        write("model/config.json", "[]"),
        64,
        "pvc://w/model: config.json is not a JSON object; copy it again",
    ),
    "a config with a wrong value": (
        model_with(hidden_size="wide"),
        64,
        "pvc://w/model: transformers cannot build this model as a causal language model (",
    ),
    "no weights": (
        remove("model/model.safetensors"),
        66,
        "pvc://w/model: no weights, neither model.safetensors nor model.safetensors.index.json; "
        "found chat_template.jinja, config.json, ",
    ),
    "weights cut short": (cut, 66, "pvc://w/model: model.safetensors is incomplete ("),
    "weights that are not safetensors": (
        write("model/model.safetensors", "version https://git-lfs.github.com/spec/v1"),
        66,
        "pvc://w/model: model.safetensors is not a valid safetensors file; copy it again",
    ),
    "weights of another model": (
        rename_tensor,
        64,
        "pvc://w/model: the weights do not belong to config.json: model.norm.weight is absent",
    ),
    "weights of another size": (
        model_with(intermediate_size=256),
        64,
        "pvc://w/model: the weights do not belong to config.json: "
        "model.layers.0.mlp.gate_proj.weight has the shape [128, 64], not [256, 64]",
    ),
    "an index without its file": (
        write("model/model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}'),
        66,
        "pvc://w/model: model.safetensors.index.json names b.safetensors, which is absent",
    ),
    "a broken index": (
        write("model/model.safetensors.index.json", "{}"),
        66,
        "pvc://w/model: model.safetensors.index.json is not a valid index file; copy it again",
    ),
    "no tokenizer": (
        remove("model/tokenizer.json"),
        66,
        "pvc://w/model: no tokenizer.json; copy the tokenizer into the model folder",
    ),
    "a broken tokenizer": (
        write("model/tokenizer.json", "{}"),
        64,
        "pvc://w/model: transformers cannot read this tokenizer (",
    ),
    "another architecture": (
        model_with(architectures=["BloomForCausalLM"], model_type="bloom", hidden_dropout=0.0),
        64,
        "pvc://w/model: the architecture BloomForCausalLM is not supported with this config.json: "
        "it has no model.embed_tokens.weight, model.layers and lm_head.weight, of which the "
        "trainer builds its forward pass; use a model of the table in docs/reference/models.md",
    ),
    "an unknown architecture": (
        model_with(architectures=["FutureForCausalLM"], model_type="future"),
        64,
        "pvc://w/model: transformers cannot build this model as a causal language model (",
    ),
    "a RoPE that depends on the length": (
        model_with(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        64,
        "pvc://w/model: the architecture LlamaForCausalLM is not supported with this config.json: "
        "its RoPE (dynamic) depends on the length of the input, and rows have up to 128 tokens;",
    ),
    "too few positions": (
        model_with(max_position_embeddings=64),
        64,
        "training.sequenceLength 128: the model has 64 positions; that is the largest value "
        "allowed",
    ),
    "a file in place of the storage": (
        write("runs", "x"),
        73,
        "pvc://w/runs/a: a file is in the way (",
    ),
    "a file in place of the cache": (
        write("runs/a/cache", "x"),
        73,
        "pvc://w/runs/a/cache: a file is in the way (",
    ),
    "a file in place of prepared data": (
        write("runs/a/cache/prepared", "x"),
        73,
        "pvc://w/runs/a/cache: a file is in the way (",
    ),
    "storage behind a link": (
        link_storage,
        64,
        "pvc://w/runs/a: a link leads out of the claim",
    ),
    "a broken run.json": (
        write("runs/a/run.json", "{"),
        73,
        "pvc://w/runs/a: run.json cannot be read; remove it if no run is using this folder",
    ),
}


@pytest.mark.parametrize(("damage", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_unusable_inputs_are_refused(
    configured: Configure, claim: Path, damage: Callable, code: int, message: str
) -> None:
    damage(claim)
    error = refusal(configured())
    assert error.message[: len(message)] == message
    assert error.code == code


def test_a_claim_that_is_not_mounted_is_named(configured: Configure) -> None:
    error = refusal(configured(model={"source": "pvc://other/model"}))
    assert (error.code, error.message) == (
        64,
        "pvc://other/model: the claim 'other' is not mounted in this pod",
    )


def test_a_cache_is_shared_by_jobs(configured: Configure) -> None:
    first = run(configured(cache="pvc://w/cache"))
    other = configured(
        cache="pvc://w/cache", jobUid="uid-2", checkpoints={"storage": "pvc://w/runs/b"}
    )
    assert run(other).prepared_digest == first.prepared_digest
    assert len(list((RunPaths.of(other).cache / "prepared").iterdir())) == 1


def test_a_failed_build_leaves_no_folder(configured: Configure, claim: Path) -> None:
    write("data/validation.jsonl", "not json\n")(claim)
    config = configured()
    refusal(config)
    assert list((RunPaths.of(config).cache / "prepared").iterdir()) == []


def test_tied_weights_may_be_stored_twice(configured: Configure, claim: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = claim / "model/model.safetensors"
    before = run(configured()).parameter_count
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    assert run(configured(jobUid="uid-1")).parameter_count == before


def test_weights_in_several_files_are_counted_once(configured: Configure, claim: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = run(configured()).parameter_count
    model = AutoModelForCausalLM.from_pretrained(claim / "model")
    (claim / "model/model.safetensors").unlink()
    model.save_pretrained(claim / "model", max_shard_size="100kB")
    assert (claim / "model/model.safetensors.index.json").is_file()
    assert run(configured()).parameter_count == before


def test_a_chat_template_of_the_job_is_used_and_stored(configured: Configure, claim: Path) -> None:
    (claim / "model/chat_template.jinja").unlink()
    template = tiny.TEMPLATE.replace("assistant", "bot").replace("message['role'] +", "'bot' +")
    (claim / "bot.jinja").write_text(template, encoding="utf-8")
    train = [{"source": "pvc://w/data/train.jsonl"}]
    assert "has no chat template; set dataset.chatTemplate" in refusal(configured()).message
    inline = configured(dataset={"train": train, "chatTemplate": {"inline": template}})
    first = run(inline)
    folder = RunPaths.of(inline).prepared(first.prepared_digest)
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert "<|im_start|>bot" in (folder / "sample.txt").read_text()
    path = configured(dataset={"train": train, "chatTemplate": {"path": "pvc://w/bot.jinja"}})
    assert run(path).prepared_digest == first.prepared_digest


TEMPLATES = {
    "no file": (None, 66, "pvc://w/bot.jinja: cannot be read ("),
    "not text": (
        b"\xff",
        64,
        "dataset.chatTemplate: pvc://w/bot.jinja is not UTF-8 text (invalid start byte); name a "
        "Jinja template",
    ),
    "not a template": (b"{% if %}", 65, "dataset.train: 60 of 60 examples cannot be rendered; "),
}


@pytest.mark.parametrize(("data", "code", "message"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_unusable_chat_templates_are_refused(
    configured: Configure, claim: Path, data: bytes | None, code: int, message: str
) -> None:
    if data is not None:
        (claim / "bot.jinja").write_bytes(data)
    train = [{"source": "pvc://w/data/train.jsonl"}]
    template = {"path": "pvc://w/bot.jinja"}
    error = refusal(configured(dataset={"train": train, "chatTemplate": template}))
    assert error.message.startswith(message)
    assert error.code == code


def test_continued_pretraining_trains_on_every_token(configured: Configure) -> None:
    config = configured()
    chats = run(config)
    training = config.training.replace(objective="ContinuedPretraining")
    other = config.replace(
        training=training, checkpoints=config.checkpoints.replace(storage="pvc://w/runs/b")
    )
    everything = run(other)
    assert chats.data.trained_tokens < chats.data.tokens
    rows = Rows(RunPaths.of(other).prepared(everything.prepared_digest), "train")
    documents = sum(len(rows[n].segments) for n in range(len(rows)))
    # All tokens except the first one of each document, which nothing predicts.
    assert everything.data.trained_tokens == everything.data.tokens - documents
    named = other.replace(dataset=config.dataset.replace(loss_on="Assistant"))
    named = named.replace(checkpoints=config.checkpoints.replace(storage="pvc://w/runs/c"))
    assert run(named).data.trained_tokens == chats.data.trained_tokens
