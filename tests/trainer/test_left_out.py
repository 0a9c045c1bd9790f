"""What is left out is named, what is doubtful is a warning, and remedies can be followed."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.data import block, tokenize_block, worker_pool
from finetune_trainer.data.dropped_examples import ExampleCounts
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import tiny
from tests.trainer.test_build import LONG, chats_with_long, refusal, run, with_overlong

Configure = Callable[..., RunConfig]
TRAIN = "pvc://w/data/train.jsonl"


def sources(*names: str) -> list[dict[str, str]]:
    return [{"source": f"pvc://w/data/{name}"} for name in names]


def test_the_first_three_of_each_kind_are_named(
    configured: Configure, claim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chats = tiny.make_messages(200, 1)
    user, assistant = chats[0]["messages"][:2]
    silent = {"messages": [user]}
    untrained = {"messages": [user, {**assistant, "train": False}]}
    long = {"messages": [user, {**assistant, "content": LONG}]}
    tiny.write_jsonl(claim / "data/train.jsonl", [*chats, silent, *[untrained] * 4, long])
    with caplog.at_level(logging.WARNING):
        result = run(configured())
    named = [(one.file, one.row, one.why) for one in result.left_out or []]
    assert sorted(named) == [
        (TRAIN, "line 201", 'no assistant turn to learn from; every conversation needs a message '
         'with the role "assistant"'),
        *((TRAIN, f"line {n}", "none of its tokens is trained on") for n in (202, 203, 204)),
        (TRAIN, "line 206", next(why for _, row, why in named if row == "line 206")),
    ]  # fmt: skip
    assert " tokens, sequenceLength is 128" in named[-1][2]
    for one in result.left_out or []:
        assert f"left out: {one}" in caplog.text
    card = RunPaths.of(configured()).prepared(result.prepared_digest) / "card.json"
    assert json.loads(card.read_text())["leftOut"][0]["row"] == named[0][1]
    assert run(configured()).left_out == result.left_out  # from the cache


def test_files_without_a_row_are_named(configured: Configure, claim: Path) -> None:
    (claim / "data/set").mkdir()
    shutil.copy(claim / "data/validation.jsonl", claim / "data/set/a.jsonl")
    (claim / "data/set/b.jsonl").write_text("")
    (claim / "data/set/c.jsonl").write_text("\n \n\n")
    result = run(configured(dataset={"train": sources("set")}))
    assert [str(one) for one in result.left_out or []] == [
        "pvc://w/data/set/b.jsonl: no row in it",
        "pvc://w/data/set/c.jsonl: no row in it",
    ]


def test_one_empty_source_of_two_is_a_warning(configured: Configure, claim: Path) -> None:
    (claim / "data/none.jsonl").write_text("\n")
    result = run(configured(dataset={"train": sources("train.jsonl", "none.jsonl")}))
    assert result.warnings == [
        "pvc://w/data/none.jsonl has no row, so nothing is learned from it; add rows, or remove it"
    ]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_data_without_any_row_is_refused_by_file(
    configured: Configure, claim: Path, text: str
) -> None:
    (claim / "data/none.jsonl").write_text(text)
    assert refusal(configured(dataset={"train": sources("none.jsonl")})).message == (
        "dataset.train: no row in pvc://w/data/none.jsonl; add some"
    )


def test_validation_that_names_the_training_file_is_a_warning(
    configured: Configure, claim: Path
) -> None:
    dataset = {"train": sources("train.jsonl"), "validation": sources("train.jsonl")}
    assert run(configured(dataset=dataset)).warnings == [
        "60 of the 60 examples of dataset.validation (100 %) are in dataset.train as well "
        "(pvc://w/data/train.jsonl is in both), so the validation loss shows what was memorized; "
        "remove them from one of the two"
    ]


def test_validation_that_shares_examples_with_training_is_a_warning(
    configured: Configure, claim: Path
) -> None:
    rows = tiny.make_messages(400, 1)
    for shared, warned in ((2, False), (3, True)):
        tiny.write_jsonl(claim / "data/train.jsonl", rows[:200])
        tiny.write_jsonl(claim / "data/other.jsonl", rows[200 - shared : 400 - shared])
        dataset = {"train": sources("train.jsonl"), "validation": sources("other.jsonl")}
        found = run(configured(dataset=dataset)).warnings or []
        assert len(found) == warned
        if warned:
            assert found[0].startswith("3 of the 200 examples of dataset.validation (1.5 %) are in")


@pytest.mark.parametrize(("rendered", "warned"), [(2, False), (3, True)])
def test_texts_that_look_rendered_already_are_a_warning(
    configured: Configure, claim: Path, rendered: int, warned: bool
) -> None:
    texts = ["<|im_start|>user\nmat<|im_end|>"] * rendered + ["mat sat"] * (200 - rendered)
    rows = [{"text": f"{text} {number}"} for number, text in enumerate(texts)]
    tiny.write_jsonl(claim / "data/train.jsonl", rows)
    expected = (
        f"{rendered} of the {len(rows)} examples of dataset.train (1.5 %) contain special tokens "
        "of the tokenizer, such as the marks of a chat template, and are trained on with them as "
        "plain characters; write conversations as messages"
    )
    dataset = {"train": sources("train.jsonl")}
    assert (run(configured(dataset=dataset)).warnings or []) == ([expected] if warned else [])


def test_no_remedy_exceeds_the_positions_of_the_model(configured: Configure, claim: Path) -> None:
    positions = json.loads((claim / "model/config.json").read_text())["max_position_embeddings"]
    chat = tiny.make_messages(1, 1)[0]["messages"][:1]
    long = " ".join(["mat"] * (positions + 10))
    rows = [{"messages": [*chat, {"role": "assistant", "content": long}]}] * 2
    tiny.write_jsonl(claim / "data/train.jsonl", [*tiny.make_messages(20, 1), *rows])
    for policy, kept in (("Drop", "99 %"), ("Fail", "all")):
        assert refusal(with_overlong(configured, policy)).message.endswith(
            f"; even training.sequenceLength {positions}, the largest for this model, does not "
            f"keep {kept}: divide the examples, or set dataset.overlong to Truncate"
        )
    chats_with_long(claim, 3)
    assert "keeps 99 %" in refusal(with_overlong(configured, "Drop")).message


def test_the_names_of_later_parts_are_added_up_to_three() -> None:
    first, later = ExampleCounts(), ExampleCounts()
    for number in range(2):
        first.leave_out("empty", f"pvc://w/a b.jsonl line {number}", "x")
        later.leave_out("empty", f"pvc://w/c.parquet row {number}", "y")
    first.add(later)
    assert first.left_out == {
        "empty": [
            ("pvc://w/a b.jsonl", "line 0", "x"),
            ("pvc://w/a b.jsonl", "line 1", "x"),
            ("pvc://w/c.parquet", "row 0", "y"),
        ]
    }


def test_a_text_that_needs_too_much_memory_is_refused_by_name(
    configured: Configure, claim: Path
) -> None:
    most = tokenize_block.MAX_CHARACTERS
    rows = [{"text": "the cat"}, {"text": "a" * (most + 1)}]
    tiny.write_jsonl(claim / "data/train.jsonl", rows)
    assert refusal(configured(dataset={"train": sources("train.jsonl")})).message == (
        f"{TRAIN} line 2: {most + 1} characters of text; at most {most} are allowed in a row: "
        "divide or remove it"
    )


def test_long_rows_are_tokenized_in_one_process_at_a_time() -> None:
    """So that the memory of all processes is that of one long row and of many short ones."""
    events: list[str] = []

    class Worker:
        def __init__(self) -> None:
            self.sent: list[str] = []

        def send(self, task: worker_pool.Task) -> None:
            self.sent.append(task[1].name)
            events.append(f"send {task[1].name}")

        def receive(self) -> None:
            events.append(f"receive {self.sent.pop(0)}")

    pool = worker_pool.WorkerPool.__new__(worker_pool.WorkerPool)
    pool._workers = [Worker(), Worker(), Worker()]  # type: ignore[assignment]
    sizes = {"a": 10, "B": 3 * block.BLOCK_BYTES, "c": 10, "D": 3 * block.BLOCK_BYTES, "e": 10}
    tasks = [(None, block.Block(name, "lines", 1, b" " * size, 0)) for name, size in sizes.items()]
    found = [task[1].name for task, _ in pool.in_order(iter(tasks))]  # type: ignore[arg-type]
    assert found == list(sizes)
    assert events.index("receive B") < events.index("send D")
    assert events.index("send c") < events.index("receive B")
