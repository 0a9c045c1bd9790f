"""Checks the files of a model folder that the finished model takes over, before a device is held.

Nothing reads some of them before the export, and a model with a file that its users cannot load is
of no use to them.
"""

import json
import logging
from pathlib import Path
from typing import Any

from finetune_api.base import Object
from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError, one_line, reading
from finetune_trainer.export import metadata_files

_READ = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_COPY = "correct it, or copy it again (a model of the Hub: copy it to a claim first)"
_log = logging.getLogger(__name__)


def check(model: Path, address: str) -> None:
    """Raise TrainerError for a file that the export, or a user of the model, cannot read.

    64 names the file, what was found and a remedy; 77 and 66 name a file that cannot be opened.
    A broken file that only other programs read is copied as it is, with a warning.
    """
    with reading(address):
        for file in metadata_files.copied(model):
            if file.suffix == ".json":
                _check_object(file, address)
            elif file.suffix == ".jinja":
                _check_text(file, model, address)
            else:
                file.open("rb").close()
        _check_templates(model, address)
        _check_generation(model, address)


def _check_object(file: Path, address: str) -> None:
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        problem = f"is not JSON ({error})"
    else:
        if isinstance(found, dict):
            return
        problem = f"holds a JSON {_kind(found)}, not an object"
    if file.name not in _READ:
        _log.warning("%s: %s %s; it is copied as it is", address, file.name, problem)
        return
    raise _refused(address, file.name, problem)


def _check_text(file: Path, model: Path, address: str) -> None:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text ({error.reason} at byte {error.start})"
        name = file.name if file.parent == model else f"{file.parent.name}/{file.name}"
        raise _refused(address, name, problem) from error


def _check_templates(model: Path, address: str) -> None:
    """Check the chat templates in tokenizer_config.json: one text, or a list with names."""
    file = model / "tokenizer_config.json"
    inside = json.loads(file.read_bytes()).get("chat_template") if file.is_file() else None
    if inside is None or isinstance(inside, str):
        return
    if not isinstance(inside, list):
        problem = f"has a chat_template that is a JSON {_kind(inside)}, not text"
        raise _refused(address, file.name, problem)
    for number, entry in enumerate(inside, 1):
        texts = [entry.get(key) for key in ("name", "template")] if isinstance(entry, dict) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            problem = f"has a chat_template whose entry {number} is not a name with a template"
            raise _refused(address, file.name, problem)


def _check_generation(model: Path, address: str) -> None:
    """Check that transformers accepts generation_config.json; otherwise it loads no such model."""
    from transformers import GenerationConfig

    file = model / "generation_config.json"
    if not file.is_file():
        return
    settings: Object = json.loads(file.read_bytes())
    try:
        GenerationConfig.from_dict(settings)
    except Exception as error:  # transformers raises exceptions of any type
        problem = f"is refused by transformers ({one_line(error)})"
        raise _refused(address, file.name, problem) from error


def _refused(address: str, file: str, problem: str) -> TrainerError:
    text = f"{address}: {file} {problem}, and the finished model would have the same file; {_COPY}"
    return TrainerError(ExitCode.BAD_CONFIGURATION, text)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", str: "string", list: "list", dict: "object"}
    return names.get(type(value), "number")
