"""The check that plain transformers loads the exported folder as it was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.export.weights import Contents, slices
from finetune_trainer.model.folder import check_token_ids
from finetune_trainer.run_dir.safetensors_header import INDEX, SINGLE, weight_map
from finetune_trainer.run_dir.tensor_file import TensorFile

_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys")
_PROMPT, _NEW_TOKENS = "Hello", 8


def check(
    folder: Path, model: Contents, reader: CheckpointReader, advance: Callable[[], None]
) -> None:
    """Load the folder, compare every parameter with the checkpoint and generate a few tokens.

    Raises TrainerError 78, which names what differs. The model needs no memory of its own, because
    transformers maps the files, whose pages the kernel can reclaim.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    wrong = list(_uncovered(folder, model))
    check_token_ids(folder, str(folder), model.parameters)
    # Not the settings of the folder: they are the base's, and may be for other programs.
    greedy = GenerationConfig(max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=0)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, generation_config=greedy
    )
    wrong += [f"{kind}: {sorted(map(str, info[kind]))[:5]}" for kind in _PROBLEMS if info[kind]]
    if loaded.dtype != model.dtype:
        wrong.append(f"it is loaded as {loaded.dtype}, not as {model.dtype}")
    found = dict(loaded.named_parameters())
    wrong += sorted(found.keys() ^ model.parameters.keys())
    wrong += _changed_buffers(loaded, model)
    for name, parameter in found.items():
        flat = parameter.detach().flatten()
        for begin, numel in slices(len(flat)):
            expected = reader.read(name, "master", begin, numel).to(model.dtype)
            if not torch.equal(flat[begin : begin + numel], expected):
                wrong.append(name)
                break
            advance()
    if wrong:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"the exported model does not load back as it was trained: {wrong[:5]}",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = torch.tensor([tokenizer(_PROMPT)["input_ids"] or [0]])  # it may not know the prompt
    loaded.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=greedy)


def _changed_buffers(loaded: Any, model: Contents) -> list[str]:
    """Return the buffers with other values than in the base."""
    buffers, wrong = dict(loaded.named_buffers()), []
    for name, file in model.copied.items():
        buffer = buffers[model.layout.tensors[name].source]
        stored = TensorFile(file).read(name, 0, buffer.numel())
        if not torch.equal(buffer.flatten(), stored.to(buffer.dtype)):
            wrong.append(name)
    return wrong


def _uncovered(folder: Path, model: Contents) -> list[str]:
    """Return the tensors and weight files for which the folder, the model and the index differ."""
    files = {path.name for path in folder.glob("*.safetensors")}
    names = {entry.name for entry in model.entries}
    if not (folder / INDEX).is_file():
        return sorted(files - {SINGLE})
    indexed = weight_map(folder / INDEX)
    return sorted((files ^ set(indexed.values())) | (names ^ indexed.keys()))
