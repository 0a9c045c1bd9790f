"""The files of the exported folder other than weights: the base model's, adapted to the training.

Servers read these files with other versions of transformers and with other programs. Keys that
newer versions of transformers rename (RoPE, tokenizer class) keep the names that the base model
uses, because older readers ignore the new names without an error and compute something else.
"""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune_api.base import Object
from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.template import Conversation, end_of_turn
from finetune_trainer.export.weights import Contents
from finetune_trainer.model.folder import token_id_list

# Weight files are not copied: some servers would load a second set (consolidated*.safetensors,
# *.bin, an optimizer's state) instead of the trained weights.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model*",
    "*.spm",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
_CONFIG, _GENERATION, _TOKENIZER = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
)
_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"


def write(base: Path, out: Path, model: Contents, template: str | None = None) -> None:
    """Copy the base model's files to `out` and adapt them to the trained model.

    `template` is the chat template of the training data if it is not the base model's.
    """
    settings = _read(base / _CONFIG)
    for file in copied(base):
        if file.parent == base:
            shutil.copyfile(file, out / file.name)
    _write(out / _CONFIG, config(settings, model.dtype_name, untied=model.untied))
    _write_templates(out, {"default": template} if template else templates(base))
    generation = _read(base / _GENERATION)
    adapted = with_stop_tokens(generation, settings, _stop_tokens(out))
    if adapted != generation:
        _write(out / _GENERATION, adapted)


def copied(base: Path) -> list[Path]:
    """Return the files of a base model that the export copies or reads, besides config.json."""
    wanted = [*_COPIED, "*.py"] if _read(base / _CONFIG).get("auto_map") else _COPIED
    beside = [
        file
        for file in sorted(base.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in wanted)
    ]
    return beside + sorted((base / _MORE_TEMPLATES).glob("*.jinja"))


def config(base: Object, dtype: str, *, untied: bool) -> Object:
    """Return the base model's config.json with the type of the weights, under both its names."""
    changed = base | {"dtype": dtype, "torch_dtype": dtype}
    return changed | {"tie_word_embeddings": False} if untied else changed


def templates(base: Path) -> dict[str, str]:
    """Return the chat templates by name.

    As in transformers, template files take precedence over tokenizer_config.json.
    """
    files = {
        path.stem: path.read_text(encoding="utf-8")
        for path in (base / _MORE_TEMPLATES).glob("*.jinja")
    }
    if (base / _TEMPLATE).is_file():
        files["default"] = (base / _TEMPLATE).read_text(encoding="utf-8")
    if files:
        return files
    inside = _read(base / _TOKENIZER).get("chat_template")
    if isinstance(inside, list):
        return {entry["name"]: entry["template"] for entry in inside}
    return {"default": inside} if inside else {}


def _write_templates(out: Path, found: dict[str, str]) -> None:
    """Write templates to files and to tokenizer_config.json, the only place that TGI reads."""
    if not found:
        return
    for name, text in found.items():
        path = out / _TEMPLATE if name == "default" else out / _MORE_TEMPLATES / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    inside: Any = found.get("default")
    if len(found) > 1:
        inside = [{"name": name, "template": text} for name, text in sorted(found.items())]
    settings = _read(out / _TOKENIZER)
    if settings.get("chat_template") != inside:
        _write(out / _TOKENIZER, settings | {"chat_template": inside})


def with_stop_tokens(generation: Object, settings: Object, stops: list[int]) -> Object:
    """Return a generation_config.json with every token at which the model learned to stop.

    config.json (`settings`) is not changed, because its eos_token_id is that of pre-training.
    """
    source = generation or settings
    known = token_id_list(source.get("eos_token_id", settings.get("eos_token_id")))
    missing = [token for token in dict.fromkeys(stops) if token not in known]
    if not missing:
        return generation
    keys = ("bos_token_id", "pad_token_id")
    start = generation or {key: settings[key] for key in keys if key in settings}
    ids = known + missing
    return start | {"eos_token_id": ids if len(ids) > 1 else ids[0]}


def _stop_tokens(folder: Path) -> list[int]:
    """Return the stop token of the tokenizer, for documents, and of the chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}

        def render(messages: Conversation) -> str:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False)
            return text

        found.append(special.get(end_of_turn(render, special) or ""))
    return [token for token in found if token is not None]


def _read(file: Path) -> Object:
    """Return the contents of a JSON file, or an empty object if the file does not exist.

    Raises TrainerError 64 for a file that was damaged since preparation checked it.
    """
    if not file.is_file():
        return {}
    try:
        values: Object = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{file.name} of the base model is not JSON ({error}); correct it, or copy it again",
        ) from error
    return values


def _write(file: Path, values: Object) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
