"""Peak memory of tensors alive during a forward pass, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages that operators create while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        pointer, size = storage.data_ptr(), storage.nbytes()
        if size and pointer not in self.live:
            self.live[pointer] = size
            weakref.finalize(storage, self.live.pop, pointer, None)
            self.peak = max(self.peak, sum(self.live.values()))


def peak_activation_bytes(forward: Callable[[], Any]) -> int:
    """Largest number of bytes that tensors created by a forward pass hold at one time, weights not included.

    On a GPU the allocator's own peak is used; elsewhere storages are followed, without the kernels'
    workspaces.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward()
        if torch.cuda.max_memory_allocated() > before:
            return torch.cuda.max_memory_allocated() - before
    with _LiveTensors() as mode:
        forward()
    return mode.peak
