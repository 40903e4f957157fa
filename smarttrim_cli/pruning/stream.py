"""The state of one stream while it flows through the layers, in the modes ``masked`` and ``packed``.

Legend: B rows of a batch, N padded tokens of a row, T kept tokens of the whole batch end to end, D width.
Token 0 of every row is its CLS; it is never dropped. A stream without a CLS token (``has_cls`` False) keeps
token 0 all the same, so that it is never empty, and the mean of its kept tokens serves as CLS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedStream:
    """Fixed shapes: tokens are (B, N, D), dropped ones stay but are not attended to.

    Attributes:
        valid_BN: Boolean, False on padding.
        keep_BN: Float straight-through mask, 1 keep, 0 drop, 0 on padding; monotone over layers.
        has_cls: Whether token 0 is a CLS.
    """

    valid_BN: Tensor
    keep_BN: Tensor
    has_cls: bool = True

    def cls_BD(self, hidden_BND: Tensor) -> Tensor:
        """CLS of every row."""
        if self.has_cls:
            return hidden_BND[:, 0]
        weights_B1N = self.keep_BN.unsqueeze(1).to(hidden_BND.dtype)
        return (weights_B1N @ hidden_BND).squeeze(1) / weights_B1N.sum(-1)

    def rows(self, index: Sequence[int]) -> tuple[MaskedStream, Tensor]:
        """Some of the rows, in the order given, and what ``take`` needs to do the same to hidden states."""
        index_R = torch.tensor(index, device=self.keep_BN.device)
        return replace(self, valid_BN=self.valid_BN[index_R], keep_BN=self.keep_BN[index_R]), index_R

    @staticmethod
    def take(hidden_BND: Tensor, index_R: Tensor) -> Tensor:
        """Hidden states of chosen rows."""
        return hidden_BND[index_R]

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
        has_cls: Whether a row's first token is a CLS.
    """

    lengths: tuple[int, ...]
    starts_B: Tensor
    segment_T: Tensor
    positions_T: Tensor
    size: int
    has_cls: bool = True

    def cls_BD(self, hidden_1TD: Tensor) -> Tensor:
        """CLS of every row."""
        if self.has_cls:
            return hidden_1TD[0, self.starts_B]
        return torch.stack([rows.mean(0) for rows in hidden_1TD[0].split(self.lengths)])

    def rows(self, index: Sequence[int]) -> tuple[PackedStream, Tensor]:
        """Some of the rows, in the order given, and what ``take`` needs to do the same to hidden states."""
        starts = self.starts_B.tolist()
        device = self.positions_T.device
        index_T = torch.cat(
            [torch.arange(starts[row], starts[row] + self.lengths[row], device=device) for row in index]
        )
        lengths_B = torch.tensor([self.lengths[row] for row in index], device=device)
        segment_T = torch.repeat_interleave(torch.arange(len(index), device=device), lengths_B)
        positions_T = self.positions_T[index_T]
        return packed_from(segment_T, positions_T, len(index), self.size, self.has_cls), index_T

    @staticmethod
    def take(hidden_1TD: Tensor, index_T: Tensor) -> Tensor:
        """Hidden states of chosen tokens."""
        return hidden_1TD[:, index_T]

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
            self.segment_T[index_K], self.positions_T[index_K], len(self.lengths), self.size, self.has_cls
        ), index_K


Stream = MaskedStream | PackedStream


def packed_from(
    segment_T: Tensor, positions_T: Tensor, batch: int, size: int, has_cls: bool = True
) -> PackedStream:
    """Derive lengths and starts from the segment of every token (sorted by row)."""
    lengths_B = torch.bincount(segment_T, minlength=batch)
    starts_B = lengths_B.cumsum(0) - lengths_B
    return PackedStream(tuple(lengths_B.tolist()), starts_B, segment_T, positions_T, size, has_cls)


def begin_masked(valid_BN: Tensor, has_cls: bool = True) -> MaskedStream:
    """A stream in which every real token is kept."""
    return MaskedStream(valid_BN, valid_BN.float(), has_cls)


def begin_packed(valid_BN: Tensor, has_cls: bool = True) -> tuple[PackedStream, Tensor]:
    """A stream without padding, and the flat indices (into B*N) of its tokens."""
    batch, size = valid_BN.shape
    index_T = valid_BN.flatten().nonzero().squeeze(1)
    segment_T = torch.div(index_T, size, rounding_mode="floor")
    return packed_from(segment_T, torch.remainder(index_T, size), batch, size, has_cls), index_T


def with_keep(stream: MaskedStream, keep_BN: Tensor) -> MaskedStream:
    """Multiply a new decision into the cumulative mask; CLS stays, padding stays out."""
    cls_N = torch.zeros(keep_BN.shape[1], dtype=torch.bool, device=keep_BN.device)
    cls_N[0] = True
    return replace(stream, keep_BN=torch.where(cls_N, stream.keep_BN, stream.keep_BN * keep_BN))
