"""Peak memory of tensors that some code creates, a forward pass or a whole training step, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Adds up the storages that operators create, from their birth to their death.

    Storages are followed, not tensors: autograd keeps the memory of tensors that Python no longer knows.
    Kernels' workspaces are not seen.

    Attributes:
        live: Bytes alive now.
        peak: Most bytes alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note its outputs; views of weights and inputs are not new memory."""
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._known and storage.nbytes():
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    leaves = (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
    return (leaf.untyped_storage() for leaf in leaves if leaf.layout is torch.strided)  # not prepared weights


def peak_activation_bytes(run: Callable[[], Any], device: torch.device | None = None) -> int:
    """Largest number of bytes that tensors created by a run hold at one time, weights not included.

    On a GPU, the ``device``, the allocator's own peak is used; elsewhere storages are followed
    (:class:`LiveMemory`).
    """
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveMemory() as mode:
        run()
    return mode.peak
