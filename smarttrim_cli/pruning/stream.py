"""The state of one stream while it flows through the layers, in the modes ``masked`` and ``packed``.

Legend: B rows of a batch, N padded tokens of a row, T kept tokens of the whole batch end to end, D width.
Token 0 of every row is its CLS; it is never dropped. A stream without a CLS token (``has_cls`` False) keeps
token 0 all the same, so that it is never empty, and the mean of its kept tokens serves as CLS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning import host


@dataclass(frozen=True)
class MaskedStream:
    """Fixed shapes: tokens are (B, N, D), dropped ones stay but are not attended to.

    Attributes:
        valid_BN: Boolean, False on padding.
        keep_BN: Float straight-through mask, 1 keep, 0 drop, 0 on padding; monotone over layers.
        has_cls: Whether token 0 is a CLS.
        gradient_limit: What gradients of the mask are clipped to (:func:`.attention.key_bias`).
    """

    valid_BN: Tensor
    keep_BN: Tensor
    has_cls: bool = True
    gradient_limit: float = 1.0

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

    Some matrix kernels are made anew for every number of rows that they meet. Where such kernels are used
    (:mod:`.prepared`) T is rounded up: behind the last instance its CLS is repeated. These repeats are a tail
    that nobody attends to and that is not counted.

    Attributes:
        lengths: Kept tokens per instance, on the host.
        starts_B: Index of every instance's CLS in T.
        segment_T: Instance that a token belongs to.
        positions_T: The token's original position.
        size: Padded number of tokens N per instance, before trimming.
        has_cls: Whether a row's first token is a CLS.
        rounded: Whether T is rounded up.
    """

    lengths: tuple[int, ...]
    starts_B: Tensor
    segment_T: Tensor
    positions_T: Tensor
    size: int
    has_cls: bool = True
    rounded: bool = False

    @cached_property
    def total(self) -> int:
        """Kept tokens of all instances, without the tail."""
        return sum(self.lengths)

    @cached_property
    def spans(self) -> tuple[int, ...]:
        """Lengths that add up to T: the tail goes with the last instance."""
        tail = len(self.segment_T) - self.total
        return self.lengths if tail == 0 else (*self.lengths[:-1], self.lengths[-1] + tail)

    @cached_property
    def offsets(self) -> Tensor:
        """Where every segment starts, and where the last one ends, (B + 1,)."""
        return F.pad(self.starts_B, (0, 1), value=self.total)

    @cached_property
    def offsets_int32(self) -> Tensor:
        """The same as kernels for sequences of variable length want them, made once for all layers."""
        return self.offsets.int()

    def segments(self, packed: Tensor, dim: int) -> tuple[Tensor, ...]:
        """What belongs to every instance of a tensor with T along a dimension, without the tail."""
        return packed.narrow(dim, 0, self.total).split(self.lengths, dim)

    def cls_BD(self, hidden_1TD: Tensor) -> Tensor:
        """CLS of every row."""
        if not self.has_cls:
            return torch.stack([rows.mean(0) for rows in self.segments(hidden_1TD[0], 0)])
        return hidden_1TD[:, 0] if len(self.lengths) == 1 else hidden_1TD[0].index_select(0, self.starts_B)

    def rows(self, index: Sequence[int]) -> tuple[PackedStream, Tensor]:
        """Some of the rows, in the order given, and what ``take`` needs to do the same to hidden states."""
        starts = self.starts_B.tolist()
        device = self.positions_T.device
        index_K = torch.cat(
            [torch.arange(starts[row], starts[row] + self.lengths[row], device=device) for row in index]
        )
        lengths_B = torch.tensor([self.lengths[row] for row in index], device=device)
        segment_K = torch.repeat_interleave(torch.arange(len(index), device=device), lengths_B)
        return _packed(self, index_K, segment_K, self.positions_T[index_K], len(index))

    @staticmethod
    def take(hidden_1TD: Tensor, index_T: Tensor) -> Tensor:
        """Hidden states of chosen tokens."""
        return hidden_1TD.index_select(1, index_T)

    def spread(self, per_instance: Tensor) -> Tensor:
        """(B, ...) to (1, T, ...): every token sees its instance's row; (1, 1, ...) for a single instance."""
        if len(self.lengths) == 1:
            return per_instance.unsqueeze(0)
        return per_instance.index_select(0, self.segment_T).unsqueeze(0)

    def spread_scalar(self, per_instance_B: Tensor) -> Tensor:
        """(B,) to (1, T)."""
        if len(self.lengths) == 1:
            return per_instance_B.unsqueeze(0).expand(1, len(self.segment_T))
        return per_instance_B.index_select(0, self.segment_T).unsqueeze(0)

    @property
    def positions(self) -> Tensor:
        """Original positions, (1, T)."""
        return self.positions_T.unsqueeze(0)

    def counts_B(self) -> Tensor:
        """Kept tokens per instance."""
        return torch.tensor(self.lengths, device=self.positions_T.device)

    def without_tail(self) -> PackedStream:
        """The same tokens, not rounded up."""
        if len(self.segment_T) == self.total:
            return self
        segment_K, positions_K = self.segment_T[: self.total], self.positions_T[: self.total]
        return replace(self, segment_T=segment_K, positions_T=positions_K)

    def select(self, keep_T: Tensor) -> tuple[PackedStream, Tensor | None]:
        """The stream without the dropped tokens, and the indices of those that stay; None if all do."""
        keep_T = keep_T[: self.total]
        if len(self.lengths) == 1:
            index_K = keep_T.nonzero().squeeze(1)
            return (self, None) if len(index_K) == self.total else self._select_of_one(index_K)
        if host.asking_costs(keep_T.device):
            lengths, index_K = host.chosen_in_one_transfer(
                keep_T, self.segment_T[: self.total], len(self.lengths)
            )
        else:
            lengths, index_K = None, keep_T.nonzero().squeeze(1)
        if len(index_K) == self.total:
            return self, None
        segment_K, positions_K = self.segment_T[index_K], self.positions_T[index_K]
        return _packed(self, index_K, segment_K, positions_K, len(self.lengths), lengths)

    def _select_of_one(self, index_K: Tensor) -> tuple[PackedStream, Tensor]:
        """The same for a single instance, in fewer operators: its CLS is token 0, its segments are all 0."""
        count = len(index_K)
        tail = rounded_up(count) - count if self.rounded else 0
        index_T = F.pad(index_K, (0, tail)) if tail else index_K
        fewer = replace(
            self,
            lengths=(count,),
            segment_T=self.segment_T[: count + tail],
            positions_T=self.positions_T.index_select(0, index_T),
        )
        return fewer, index_T


Stream = MaskedStream | PackedStream


def _packed(
    like: PackedStream,
    index_K: Tensor,
    segment_K: Tensor,
    positions_K: Tensor,
    batch: int,
    lengths: tuple[int, ...] | None = None,
) -> tuple[PackedStream, Tensor]:
    """A stream of chosen tokens, sorted by row, and their indices with the tail's; ``lengths`` if known."""
    if batch == 1:
        lengths, starts_B = (len(index_K),), segment_K.new_zeros(1)
    else:
        # bincount would ask a GPU for the largest segment first
        lengths_B = segment_K.new_zeros(batch).scatter_add_(0, segment_K, torch.ones_like(segment_K))
        lengths = tuple(lengths_B.tolist()) if lengths is None else lengths
        starts_B = lengths_B.cumsum(0) - lengths_B
    stream = PackedStream(lengths, starts_B, segment_K, positions_K, like.size, like.has_cls, like.rounded)
    tail = rounded_up(len(index_K)) - len(index_K) if like.rounded else 0
    if tail == 0:
        return stream, index_K
    index_T, segment_T, positions_T = (
        torch.cat((x, x[-lengths[-1]].expand(tail))) for x in (index_K, segment_K, positions_K)
    )
    return replace(stream, segment_T=segment_T, positions_T=positions_T), index_T


def rounded_up(rows: int) -> int:
    """Rows of matrices that kernels are made for.

    Any number up to 32, multiples of 2 up to 128, of 4 up to 512, and of more from there on: the tail is at
    most 1/33 of the rows. Where they are few, as those of a single text, each takes time.
    """
    step = 1 if rows <= 32 else 2 if rows <= 128 else max(4, 1 << (rows.bit_length() - 7))
    return -(-rows // step) * step


def begin_masked(valid_BN: Tensor, has_cls: bool = True, gradient_limit: float = 1.0) -> MaskedStream:
    """A stream in which every real token is kept."""
    return MaskedStream(valid_BN, valid_BN.float(), has_cls, gradient_limit)


def begin_packed(
    valid_BN: Tensor, has_cls: bool = True, rounded: bool = False
) -> tuple[PackedStream, Tensor]:
    """A stream without padding, and the flat indices (into B*N) of its tokens."""
    batch, size = valid_BN.shape
    index_K = valid_BN.flatten().nonzero().squeeze(1)
    segment_K = torch.div(index_K, size, rounding_mode="floor")
    nothing = index_K[:0]
    empty = PackedStream((), nothing, nothing, nothing, size, has_cls, rounded)
    return _packed(empty, index_K, segment_K, torch.remainder(index_K, size), batch)


def with_keep(stream: MaskedStream, keep_BN: Tensor) -> MaskedStream:
    """Multiply a new decision into the cumulative mask; CLS stays, padding stays out."""
    cls_N = torch.zeros(keep_BN.shape[1], dtype=torch.bool, device=keep_BN.device)
    cls_N[0] = True
    return replace(stream, keep_BN=torch.where(cls_N, stream.keep_BN, stream.keep_BN * keep_BN))
