"""Peak memory of tensors alive during a forward pass, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages that operators create, from the first tensor on each to the death of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}
        self.live = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note its outputs; views of weights and inputs are not new memory."""
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf, given)
        return result

    def _note(self, tensor: torch.Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or (pointer in given and pointer not in self.users):
            return
        if pointer not in self.users:
            self.users[pointer] = 0
            self.live += size
            self.peak = max(self.peak, self.live)
        self.users[pointer] += 1
        weakref.finalize(tensor, self._release, pointer, size)

    def _release(self, pointer: int, size: int) -> None:
        self.users[pointer] -= 1
        if self.users[pointer] == 0:
            del self.users[pointer]
            self.live -= size


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
