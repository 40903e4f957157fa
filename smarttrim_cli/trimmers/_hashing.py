"""Reproducible random numbers for the random baselines: a function of site, instance and position only.

Decisions must not depend on batch-mates or on the mode, so no generator state is used.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK = (1 << 31) - 1


def site_seed(name: str) -> int:
    """A stable integer for a name."""
    return zlib.crc32(name.encode())


def uniform(seed: int, *keys: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), a hash of the seed and integer tensors of one shape."""
    state = torch.full_like(keys[0], seed & _MASK)
    for key in keys:
        state = (state * 48271 + key.long() * 40692 + 12345) & _MASK
        for _ in range(2):
            state = (state ^ (state >> 16)) * 0x45D9F3B & _MASK
        state = state ^ (state >> 16)
    return ((state >> 8).float() + 0.5) / (1 << 23)
