"""What the host has to know of what a device has computed.

Asking a GPU for a number makes the host wait until all that was queued is done, and the GPU idle until more
is queued. So there as little as can be is asked for, once per site.
"""

from __future__ import annotations

import torch
from torch import Tensor


def asking_costs(device: torch.device) -> bool:
    """Whether the host waits for a device that it asks for a number."""
    return device.type == "cuda"


def chosen_in_one_transfer(keep_T: Tensor, segment_T: Tensor, batch: int) -> tuple[tuple[int, ...], Tensor]:
    """How many are kept per row, on the host, and the indices of the kept ones, as ``nonzero`` gives them.

    ``nonzero`` would wait to learn how many there are, and the host again for how many per row. Here those
    are fetched, and say how many there are, too.

    Args:
        keep_T: Boolean.
        segment_T: Row of every item, from 0.
        batch: Number of rows.
    """
    kept_T = keep_T.long()
    lengths = tuple(kept_T.new_zeros(batch).scatter_add_(0, segment_T, kept_T).tolist())
    total = sum(lengths)
    # a kept one goes to its place among the kept ones, all others to one place behind them
    place_T = torch.where(keep_T, kept_T.cumsum(0) - 1, total)
    index = place_T.new_empty(total + 1).scatter_(0, place_T, torch.arange(len(keep_T), device=keep_T.device))
    return lengths, index[:total]
