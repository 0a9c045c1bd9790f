"""Makes torch refuse operations that mix tensors of a host and of a device, without a device.

All tensors stay on the CPU. The mode remembers which of them are "on the device", answers questions
about their device accordingly, and raises torch's error where a GPU would.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._pytree import tree_leaves, tree_map

from finetune_trainer.checkpoint import fragments, resume

DEVICE = torch.device("cuda:0")
_HOST = torch.device("cpu")
_COPIES = (torch.Tensor.copy_,)
_MOVES = (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda)
_DEVICE_OF = torch.Tensor.device.__get__  # type: ignore[attr-defined]


class TwoDevices(TorchFunctionMode):
    """A mode in which tensors that were `put` there, and what is computed from them, are there."""

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._storages: dict[int, Any] = {}  # keeps them alive: an address must not be used again
        for tensor in tensors:
            self.put(tensor)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Treat a tensor, and all views of it, as one on the device."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor

    def place(self, tensor: torch.Tensor) -> torch.device:
        """Return the device on which a tensor is taken to be."""
        return DEVICE if tensor.untyped_storage()._cdata in self._storages else _HOST

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = (args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        if func == _DEVICE_OF:
            return self.place(tensors[0])
        if func in _MOVES:
            return self._move(func, *given)
        places = {self.place(tensor) for tensor in tensors if tensor.dim() or len(tensors) == 1}
        if len(places) > 1 and func not in _COPIES:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE} and cpu! (in {getattr(func, '__name__', func)})"
            )
        wanted = given[1].get("device")
        result = _call(func, *given)
        is_there = torch.device(wanted) == DEVICE if wanted is not None else DEVICE in places
        if is_there and func not in _COPIES:
            tree_map(lambda leaf: self._put_result(leaf), result)
        return result

    def _put_result(self, leaf: Any) -> None:
        if isinstance(leaf, torch.Tensor):
            self.put(leaf)

    def _move(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        source = args[0]
        target = self.place(source)
        if func is torch.Tensor.cpu:
            target = _HOST
        elif func is torch.Tensor.cuda:
            target = DEVICE
        else:
            for value in (*args[1:], *kwargs.values()):
                if isinstance(value, torch.Tensor):
                    target = self.place(value)
                elif isinstance(value, torch.device | str):
                    target = torch.device(value)
        result: torch.Tensor = source if func is torch.Tensor.cuda else _call(func, args, kwargs)
        if target != self.place(source):
            result = result.detach().clone() if not result.requires_grad else result.clone()
        return self.put(result) if target == DEVICE else result


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    def on_host(value: Any) -> Any:
        is_device = isinstance(value, torch.device | str) and str(value).startswith("cuda")
        return _HOST if is_device else value

    args, kwargs = tree_map(on_host, args), tree_map(on_host, kwargs)
    return func(*args, **kwargs)


@contextmanager
def as_on_a_gpu(engine: Any) -> Iterator[None]:
    """Treat the tensors of an engine as they would lie on a machine with a GPU."""
    there: list[torch.Tensor] = []
    for parameter in engine.model.parameters():
        there.append(parameter.detach())
        if hasattr(parameter, "ds_tensor") and engine.deepspeed.zero_offload_param() is None:
            there.append(parameter.ds_tensor)
    if engine.deepspeed.zero_offload_optimizer() is None:
        there += fragments.live(engine).values()
    with TwoDevices(there):
        yield


def watch_checkpoints() -> None:
    """Run what reads and writes an engine's state for checkpoints `as_on_a_gpu`."""

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(first: Any, *arguments: Any) -> Any:
            if _get_current_function_mode() is not None:
                return call(first, *arguments)
            with as_on_a_gpu(getattr(first, "_engine", first)):
                return call(first, *arguments)

        return wrapper

    resume.load, resume.assert_consistent = map(watched, (resume.load, resume.assert_consistent))
    fragments.Snapshot.take = watched(fragments.Snapshot.take)  # type: ignore[method-assign]
