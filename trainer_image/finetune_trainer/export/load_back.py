"""The folder as a stranger finds it: plain transformers must load it whole and equal."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from finetune_api.exit_codes import ExitCode
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.export.contents import Contents, slices
from finetune_trainer.model import vocabulary
from finetune_trainer.run_dir.safetensors_header import INDEX, SINGLE

_WRONG = ("missing_keys", "unexpected_keys", "mismatched_keys")


def check(
    folder: Path, model: Contents, reader: CheckpointReader, advance: Callable[[], None]
) -> None:
    """TrainerError 78 names what differs from the checkpoint; also when it cannot speak.

    transformers maps the files: pages that the kernel can take back, no second copy of the model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wrong = list(_uncovered(folder, model))
    vocabulary.check(folder, str(folder), {e.name: list(e.shape) for e in model.entries})
    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    wrong += [f"{kind}: {sorted(map(str, info[kind]))[:5]}" for kind in _WRONG if info[kind]]
    if loaded.dtype != model.dtype:
        wrong.append(f"it is loaded as {loaded.dtype}, not as {model.dtype}")
    found = dict(loaded.named_parameters())
    wrong += sorted(found.keys() ^ {entry.name for entry in model.entries})
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
    tokens = torch.tensor([tokenizer("Hello")["input_ids"]])
    with torch.no_grad():
        loaded.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)


def _uncovered(folder: Path, model: Contents) -> list[str]:
    """The index names all tensors and no file is left over that it does not name."""
    files = {path.name for path in folder.glob("*.safetensors")}
    names = {entry.name for entry in model.entries}
    if not (folder / INDEX).is_file():
        return sorted(files - {SINGLE})
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    return sorted((files ^ set(weight_map.values())) | (names ^ weight_map.keys()))
