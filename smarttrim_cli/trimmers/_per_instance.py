"""The surviving tokens of a view, one instance per row and left-aligned, in either mode.

What ranks or pairs the tokens of an instance (fixed top-k, merging) works on these rows, so that both modes
share its code. Column 0 is the CLS (or the token that is kept in its place).

Legend: R rows of a batch, N columns (tokens of the longest row), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smarttrim_cli.trimmers.base import TokenView


@dataclass(frozen=True)
class Rows:
    """Which places of the rows hold a token, and how values get there and back.

    Attributes:
        alive_RN: Boolean, False on padding to the right.
        removable_RN: The same without the CLS.
        order_RN: ``masked`` mode: where in the view a row's tokens lie; None in ``packed`` mode.
        lengths: ``packed`` mode: tokens per row.
    """

    alive_RN: Tensor
    removable_RN: Tensor
    order_RN: Tensor | None
    lengths: tuple[int, ...]

    def lay(self, values: Tensor) -> Tensor:
        """Values per token, shaped like the view's (..., or (..., D)), as (R, N) or (R, N, D)."""
        if self.order_RN is not None:
            return values.gather(1, _like(self.order_RN, values))
        if len(self.lengths) == 1:
            return values
        return pad_sequence(values[0].split(self.lengths), batch_first=True)

    def back(self, values: Tensor) -> Tensor:
        """Inverse of :meth:`lay`."""
        if self.order_RN is not None:
            return torch.zeros_like(values).scatter(1, _like(self.order_RN, values), values)
        if len(self.lengths) == 1:
            return values
        return values[self.alive_RN].unsqueeze(0)


def rows_of(view: TokenView) -> Rows:
    """Rows of the tokens that are neither padding nor dropped before."""
    keep_BN = getattr(view.stream, "keep_BN", None)
    if keep_BN is not None:
        alive_BN = keep_BN.detach() > 0.5
        order_BN = (~alive_BN).byte().argsort(dim=1, stable=True)
        alive_RN = alive_BN.gather(1, order_BN)
        return Rows(alive_RN, _without_cls(alive_RN), order_BN, ())
    lengths: tuple[int, ...] = getattr(view.stream, "lengths", ())
    columns_N = torch.arange(max(lengths), device=view.tokens.device)
    alive_RN = columns_N < torch.tensor(lengths, device=columns_N.device).unsqueeze(1)
    return Rows(alive_RN, alive_RN & (columns_N > 0), None, lengths)


def _without_cls(alive_RN: Tensor) -> Tensor:
    removable_RN = alive_RN.clone()
    removable_RN[:, 0] = False
    return removable_RN


def _like(order_RN: Tensor, values: Tensor) -> Tensor:
    """The order as an index into values of 2 or 3 dimensions."""
    return order_RN if values.dim() == 2 else order_RN.unsqueeze(-1).expand(values.shape)
