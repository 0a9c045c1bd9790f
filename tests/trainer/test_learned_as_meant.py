"""A property of generated rows of every format: no row is learned in another way than it was meant.

A row is either learned (then its decoded tokens and its trained part equal what a reference says,
which is written down here independently), or it is refused or counted by name. The generator writes
a row and the expectation at the same time, from the same draws.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data import read
from finetune_trainer.data.example import Example, UnfitRowError
from finetune_trainer.data.render import Document, Dropped, Rendered, Renderer
from finetune_trainer.data.shapes import Shape
from tests.trainer import tiny

ROWS = 10_000
START, END = "<|im_start|>", "<|im_end|>"
NAMES = (
    *("messages", "role", "content", "tools", "prompt", "completion"),
    *("instruction", "input", "output", "text"),
)
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n{}"
    "\n\n### Input:\n{}\n\n### Response:\n",
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:\n",
)
# Names of keys -> values with which a row must be refused, and those without any effect.
CONTENTS: list[Any] = [["x.png"], "x.png", {"bytes": "x"}, [{"role": "user", "content": "x"}]]
NOTHING: list[Any] = [None, "", " ", [], {}, "[]", "null", [None], {"bytes": None}]
MEDIA = ("images", "image", "videos", "video", "audios", "audio", "objects")
COMPETING = (
    *("chosen", "rejected", "rejected_response", "rejected_messages"),
    *("preferred_output", "non_preferred_output"),
)
REFUSED: list[tuple[tuple[str, ...], list[Any]]] = [
    (MEDIA, CONTENTS),
    (COMPETING, [*CONTENTS, False]),
    (("kto_tag",), [True, False, 1]),
    (("functions", "function_call", "documents", "chat_template_kwargs"), CONTENTS),
]
REFUSED_WITH_ANSWERS: list[tuple[tuple[str, ...], list[Any]]] = [
    (("label",), [True, False, "True", "false"]),
    (("train", "training", "loss"), [False, "false"]),
    (("masked",), [True, "True"]),
    (("weight",), [0, 0.5, 2, "0.5"]),
]
UNKNOWN: list[tuple[str, Any]] = [
    *(("id", 7), ("source", "web"), ("score", 0.5), ("split", None), ("lang", ["de"])),
    *(("parallel_tool_calls", True), ("label", 3), ("meta", {"a": None})),
]
PIECES = [
    *tiny.VOCABULARY,
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "größer",
        "猫",
        "🙂",
        "<",
        "|",
        "<|im_",
        "im_end|>",
        "</s>",
        "<image>",
    ),
]


@dataclass
class Case:
    """A row, and what must become of it.

    `text` is everything that the tokens stand for, with special tokens as ⟦…⟧; `trained` are the
    parts of it that carry loss. `refused` are the reasons to refuse the row, each a part of the
    message about it; `dropped` is the reason to drop it. One of several reasons is enough.
    """

    row: dict[str, Any]
    text: str = ""
    trained: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    dropped: Dropped | None = None
    from_the_first: bool = False
    unused: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Setting:
    """A format with the settings of a job."""

    shape: str
    loss_on: str | None = None
    marked: bool = False
    sharegpt: bool = False
    begins: bool = False  # the tokenizer adds a token before every text
    refuse: bool = False


SETTINGS = [
    *(Setting("messages", loss, marked) for loss in (None, "LastAssistant", "All")
      for marked in (False, True)),
    *(Setting("messages", loss, sharegpt=True) for loss in (None, "LastAssistant")),
    Setting("messages", refuse=True),
    *(Setting("alpaca chat", loss, marked) for loss, marked in
      ((None, False), ("LastAssistant", True), ("All", False))),
    *(Setting("alpaca", loss, begins=begins) for loss, begins in ((None, False), ("All", True))),
    *(Setting("pair", loss, begins=begins) for loss in (None, "All") for begins in (False, True)),
    Setting("pair", refuse=True),
    *(Setting("text", begins=begins) for begins in (False, True)),
    Setting("text", refuse=True),
]  # fmt: skip


class Generator:
    """A generator of rows for one setting."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting, self._draw = setting, random.Random(seed)
        self._has_special = False

    def case(self) -> Case:
        self._has_special = False
        kinds: dict[str, Callable[[], Case]] = {
            "messages": self._messages,
            "alpaca chat": self._alpaca_chat,
            "alpaca": self._alpaca,
            "pair": self._pair,
            "text": self._text,
        }
        case = kinds[self._setting.shape]()
        self._add_keys(case)
        if self._has_special and self._setting.refuse:
            case.refused.append("dataset.specialTokens is Refuse")
        return case

    def _chance(self, share: float) -> bool:
        return self._draw.random() < share

    def _content(self, *, blank: float = 0.05) -> str:
        if self._chance(blank):
            return self._draw.choice(["", " ", "\n \t"])
        pieces = self._draw.choices(PIECES, k=self._draw.randint(1, 6))
        if self._chance(0.12):
            pieces.insert(self._draw.randint(0, len(pieces)), self._draw.choice([START, END]))
        return " ".join(pieces) if self._chance(0.5) else "".join(pieces)

    # Conversations

    def _messages(self) -> Case:
        names = ("from", "value") if self._setting.sharegpt else ("role", "content")
        roles = {"user": "human", "assistant": "gpt"} if self._setting.sharegpt else {}
        meant: list[tuple[str, str, bool]] = []  # role, text, whether flags let it be trained
        if self._chance(0.2):
            meant.append(("system", self._content(), True))
        for number in range(self._draw.randint(0, 3) if self._chance(0.1) else 2):
            role = "assistant" if number % 2 else "user"
            meant.append((role, self._content(blank=0.12), True))
        row: dict[str, Any] = {}
        case = Case(row)
        messages = []
        for place, (role, text, _) in enumerate(meant):
            message: dict[str, Any] = {names[0]: roles.get(role, role), names[1]: text}
            on = True
            if self._chance(0.15):
                name = self._draw.choice(["train", "training", "loss", "weight", "masked"])
                value = self._draw.choice([True, False, 0, 1, 1.0, None])
                message[name] = value
                on = value is None or bool(value) == (name != "masked")
            meant[place] = (role, text, on)
            messages.append(message)
        self._spoil_message(messages, case)
        key = "conversations" if self._setting.sharegpt else "messages"
        row[key] = json.dumps(messages) if self._chance(0.1) else messages
        system = self._add_system(case)
        own = meant[0][1] if meant and meant[0][0] == "system" else None
        if system and own is None:
            meant.insert(0, ("system", system, True))
        elif system and own is not None and own.strip() != system.strip():
            case.refused.append("differ")
        self._expect_chat(case, meant)
        return case

    def _spoil_message(self, messages: list[dict[str, Any]], case: Case) -> None:
        """Give one of the messages a key or a value that is refused, or one without effect."""
        if not messages or not self._chance(0.15):
            return
        message = self._draw.choice(messages)
        content = "value" if self._setting.sharegpt else "content"
        kind = self._draw.randint(0, 5)
        if kind == 0:
            name = self._draw.choice([*MEDIA, "function_call", "refusal", "tools", "loss_mask"])
            message[name] = self._draw.choice(CONTENTS)
            case.refused.append(repr(name))
        elif kind == 1:
            message[self._draw.choice([*MEDIA, "function_call", "refusal"])] = self._draw.choice(
                NOTHING
            )
        elif kind == 2:
            name = self._draw.choice(["train", "weight", "masked"])
            message[name] = self._draw.choice([0.5, 2, "yes", []])
            case.refused.append(repr(name))
        elif kind == 3:
            message[content] = self._draw.choice([None, 5, {"a": 1}, True])
            case.refused.append("'content'")
        elif kind == 4:
            message["id"] = 3
            case.unused.add("conversations[].id" if self._setting.sharegpt else "messages[].id")
        else:
            message["from" if self._setting.sharegpt else "role"] = "narrator"
            case.refused.append("role 'narrator'")

    def _alpaca_chat(self) -> Case:
        asked, given, answer = self._content(), "", self._content(blank=0.1)
        row: dict[str, Any] = {"instruction": asked, "output": answer}
        case = Case(row)
        if self._chance(0.5):
            given = row["input"] = self._content(blank=0.3)
        meant = []
        if self._chance(0.3):
            history = [[self._content(), self._content()] for _ in range(self._draw.randint(0, 2))]
            row["history"] = json.dumps(history) if self._chance(0.3) else history
            for question, reply in history:
                if any(text.strip() for pair in history for text in pair):
                    meant += [("user", question, True), ("assistant", reply, True)]
            if self._chance(0.1):
                row["history"] = [["only a question"]]
                case.refused.append("'history'")
        asked = f"{asked}\n\n{given}" if given else asked
        meant += [("user", asked, True), ("assistant", answer, True)]
        if system := self._add_system(case):
            meant.insert(0, ("system", system, True))
        self._expect_chat(case, meant)
        return case

    def _expect_chat(self, case: Case, meant: list[tuple[str, str, bool]]) -> None:
        self._note_special([text for _, text, _ in meant])
        meant = [
            (role, text.removesuffix(END) if role == "assistant" else text, on)
            for role, text, on in meant
        ]
        self._has_special = False
        self._note_special([text for _, text, _ in meant])
        case.text = "".join(f"⟦{START}⟧{role}\n{text}⟦{END}⟧\n" for role, text, _ in meant)
        answers = [(text, on) for role, text, on in meant if role == "assistant"]
        if case.refused:
            return
        if not any(text.strip() for _, text, _ in meant):
            case.dropped = Dropped.EMPTY
        elif not answers:
            case.refused.append("no assistant turn to learn from")
        elif self._setting.loss_on == "All":
            if not all(on for _, _, on in meant):
                case.refused.append("excluded from training, but lossOn is All")
            case.trained, case.from_the_first = [case.text], True
        else:
            wanted = answers[-1:] if self._setting.loss_on else answers
            kept = [text for text, on in wanted if on]
            case.trained = [f"{text}⟦{END}⟧" for text in kept if text.strip()]
            if not case.trained:
                case.dropped = Dropped.EMPTY if kept else Dropped.UNTRAINED

    # Plain text

    def _alpaca(self) -> Case:
        asked, given, answer = self._content(), "", self._content(blank=0.1)
        row: dict[str, Any] = {"instruction": asked, "output": answer}
        case = Case(row)
        if self._chance(0.5):
            given = row["input"] = self._content(blank=0.3)
        prompt = ALPACA[0].format(asked, given) if given else ALPACA[1].format(asked)
        if system := self._add_system(case):
            prompt = f"{system}\n\n{prompt}"
        self._refuse(case, "history", [["a", "b"]])
        self._refuse(case, "tools", [{"name": "f"}])
        self._refuse(case, "context", "given")
        self._expect_pair(case, prompt, answer)
        return case

    def _pair(self) -> Case:
        prompt, completion = self._content(), self._content(blank=0.1)
        case = Case({"prompt": prompt, "completion": completion})
        if self._chance(0.03):
            case.row["completion"] = self._draw.choice([None, 5, ["a"], {"a": "b"}])
            case.refused.append("'completion'")
        if system := self._add_system(case):
            prompt = f"{system}\n\n{prompt}"
        self._refuse(case, "history", [["a", "b"]])
        self._refuse(case, "input", "given")
        self._expect_pair(case, prompt, completion)
        return case

    def _text(self) -> Case:
        text = self._content(blank=0.08)
        case = Case({"text": text})
        self._expect_plain(case, "", text, everything=True)
        return case

    def _refuse(self, case: Case, name: str, value: Any) -> None:
        if self._chance(0.03):
            case.row[name] = value
            case.refused.append(repr(name))

    def _expect_pair(self, case: Case, prompt: str, completion: str) -> None:
        everything = self._setting.loss_on == "All"
        self._expect_plain(case, prompt, completion, everything=everything)

    def _expect_plain(self, case: Case, before: str, after: str, *, everything: bool) -> None:
        if self._setting.begins:
            if before:
                before = before.removeprefix(START)
            else:
                after = after.removeprefix(START)
        after = after.removesuffix(END)
        self._note_special([before + after])
        if case.refused:
            return
        begin = f"⟦{START}⟧" if self._setting.begins else ""
        case.text = f"{begin}{before}{after}⟦{END}⟧"
        learned = before + after if everything else after
        if not learned.strip():
            case.dropped = Dropped.EMPTY
        case.trained = [f"{learned}⟦{END}⟧"]
        case.from_the_first = not begin and (everything or not before)

    # Keys beside the content

    def _add_system(self, case: Case) -> str:
        if not self._chance(0.2):
            return ""
        system = self._content(blank=0.2)
        case.row[self._draw.choice(["system", "system_prompt"])] = system
        if self._chance(0.1):
            for name in ("system", "system_prompt"):
                other = case.row.setdefault(name, self._draw.choice([system, "another"]))
                if other.strip() and system.strip() and other.strip() != system.strip():
                    case.refused.append("differ")
                elif other.strip() and not system.strip():
                    system = other
        return system if system.strip() else ""

    def _add_keys(self, case: Case) -> None:
        rules = REFUSED + (REFUSED_WITH_ANSWERS if self._setting.shape != "text" else [])
        if self._chance(0.08):
            names, values = self._draw.choice(rules)
            name = self._draw.choice(names)
            case.row[name] = self._draw.choice(values)
            case.refused.append(repr(name))
        elif self._chance(0.1):
            name, nothing = self._draw.choice(self._draw.choice(REFUSED)[0]), self._draw
            case.row[name] = nothing.choice(NOTHING)
            if name in MEDIA and "<image>" in self._texts(case.row):
                case.refused.append("'<image>' stands for a part of")
        if self._chance(0.2):
            name, value = self._draw.choice(UNKNOWN)
            if name not in case.row:
                case.row[name] = value
                case.unused.add(name)

    def _texts(self, row: dict[str, Any]) -> str:
        """Return what is rendered of a row, with blanks between its parts."""
        found = [row.get(k) for k in ("prompt", "completion", "instruction", "input", "output",
                                      "text", "system", "system_prompt")]  # fmt: skip
        texts = [text for text in found if isinstance(text, str)]
        for key in ("messages", "conversations", "history"):
            value = row.get(key, [])
            value = json.loads(value) if isinstance(value, str) else value
            for item in value:
                parts = item.values() if isinstance(item, dict) else item
                texts += [part for part in parts if isinstance(part, str)]
        return "\n".join(texts)

    def _note_special(self, texts: list[str]) -> None:
        if any(token in text for text in texts for token in (START, END)):
            self._has_special = True


def tokenizer_of(setting: Setting) -> Any:
    tokenizer = tiny.make_tokenizer(tiny.MARKED_TEMPLATE if setting.marked else tiny.TEMPLATE)
    if setting.begins:
        number = tokenizer.convert_tokens_to_ids(START)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, number)]
        )
    return tokenizer


class Decoder:
    """Decodes tokens independently of the tokenizers' decoders; special tokens become ⟦…⟧."""

    def __init__(self, tokenizer: Any) -> None:
        self._bytes = _byte_of_character()
        self._token = {number: token for token, number in tokenizer.get_vocab().items()}
        self._special = set(tokenizer.convert_tokens_to_ids([START, END]))

    def decode(self, tokens: list[int]) -> bytes:
        found = b""
        for number in tokens:
            token = self._token[number]
            if number in self._special:
                found += f"⟦{token}⟧".encode()
            else:
                found += bytes(self._bytes[character] for character in token)
        return found

    def parts(self, document: Document) -> list[bytes]:
        """Return the text of each run of trained tokens."""
        runs: list[list[int]] = []
        before = False
        for number, on in zip(document.tokens.tolist(), document.trained.tolist(), strict=True):
            if on and not before:
                runs.append([])
            if on:
                runs[-1].append(number)
            before = bool(on)
        return [self.decode(run) for run in runs]


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + place): b for place, b in enumerate(other)}


def learned(shape: Shape, renderer: Renderer, path: Path) -> Iterator[tuple[Any, Rendered | str]]:
    """Yield (example, what became of it) of every row of a file, as preparation reads it."""
    found: list[Example | TrainerError] = []
    for block in read.blocks(path, "x", None):
        for row in read.rows(block):
            try:
                found.append(shape.example(row))
            except TrainerError as error:
                found.append(error)
    documents = iter(renderer.render([one for one in found if isinstance(one, Example)]))
    for one in found:
        if isinstance(one, Example):
            yield one, next(documents)
        else:
            yield None, one.message


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_row_is_learned_as_meant_or_refused_or_counted(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    each = -(-ROWS // len(SETTINGS))
    for seed, setting in enumerate(SETTINGS):
        generator = Generator(setting, seed)
        cases = [generator.case() for _ in range(each)]
        path = tiny.write_jsonl(tmp_path / f"{seed}.jsonl", [case.row for case in cases])
        keys = {name: name for name in NAMES}
        if setting.sharegpt:
            keys |= {"messages": "conversations", "role": "from", "content": "value"}
        tokenizer = tokenizer_of(setting)
        rule: Any = "Refuse" if setting.refuse else "Plain"
        renderer = Renderer(tokenizer, setting.loss_on, special_tokens=rule)
        decoder = Decoder(tokenizer)
        shape = Shape(setting.shape, keys)  # type: ignore[arg-type]
        found = list(learned(shape, renderer, path))
        assert len(found) == len(cases)
        for case, (example, result) in zip(cases, found, strict=True):
            outcome = judged(case, example, result, decoder)
            outcomes[f"{setting.shape}, {outcome}"] += 1
    assert sum(outcomes.values()) >= ROWS
    for shape_name in ("messages", "alpaca chat", "alpaca", "pair", "text"):
        for outcome in ("learned", "refused", "dropped"):
            assert outcomes[f"{shape_name}, {outcome}"] > 30, outcomes


def judged(case: Case, example: Example | None, result: Rendered | str, decoder: Decoder) -> str:
    """Return what became of a row; fail if it is not what the reference says."""
    shown = f"{case}\n{example}\n{result}"
    if isinstance(result, (str, UnfitRowError)):
        message = result if isinstance(result, str) else result.message
        assert any(reason in message for reason in case.refused), shown
        return "refused"
    assert example is not None
    assert set(example.unused) >= case.unused, shown
    if isinstance(result, Dropped):
        if (
            case.dropped is None and not case.refused
        ):  # the only token of the text is the first one, which has no loss
            assert result is Dropped.EMPTY, shown
            assert case.from_the_first or not case.row["prompt"].strip(), shown
            assert len(case.trained[0].removesuffix(f"⟦{END}⟧")) < 12, shown
        else:
            assert result is case.dropped or case.from_the_first, shown
        return "dropped"
    assert not case.refused, shown
    assert case.dropped is None, shown
    assert decoder.decode(result.tokens.tolist()).decode() == case.text, shown
    parts = decoder.parts(result)
    first = decoder.decode(result.tokens[:1].tolist())
    if case.from_the_first:  # nothing predicts the first token
        parts = [first + b"".join(parts)]
    elif parts:
        begin = decoder.decode(result.tokens[result.trained == 1][:1].tolist())
        # A completion may begin within a token, together with the end of the prompt.
        if len(parts[0]) < len(case.trained[0].encode()) and result.trained[1]:
            begin, parts[0] = first, first + parts[0]
        more = len(parts[0]) - len(case.trained[0].encode())
        assert 0 <= more < len(begin), shown
        assert more == 0 or case.row.keys() & {"prompt", "instruction"}, shown
        parts[0] = parts[0][more:]
    assert [part.decode() for part in parts] == case.trained, shown
    return "learned"
