"""Inspects a model folder without loading the model."""

import json
import math
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError, one_line
from finetune_trainer.model.fast_imports import model_classes
from finetune_trainer.run_dir.files import file_digest, value_digest
from finetune_trainer.run_dir.safetensors_header import INDEX, SINGLE, indexed_files, read_header

if TYPE_CHECKING:  # it imports torch
    from finetune_trainer.model.stored_layout import StoredLayout

_CONFIG = "config.json"
_TEXT_FILES = (
    _CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_DTYPES = {"BF16": "BF16", "F16": "FP16", "F32": "FP32", "F64": "FP32"}
_EMBEDDING = "model.embed_tokens.weight"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class ModelFolder:
    """The properties of a checked folder.

    `revision` is a digest of its contents, `digest` one of what training depends on: the weights
    and config.json. The tokenizer shows in the rows, and nothing else of the folder is trained.
    """

    revision: str
    digest: str
    parameter_count: int
    dtype: str  # as output.dtype names it
    max_length: int | None
    weights: list[Path]


def inspect(folder: Path, name: str, advance: Callable[[], None]) -> ModelFolder:
    """Check that a model folder is complete, and return its properties.

    `name` is the model's name in messages. Raises TrainerError, which names what is missing.
    """
    config = read_config(folder, name)
    weights = weight_files(folder, name)
    tensors = {key: value for file in weights for key, value in tensors_in(file, name).items()}
    if not (folder / "tokenizer.json").is_file():
        raise _missing(f"{name}: no tokenizer.json", "copy the tokenizer into the model folder")
    model = model_tensors(folder, name, tensors)
    check_weights(model.layout, tensors, name)
    check_token_ids(folder, name, model.parameters)
    present = [folder / file for file in _TEXT_FILES if (folder / file).is_file()]
    digests = {file.name: file_digest(file, advance) for file in [*present, *weights]}
    trained = [_CONFIG, *(file.name for file in weights)]
    return ModelFolder(
        revision=value_digest(digests),
        digest=value_digest({name: digests[name] for name in trained}),
        parameter_count=sum(math.prod(shape) for shape in model.parameters.values()),
        dtype=_most_common_dtype(tensors),
        max_length=config.get("max_position_embeddings"),
        weights=weights,
    )


def stored_dtype(folder: Path, name: str) -> str:
    """Return the type of most weights in a folder, as output.dtype names it."""
    files = weight_files(folder, name)
    return _most_common_dtype({k: v for file in files for k, v in tensors_in(file, name).items()})


def _most_common_dtype(tensors: dict[str, Any]) -> str:
    """Return BF16, FP16 or FP32. Types that are neither of them are replaced by BF16."""
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[tensor["dtype"]] += math.prod(tensor["shape"])
    return _DTYPES.get(elements.most_common(1)[0][0], "BF16") if elements else "BF16"


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return the safetensors files. Raises TrainerError (66) if one is absent."""
    _check_exists(folder, name)
    index = folder / INDEX
    if index.is_file():
        try:
            files = indexed_files(index)
        except ValueError:
            raise _missing(f"{name}: {INDEX} is not a valid index file", "copy it again") from None
    elif (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        found = sorted(path.name for path in folder.iterdir())[:8]
        raise _missing(
            f"{name}: no weights, neither {SINGLE} nor {INDEX}; found {', '.join(found)}",
            "copy the weights into the folder (other formats: save_pretrained writes these)",
        )
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise _missing(f"{name}: {INDEX} names {missing[0]}, which is absent", "copy it again")
    return [folder / file for file in files]


def _check_exists(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise _missing(f"{name}: this folder does not exist on the claim", "check the path")


def tensors_in(file: Path, name: str) -> dict[str, Any]:
    """Return the entries of a safetensors file: tensor name -> dtype, shape and data_offsets.

    Raises TrainerError (66) for a file that is not complete or not valid.
    """
    try:
        header = read_header(file)
    except ValueError as error:
        raise _missing(f"{name}: {file.name} {error}", "copy it again") from None
    if header.size_bytes != header.promised_bytes:
        problem = f"{name}: {file.name} is incomplete ({header.size_bytes} bytes)"
        raise _missing(problem, "copy it again")
    return header.tensors


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Return config.json. Raises TrainerError: 66 if it does not exist, 64 if it is not valid."""
    _check_exists(folder, name)
    file = folder / "config.json"
    if not file.is_file():
        raise _missing(f"{name}: no config.json", "name a Hugging Face model folder")
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION, f"{name}: config.json is not JSON ({error}); copy it again"
        ) from None
    if not isinstance(config, dict):
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION, f"{name}: config.json is not a JSON object; copy it again"
        )
    return config


@dataclass(frozen=True)
class ModelTensors:
    """The tensors of a model as transformers builds it, and those of its files."""

    parameters: dict[str, list[int]]
    """The shape of each parameter. Tied parameters are listed once."""
    layout: "StoredLayout"


def model_tensors(folder: Path, name: str, present: Container[str]) -> ModelTensors:
    """Return the tensors of a model. `present` are the names of those in its files.

    accelerate's empty initialization would list tied parameters twice. Raises TrainerError (64) if
    transformers cannot build the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from finetune_trainer.model import language_model
    from finetune_trainer.model.stored_layout import UnknownLayoutError, stored_layout

    model_classes()

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        language_model.check(config, name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        layout = stored_layout(model, present)
    except TrainerError:
        raise
    except UnknownLayoutError as error:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION, f"{name}: {error}; this model is not supported"
        ) from error
    except Exception as error:  # transformers raises exceptions of any type
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{name}: transformers cannot build this model as a causal language model "
            f"({one_line(error)}); correct config.json, or copy "
            "the model again",
        ) from error
    shapes = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
    return ModelTensors(shapes, layout)


def check_weights(layout: "StoredLayout", tensors: dict[str, Any], name: str) -> None:
    """Raise TrainerError (64) if the weights do not fit config.json.

    Loading them would show it as well, but only after devices were assigned.
    """
    for key, stored in layout.tensors.items():
        problem = None
        if key not in tensors:
            problem = f"{key} is absent"
        elif tensors[key]["shape"] != list(stored.shape):
            problem = f"{key} has the shape {tensors[key]['shape']}, not {list(stored.shape)}"
        if problem:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{name}: the weights do not belong to config.json: {problem}; copy the model "
                "again",
            )


def _missing(problem: str, remedy: str) -> TrainerError:
    return TrainerError(ExitCode.INPUT_MISSING, f"{problem}; {remedy}")


def check_token_ids(folder: Path, name: str, shapes: dict[str, list[int]]) -> None:
    """Raise TrainerError (64) if a token id has no row in the embedding.

    `shapes` maps a parameter to its shape. An id without a row would end training on a device. The
    check runs before devices are assigned, and again before a model is published.
    """
    rows = shapes[_EMBEDDING][0]
    for file, what, token in _token_ids(folder, name):
        if token >= rows:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{name}: {file} has the id {token} ({what}), but the model's embedding has {rows} "
                f"rows (0 to {rows - 1}); copy tokenizer and weights of the same model, or resize "
                "the embedding",
            )


def _token_ids(folder: Path, name: str) -> Iterator[tuple[str, str, int]]:
    for file in ("config.json", "generation_config.json"):
        values = _json_object(folder / file)
        for key in _SPECIAL:
            for token in token_id_list(values.get(key)):
                if type(token) is not int:
                    raise TrainerError(
                        ExitCode.BAD_CONFIGURATION,
                        f"{name}: {file} has {key} {token!r}, which is not a token id; allowed are "
                        "a whole number, a list of them, or null; correct it, or copy it again",
                    )
                yield file, key, token
    yield from _ids_of_tokenizer(_json_object(folder / "tokenizer.json"))


def _ids_of_tokenizer(tokenizer: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    for entry in tokenizer.get("added_tokens") or []:
        yield "tokenizer.json", repr(entry["content"]), entry["id"]
    tokens = (tokenizer.get("model") or {}).get("vocab")
    if isinstance(tokens, dict) and tokens:
        largest = max(tokens, key=tokens.__getitem__)
        yield "tokenizer.json", repr(largest), tokens[largest]
    elif tokens:  # Unigram: a list, in which the position is the id
        yield "tokenizer.json", repr(tokens[-1][0]), len(tokens) - 1


def _json_object(file: Path) -> dict[str, Any]:
    """Return a JSON object, empty if the file is absent or not valid.

    Other checks report such a file with a better message.
    """
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def token_id_list(value: Any) -> list[int]:
    """Return the token ids of a field of config.json: none, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
