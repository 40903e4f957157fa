"""The state of one stream while it flows through the layers, in the modes ``masked`` and ``packed``.

Legend: B batch, N padded tokens of an instance, T kept tokens of the whole batch laid end to end, D width.
Token 0 of every instance is its CLS; it is never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedStream:
    """Fixed shapes: tokens are (B, N, D), dropped ones stay but are not attended to.

    Attributes:
        valid_BN: Boolean, False on padding.
        keep_BN: Float straight-through mask, 1 keep, 0 drop, 0 on padding; monotone over layers.
    """

    valid_BN: Tensor
    keep_BN: Tensor

    def cls_BD(self, hidden_BND: Tensor) -> Tensor:
        """CLS of every instance."""
        return hidden_BND[:, 0]

    def spread(self, per_instance: Tensor) -> Tensor:
        """(B, ...) to (B, 1, ...): one row for all tokens of an instance."""
        return per_instance.unsqueeze(1)

    def spread_scalar(self, per_instance_B: Tensor) -> Tensor:
        """(B,) to (B, N)."""
        return per_instance_B[:, None].expand(self.keep_BN.shape)

    @property
    def positions(self) -> Tensor:
        """Original positions, (B, N)."""
        return torch.arange(self.keep_BN.shape[1], device=self.keep_BN.device).expand(self.keep_BN.shape)

    def counts_B(self) -> Tensor:
        """Kept tokens per instance, float, differentiable through the straight-through mask."""
        return self.keep_BN.sum(1)


@dataclass(frozen=True)
class PackedStream:
    """Only kept tokens: hidden states are (1, T, D), instance after instance.

    Attributes:
        lengths: Kept tokens per instance, on the host.
        starts_B: Index of every instance's CLS in T.
        segment_T: Instance that a token belongs to.
        positions_T: The token's original position.
        size: Padded number of tokens N per instance, before trimming.
    """

    lengths: tuple[int, ...]
    starts_B: Tensor
    segment_T: Tensor
    positions_T: Tensor
    size: int

    def cls_BD(self, hidden_1TD: Tensor) -> Tensor:
        """CLS of every instance."""
        return hidden_1TD[0, self.starts_B]

    def spread(self, per_instance: Tensor) -> Tensor:
        """(B, ...) to (1, T, ...): every token sees its instance's row."""
        return per_instance[self.segment_T].unsqueeze(0)

    def spread_scalar(self, per_instance_B: Tensor) -> Tensor:
        """(B,) to (1, T)."""
        return per_instance_B[self.segment_T].unsqueeze(0)

    @property
    def positions(self) -> Tensor:
        """Original positions, (1, T)."""
        return self.positions_T.unsqueeze(0)

    def counts_B(self) -> Tensor:
        """Kept tokens per instance."""
        return torch.tensor(self.lengths, device=self.positions_T.device)

    def select(self, keep_T: Tensor) -> tuple[PackedStream, Tensor]:
        """The stream without the dropped tokens, and the indices of those that stay."""
        index_K = keep_T.nonzero().squeeze(1)
        return packed_from(
            self.segment_T[index_K], self.positions_T[index_K], len(self.lengths), self.size
        ), index_K


Stream = MaskedStream | PackedStream


def packed_from(segment_T: Tensor, positions_T: Tensor, batch: int, size: int) -> PackedStream:
    """Derive lengths and starts from the segment of every token (sorted by instance)."""
    lengths_B = torch.bincount(segment_T, minlength=batch)
    starts_B = lengths_B.cumsum(0) - lengths_B
    return PackedStream(tuple(lengths_B.tolist()), starts_B, segment_T, positions_T, size)


def begin_masked(valid_BN: Tensor) -> MaskedStream:
    """A stream in which every real token is kept."""
    return MaskedStream(valid_BN, valid_BN.float())


def begin_packed(valid_BN: Tensor) -> tuple[PackedStream, Tensor]:
    """A stream without padding, and the flat indices (into B*N) of its tokens."""
    batch, size = valid_BN.shape
    index_T = valid_BN.flatten().nonzero().squeeze(1)
    segment_T = torch.div(index_T, size, rounding_mode="floor")
    return packed_from(segment_T, torch.remainder(index_T, size), batch, size), index_T


def with_keep(stream: MaskedStream, keep_BN: Tensor) -> MaskedStream:
    """Multiply a new decision into the cumulative mask; CLS stays, padding stays out."""
    cls_N = torch.zeros(keep_BN.shape[1], dtype=torch.bool, device=keep_BN.device)
    cls_N[0] = True
    return replace(stream, keep_BN=torch.where(cls_N, stream.keep_BN, stream.keep_BN * keep_BN))
