"""Where the elements of parameters lie in the weight files of a model.

Files hold experts one by one, and transformers joins them into one parameter when it loads them.
What it does is derived from its own conversion back: it is applied to tensors without values, and
its results are views that show from where they were cut.
"""

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.common.errors import one_line


@dataclass(frozen=True)
class Stored:
    """A tensor of the files: consecutive elements of a parameter, or of a buffer."""

    source: str
    """Name of the parameter or the buffer."""
    offset: int
    """Position of its first element there."""
    shape: tuple[int, ...]


class UnknownLayoutError(Exception):
    """The files hold a tensor that is not a range of elements of one parameter."""


class _View(torch.Tensor):
    """A tensor on `meta` of which every part stays a view."""

    def contiguous(self, *_: Any, **__: Any) -> "_View":
        """Return itself: a copy would not show where it was cut from."""
        return self


def stored_buffers(model: Any) -> dict[str, torch.Tensor]:
    """Return the buffers whose values come from the weight files. The others are computed."""
    persistent = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in persistent}


class StoredLayout:
    """Where the elements of each tensor of the files belong."""

    def __init__(self, tensors: dict[str, Stored]) -> None:
        self.tensors = tensors
        """By the name of the tensor in the files."""
        self._parts: dict[str, list[tuple[int, int, str]]] = {}
        for name, stored in tensors.items():
            part = (stored.offset, stored.offset + math.prod(stored.shape), name)
            self._parts.setdefault(stored.source, []).append(part)
        for parts in self._parts.values():
            parts.sort()

    def pieces(self, source: str, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
        """Yield the stored tensors of some elements of a parameter, and the range in each."""
        for first, last, name in self._parts[source]:
            low, high = max(begin, first), min(end, last)
            if low < high:
                yield name, low - first, high - first

    def covers(self, source: str, numel: int) -> bool:
        """Return whether the files hold every element of a parameter exactly once."""
        at = 0
        for first, last, _ in self._parts.get(source, []):
            if first != at:
                return False
            at = last
        return at == numel


def stored_layout(model: Any, present: Container[str] = ()) -> StoredLayout:
    """Return the layout of a model's files. `model` is built on `meta`.

    Files that hold all parameters under their own names (`present`) are taken as they are.
    Otherwise they have the published names. Raises UnknownLayoutError.
    """
    needed = dict(model.named_parameters()) | stored_buffers(model)
    if all(name in present for name in needed):
        return StoredLayout({name: Stored(name, 0, tuple(t.shape)) for name, t in needed.items()})
    views = {
        name: torch.empty(tensor.shape, device="meta").as_subclass(_View)
        for name, tensor in needed.items()
    }
    sources = {view.untyped_storage()._cdata: name for name, view in views.items()}
    found = {}
    for name, part in _converted_back(model, views).items():
        source = sources.get(part.untyped_storage()._cdata)
        if source is None or not part.is_contiguous():
            raise UnknownLayoutError(
                f"the files of its weights hold {name}, which is not a part of one parameter"
            )
        found[name] = Stored(source, int(part.storage_offset()), tuple(part.shape))
    layout = StoredLayout(found)
    for source, tensor in needed.items():
        if not layout.covers(source, tensor.numel()):
            raise UnknownLayoutError(f"the files of its weights hold only a part of {source}")
    return layout


def _converted_back(model: Any, views: dict[str, Any]) -> dict[str, Any]:
    from transformers.core_model_loading import revert_weight_conversion

    try:
        converted: dict[str, Any] = revert_weight_conversion(model, dict(views))
    except Exception as error:  # conversions raise exceptions of any type
        raise UnknownLayoutError(
            f"transformers cannot convert its weights back ({one_line(error)})"
        ) from error
    return converted
