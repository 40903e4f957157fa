"""MACs of a forward pass as torch's own flop counter sees them: a second opinion on torchprofile's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from smarttrim_cli.pruning.model import TrimmedModel


@torch.no_grad()
def flop_counter_macs(
    model: TrimmedModel, inputs: Mapping[str, Tensor], mode: str, instance_ids: Tensor | None = None
) -> int:
    """Half the flops that ``torch.utils.flop_counter`` finds in operators as they run.

    It counts matrix products, convolutions and attention, but no products of a matrix and a vector and
    nothing element by element. Heads that are dropped but projected all the same, because that is faster, it
    counts; torchprofile and the cost model count kept heads only.

    Args:
        model: In evaluation mode, with the host's own kernels: it does not know prepared ones.
        inputs: Of a single instance without padding.
        mode: ``full`` or ``packed``.
        instance_ids: (1,), for trimmers that draw at random.
    """
    with FlopCounterMode(display=False) as counter:
        model(inputs, mode, instance_ids=instance_ids)
    return counter.get_total_flops() // 2
