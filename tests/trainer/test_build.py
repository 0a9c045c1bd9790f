"""Building prepared data: the same rows after any interruption, and the counts."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.run import PrepareResult, RunConfig
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data import build
from finetune_trainer.data.prepared import Rows
from finetune_trainer.prepare import preparation
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import tiny
from tests.trainer.silent import SilentReporter
from tests.trainer.test_formats import write_parquet

Configure = Callable[..., RunConfig]


def run(config: RunConfig) -> PrepareResult:
    return preparation.run(config, SilentReporter())


def refusal(config: RunConfig) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        run(config)
    return caught.value


def contents(config: RunConfig, result: PrepareResult) -> dict[str, bytes]:
    folder = RunPaths.of(config).prepared(result.prepared_digest)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def documents(config: RunConfig, result: PrepareResult, split: str = "train") -> list[str]:
    """Return every document of a split, decoded."""
    from transformers import AutoTokenizer

    paths = RunPaths.of(config)
    tokenizer = AutoTokenizer.from_pretrained(paths.model)
    rows = Rows(paths.prepared(result.prepared_digest), split)
    found = []
    for number in range(len(rows)):
        begin = 0
        for size in rows[number].segments.tolist():
            found.append(tokenizer.decode(rows[number].tokens[begin : begin + size]))
            begin += size
    return found


def write_texts(claim: Path, count: int) -> None:
    rows = [{"text": message["content"]} for row in tiny.make_messages(count, 5)
            for message in row["messages"]]  # fmt: skip
    tiny.write_jsonl(claim / "data/texts.jsonl", rows)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks so small that small files have many of them."""
    monkeypatch.setattr("finetune_trainer.data.block.BLOCK_BYTES", 2000)


@pytest.fixture
def mixed(configured: Configure, claim: Path) -> RunConfig:
    """Return a configuration with one source for each kind of reader."""
    write_parquet(claim / "data/more.parquet", tiny.make_messages(700, 3))
    write_texts(claim, 40)
    return configured(
        dataset={
            "train": [
                {"source": "pvc://w/data/train.jsonl"},
                {"source": "pvc://w/data/more.parquet"},
                {"source": "pvc://w/data/texts.jsonl"},
            ],
            "validationFraction": 0.1,
        }
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_the_number_of_processes_does_not_change_the_bytes(
    mixed: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "processes", lambda size: 1)
    alone = run(mixed)
    expected = contents(mixed, alone)
    monkeypatch.setattr(build, "processes", lambda size: 3)
    other = mixed.replace(cache="pvc://w/cache")
    together = run(other)
    assert contents(other, together) == expected
    assert together == alone


def test_the_number_of_processes_follows_input_cpus_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune_trainer.common.machine.usable_cpus", lambda: 64)
    monkeypatch.setattr("finetune_trainer.common.machine.memory_limit", lambda: None)
    assert build.processes(1000) == 1
    assert build.processes(10**9) == 64
    monkeypatch.setattr("finetune_trainer.common.machine.memory_limit", lambda: 2 << 30)
    assert build.processes(10**9) == 3
    monkeypatch.setattr("finetune_trainer.common.machine.memory_limit", lambda: 1 << 30)
    assert build.processes(10**9) == 1


PREPARE = """
import os, sys
from finetune_api.run import RunConfig
from finetune_trainer.prepare import preparation
from finetune_trainer.data import block, build, build_parts
from finetune_trainer.common.reporter import ChannelReporter
block.BLOCK_BYTES, build_parts._BLOCKS = 2000, 3
if __name__ == "__main__":
    build.processes = lambda size: int(sys.argv[2])
    report = ChannelReporter(os.open(os.devnull, os.O_WRONLY))
    preparation.run(RunConfig.model_validate_json(sys.argv[1]), report)
"""


def start(config: RunConfig, script: Path, processes: int) -> subprocess.Popen[bytes]:
    script.write_text(PREPARE)
    command = [sys.executable, str(script), config.to_json(), str(processes)]
    with script.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, start_new_session=True, stderr=log)


def wait_for_part(config: RunConfig, number: int) -> Path:
    """Wait for a finished part of the first source and return its path."""
    deadline = time.monotonic() + 200
    pattern = f"prepared/.building-*/parts/source-00-{number:06d}.json"
    while not (found := list(RunPaths.of(config).cache.glob(pattern))):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found[0]


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_build_continues_with_the_parts_of_a_killed_builder(
    configured: Configure, claim: Path, tmp_path: Path, processes: int
) -> None:
    tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(3000, 1))
    config = configured()
    undisturbed = config.replace(cache="pvc://w/cache")
    script = tmp_path / "prepare.py"
    expected = contents(undisturbed, run(undisturbed))
    builder = start(config, script, processes)
    part = wait_for_part(config, 2)
    os.killpg(builder.pid, signal.SIGKILL)
    builder.wait()
    before = part.stat().st_mtime_ns
    again = start(config, script, processes)
    wait_for_part(config, 6)
    assert part.stat().st_mtime_ns == before  # reused
    assert again.wait() == 0, script.with_suffix(".log").read_text()
    assert contents(config, run(config)) == expected
    assert [f.name for f in (RunPaths.of(config).cache / "prepared").iterdir()] == [
        run(config).prepared_digest
    ]


@pytest.mark.slow
def test_workers_end_when_the_builder_is_killed(
    configured: Configure, claim: Path, tmp_path: Path
) -> None:
    tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(20_000, 1))
    config = configured()
    builder = start(config, tmp_path / "prepare.py", 2)
    wait_for_part(config, 1)
    group = subprocess.run(["pgrep", "-g", str(builder.pid)], capture_output=True, text=True)
    assert len(group.stdout.split()) > 3
    builder.kill()  # no other process of the group gets a signal
    builder.wait()
    deadline = time.monotonic() + 30
    while subprocess.run(["pgrep", "-g", str(builder.pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_an_error_in_a_worker_process_is_reported_unchanged(
    configured: Configure, claim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "processes", lambda size: 2)
    with (claim / "data/train.jsonl").open("a") as file:
        file.write("not json\n")
    error = refusal(configured())
    assert error.code == 65
    assert error.message.startswith("pvc://w/data/train.jsonl line 61: not JSON (")


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_a_killed_worker_process_is_reported_as_out_of_memory(
    configured: Configure, claim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.data.worker_pool import _Worker

    monkeypatch.setattr(build, "processes", lambda size: 2)
    send = _Worker.send

    def kill_and_send(worker: _Worker, task: object) -> None:
        worker._process.kill()
        worker._process.join()
        send(worker, task)

    monkeypatch.setattr(_Worker, "send", kill_and_send)
    error = refusal(configured())
    assert error.code == 87
    assert "was killed, probably because memory ran out; raise the memory" in error.message


def test_dropped_examples_are_counted_by_reason(configured: Configure, claim: Path) -> None:
    chats = tiny.make_messages(100, 1)
    silent = {"messages": [{"role": "user", "content": "x"}]}
    untrained = {"messages": [chats[0]["messages"][0], {**chats[0]["messages"][1], "train": False}]}
    rows = [*chats, chats[7], {"messages": []}, untrained, silent]
    tiny.write_jsonl(claim / "data/train.jsonl", rows)
    data = run(configured()).data
    assert (data.examples, data.duplicates) == (101, 1)
    assert (data.dropped_empty, data.dropped_untrained, data.invalid) == (1, 1, 1)


def test_many_rows_that_cannot_be_rendered_are_bad_data(configured: Configure, claim: Path) -> None:
    silent = {"messages": [{"role": "user", "content": "x"}]}
    tiny.write_jsonl(claim / "data/train.jsonl", [*tiny.make_messages(9, 1), silent])
    assert refusal(configured()).message == (
        "dataset.train: 1 of 10 examples cannot be rendered; at most 5 % may be left out; the "
        "first: pvc://w/data/train.jsonl line 10: no assistant turn to learn from; every "
        'conversation needs a message with the role "assistant"'
    )


LONG = " ".join(["mat"] * 300)


def test_overlong_documents_are_split(configured: Configure, claim: Path) -> None:
    texts = [LONG, "the cat sat", LONG + " end"]
    tiny.write_jsonl(claim / "data/train.jsonl", [{"text": text} for text in texts])
    config = configured(dataset={"train": [{"source": "pvc://w/data/train.jsonl"}]})
    result = run(config)
    assert (result.data.examples, result.data.split, result.data.truncated) == (3, 2, 0)
    joined = "".join(sorted(documents(config, result)))
    assert len(joined) == len("".join(texts) + "<|im_end|>" * 3)
    rows = Rows(RunPaths.of(config).prepared(result.prepared_digest), "train")
    assert max(len(rows[n].tokens) for n in range(len(rows))) <= 128


def chats_with_long(claim: Path, count: int) -> None:
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": LONG}]
    rows = [*tiny.make_messages(20, 1), *[{"messages": chat}] * count]
    tiny.write_jsonl(claim / "data/train.jsonl", rows)


def with_overlong(configured: Configure, policy: str) -> RunConfig:
    train = [{"source": "pvc://w/data/train.jsonl"}]
    return configured(dataset={"train": train, "overlong": policy})


def test_overlong_examples_are_truncated_if_configured(configured: Configure, claim: Path) -> None:
    chats_with_long(claim, 5)
    config = with_overlong(configured, "Truncate")
    result = run(config)
    assert (result.data.examples, result.data.truncated) == (25, 5)
    assert all("<|im_end|>" in text for text in documents(config, result))


OVERLONG_REFUSED = {
    "Fail": (
        1,
        65,
        "dataset.train: 1 of 21 examples are longer than sequenceLength 128 (the first: "
        "pvc://w/data/train.jsonl line 21, ",
    ),
    "Split": (
        1,
        64,
        "dataset.overlong Split works only for documents (Text), which pvc://w/data/train.jsonl "
        "line 1 is not; allowed are Auto, Drop, Truncate, Fail",
    ),
    "Auto": (3, 65, "dataset.train: 3 of 23 examples are longer than sequenceLength 128"),
}


@pytest.mark.parametrize("policy", OVERLONG_REFUSED)
def test_overlong_examples_are_refused(configured: Configure, claim: Path, policy: str) -> None:
    count, code, message = OVERLONG_REFUSED[policy]
    chats_with_long(claim, count)
    error = refusal(with_overlong(configured, policy))
    assert error.code == code
    assert error.message.startswith(message)


def test_a_fraction_is_held_out_and_duplicates_stay_in_one_split(
    configured: Configure, claim: Path
) -> None:
    rows = tiny.make_messages(300, 1)
    tiny.write_jsonl(claim / "data/train.jsonl", [*rows, *rows])
    train = [{"source": "pvc://w/data/train.jsonl"}]
    config = configured(dataset={"train": train, "validationFraction": 0.2})
    result = run(config)
    data = result.data
    assert data.examples + data.validation_examples == 600
    assert 80 < data.validation_examples < 160
    assert data.duplicates == data.examples // 2
    trained = set(documents(config, result))
    held_out = set(documents(config, result, "validation"))
    assert trained
    assert held_out
    assert not trained & held_out
    smaller = configured(dataset={"train": train, "validationFraction": 0.1})
    assert set(documents(smaller, run(smaller), "validation")) < held_out


def test_a_fraction_that_holds_out_no_example_is_refused(
    configured: Configure, claim: Path
) -> None:
    tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(4, 1))
    train = [{"source": "pvc://w/data/train.jsonl"}]
    error = refusal(configured(dataset={"train": train, "validationFraction": 0.001}))
    assert (error.code, error.message) == (
        64,
        "dataset.validationFraction 0.001: of 4 examples none is held out; change it, add data, or "
        "name dataset.validation",
    )


def weighted(configured: Configure, *weights: float | None, **changes: object) -> RunConfig:
    sources = ["train", "validation"]
    train = [
        {"source": f"pvc://w/data/{name}.jsonl", **({"weight": w} if w else {})}
        for name, w in zip(sources, weights, strict=True)
    ]
    return configured(dataset={"train": train}, **changes)


def test_weights_lengthen_the_epoch_and_do_not_change_the_rows(configured: Configure) -> None:
    plain = run(weighted(configured, None, None))
    rows = [source.rows for source in plain.data.sources]
    assert plain.data.epoch_rows == sum(rows) == plain.data.rows
    mixed = run(weighted(configured, 0.5, 0.5, jobUid="uid-2", checkpoints={"storage": "pvc://w/b"},
                         cache="pvc://w/runs/a/cache"))  # fmt: skip
    assert mixed.prepared_digest == plain.prepared_digest
    assert mixed.run_digest != plain.run_digest
    assert mixed.data.epoch_rows == 2 * max(rows)


def test_a_weight_of_a_source_without_rows_is_refused(configured: Configure, claim: Path) -> None:
    write = tiny.write_jsonl
    write(claim / "data/validation.jsonl", [{"messages": []}])
    storage = {"jobUid": "uid-2", "checkpoints": {"storage": "pvc://w/b"}}
    run(weighted(configured, None, None, cache="pvc://w/cache"))
    for cache in ("pvc://w/cache", "pvc://w/other"):
        error = refusal(weighted(configured, 0.5, 0.5, cache=cache, **storage))
        assert (error.code, error.message) == (
            65,
            "pvc://w/data/validation.jsonl: no example that can be trained on, but its weight is "
            "0.5; remove the source, or add data",
        )


def test_a_row_holds_examples_of_one_source_only(mixed: RunConfig) -> None:
    result = run(mixed)
    rows = Rows(RunPaths.of(mixed).prepared(result.prepared_digest), "train")
    assert sum(source.rows for source in result.data.sources) == len(rows)
    found = documents(mixed, result)
    ends = {0: 0}
    for number, source in enumerate(result.data.sources):
        begin = ends[number]
        ends[number + 1] = begin + source.rows
    texts = range(ends[2], ends[3])
    chats = range(ends[2])
    counts = [len(rows[n].segments) for n in range(len(rows))]
    places = [sum(counts[:n]) for n in range(len(rows) + 1)]
    for row in texts:
        assert not any("<|im_start|>" in t for t in found[places[row] : places[row + 1]])
    for row in chats:
        assert all("<|im_start|>" in t for t in found[places[row] : places[row + 1]])


def test_three_examples_are_logged_and_written_beside_the_rows(
    configured: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured()
    with caplog.at_level(logging.INFO):
        result = run(config)
    folder = RunPaths.of(config).prepared(result.prepared_digest)
    sample = (folder / "sample.txt").read_text()
    assert sample.count("pvc://w/data/train.jsonl line") == 3
    assert "<|im_start|>assistant\n«" in sample
    assert "<|im_end|>»" in sample
    assert caplog.text.count("trained parts in «»") == 3
    assert json.loads((folder / "stop_token.json").read_text()) == "<|im_end|>"


def test_progress_is_logged(
    mixed: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("finetune_trainer.data.build._LOG_INTERVAL", 0.0)
    with caplog.at_level(logging.INFO):
        run(mixed)
    logged = [r.getMessage() for r in caplog.records if "preparing data" in r.getMessage()]
    shares = [int(text.split(":")[1].split("%")[0]) for text in logged]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert "tokens/s" in logged[-1]


def test_columns_without_effect_are_listed(configured: Configure, claim: Path) -> None:
    rows = tiny.make_messages(20, 1)
    rows[3]["id"] = 7
    rows[5]["messages"][0]["time"] = "noon"
    tiny.write_jsonl(claim / "data/more.jsonl", rows)
    train = {"train": [{"source": "pvc://w/data/more.jsonl"}]}
    assert run(configured(dataset=train)).data.ignored_columns == ["id", "messages[].time"]


def test_special_tokens_in_the_text_are_counted_or_refused(
    configured: Configure, claim: Path
) -> None:
    rows = tiny.make_messages(100, 1)
    rows[3]["messages"][0]["content"] = "what does <|im_end|> mean"
    tiny.write_jsonl(claim / "data/more.jsonl", rows)
    train = [{"source": "pvc://w/data/more.jsonl"}]
    data = run(configured(dataset={"train": train})).data
    assert (data.examples, data.with_special_tokens, data.invalid) == (100, 1, 0)
    data = run(configured(dataset={"train": train, "specialTokens": "Refuse"})).data
    assert (data.examples, data.with_special_tokens, data.invalid) == (99, 0, 1)


# It writes the reasoning of the last message only.
DROPPING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['reasoning_content'] %}"
    "{{ '<think>' + message['reasoning_content'] + '</think>' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_reasoning_that_the_template_leaves_out_is_counted_or_refused(
    configured: Configure, claim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [row for row in tiny.make_messages(150, 1) if len(row["messages"]) > 2][:60]
    for message in rows[3]["messages"][1::2]:
        message["reasoning_content"] = "fish for a child"
    tiny.write_jsonl(claim / "data/more.jsonl", rows)
    dataset = {
        "train": [{"source": "pvc://w/data/more.jsonl"}],
        "chatTemplate": {"inline": DROPPING},
    }
    config = configured(dataset=dataset | {"lossOn": "LastAssistant"})
    result = run(config)
    assert (result.data.examples, result.data.invalid) == (60, 0)
    card = json.loads(contents(config, result)["card.json"])
    assert card["reasoningLeftOut"] == 1
    assert "reasoning of messages that are not trained on: 1" in caplog.text
    data = run(configured(dataset=dataset)).data
    assert (data.examples, data.invalid) == (59, 1)
    assert "leaves out or changes 'reasoning_content' of message 2" in caplog.text


def test_nulls_that_parquet_does_not_keep_are_logged_once(
    configured: Configure, claim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tiny.make_messages(600, 1)
    for number, row in enumerate(rows):
        function = {"name": "f", "arguments": {f"x{number % 2}": None, "y": 1}}
        row["messages"][1]["tool_calls"] = [{"function": function}]
    write_parquet(claim / "data/calls.parquet", rows)
    template = tiny.TEMPLATE.replace(
        "message['content'] +",
        "message['content'] + (message.tool_calls | tojson if message.tool_calls else '') +",
    )
    train = [{"source": "pvc://w/data/calls.parquet"}]
    dataset = {"train": train, "chatTemplate": {"inline": template}, "overlong": "Truncate"}
    with caplog.at_level(logging.WARNING):
        result = run(configured(dataset=dataset))
    assert result.data.examples == 600
    assert [record.getMessage() for record in caplog.records if "null" in record.message] == [
        "pvc://w/data/calls.parquet: nulls in the arguments and parameters of tools in the column "
        "'messages' are left out, because it stores structs, in which a null and a missing "
        "key are the same; store them as JSON text to keep them"
    ]
