"""Attention over segments of different lengths: every way against the loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from smarttrim_cli.pruning.ragged import by_jagged, by_loop, by_variable_length, ragged_attention
from smarttrim_cli.pruning.stream import PackedStream, begin_packed, rounded_up

HEADS, WIDTH, SCALE = 3, 8, 0.4


def stream_of(*lengths: int, rounded: bool = False) -> PackedStream:
    valid_BN = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return begin_packed(valid_BN, rounded=rounded)[0]


def tensors(queries: PackedStream, keys: PackedStream) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (len(queries.segment_T), len(keys.segment_T), len(keys.segment_T))
    q, k, v = (torch.randn(size, HEADS, WIDTH, generator=generator) for size in sizes)
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, queries: PackedStream, keys: PackedStream) -> Tensor:
    same = queries.segment_T[:, None] == keys.segment_T
    logits = torch.einsum("the,she->hts", q, k) * SCALE
    return torch.einsum("hts,she->the", logits.masked_fill(~same, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("way", [by_loop, by_jagged])
@pytest.mark.parametrize("lengths", [((5, 1, 9), (5, 1, 9)), ((2, 4, 3), (7, 1, 6)), ((1, 1), (1, 3))])
def test_every_way_is_the_plain_formula(way, lengths) -> None:
    queries, keys = (stream_of(*some) for some in lengths)
    q, k, v = tensors(queries, keys)
    assert_close(way(q, k, v, queries, keys, SCALE), by_hand(q, k, v, queries, keys))


@pytest.mark.parametrize("lengths", [((5, 1, 9), (5, 19, 9)), ((5,), (35,))])
def test_the_tail_is_not_attended_to(lengths) -> None:
    queries, keys = (stream_of(*some, rounded=True) for some in lengths)
    assert len(keys.segment_T) > keys.total
    q, k, v = tensors(queries, keys)
    bare = [x.without_tail() for x in (queries, keys)]
    expected = by_hand(q[: queries.total], k[: keys.total], v[: keys.total], *bare)
    out = ragged_attention(q, k, v, queries, keys, SCALE)
    assert out.shape == q.shape
    assert_close(out[: queries.total], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_variable_length_kernel_is_the_loop() -> None:
    queries, keys = stream_of(40, 7, 129), stream_of(12, 90, 33)
    parts = [torch.randn(len(s.segment_T), 4, 64) for s in (queries, keys, keys)]
    q, k, v = (part.to("cuda", torch.bfloat16) for part in parts)
    queries, keys = (_on_gpu(stream) for stream in (queries, keys))
    expected = by_loop(q, k, v, queries, keys, 0.125)
    assert_close(by_variable_length(q, k, v, queries, keys, 0.125), expected, rtol=0, atol=2e-2)


def test_variable_length_kernel_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the kernel's place is taken by the plain formula on what it is given."""
    from torch.nn.attention import varlen

    def plain(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, num_splits=None):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert int(cu_seq_q.diff().max()) == max_q and int(cu_seq_k.diff().max()) == max_k
        assert int(cu_seq_q[-1]) == len(q) and int(cu_seq_k[-1]) == len(k)
        segments = (
            torch.repeat_interleave(torch.arange(len(cu) - 1), cu.diff()) for cu in (cu_seq_q, cu_seq_k)
        )
        same = next(segments)[:, None] == next(segments)
        logits = torch.einsum("the,she->hts", q, k) * scale
        return torch.einsum("hts,she->the", logits.masked_fill(~same, float("-inf")).softmax(-1), v)

    monkeypatch.setattr(varlen, "varlen_attn", plain)
    queries, keys = stream_of(4, 1, 12), stream_of(2, 9, 3)
    q, k, v = tensors(queries, keys)
    assert_close(by_variable_length(q, k, v, queries, keys, SCALE), by_hand(q, k, v, queries, keys))


def _on_gpu(stream: PackedStream) -> PackedStream:
    tensors = (stream.starts_B.cuda(), stream.segment_T.cuda(), stream.positions_T.cuda())
    return PackedStream(stream.lengths, *tensors, stream.size)


def test_rounding_up_wastes_little_and_meets_few_sizes() -> None:
    for rows in range(1, 20_000):
        assert 0 <= rounded_up(rows) - rows <= rows / 33
    assert len({rounded_up(rows) for rows in range(1, 513)}) == 32 + 48 + 96
    assert len({rounded_up(rows) for rows in range(513, 16_385)}) <= 5 * 64


def test_a_rounded_stream_repeats_the_last_cls() -> None:
    stream = stream_of(3, 130, rounded=True)
    assert stream.lengths == (3, 130) and stream.spans == (3, 133)
    assert stream.segment_T.tolist() == [0] * 3 + [1] * 133
    assert stream.positions_T.tolist() == [0, 1, 2, *range(130), 0, 0, 0]
    assert stream.offsets.tolist() == [0, 3, 133]
    keep_T = torch.ones(136, dtype=torch.bool)
    keep_T[[1, *range(6, 103)]] = False
    fewer, index_T = stream.select(keep_T)
    assert fewer.lengths == (2, 33) and index_T is not None
    assert index_T.tolist() == [0, 2, 3, 4, 5, *range(103, 133), 3]


def test_few_rows_are_not_rounded_up() -> None:
    stream = stream_of(3, 6, rounded=True)
    assert stream.spans == (3, 6)
    assert stream.select(torch.ones(12, dtype=torch.bool)) == (stream, None)
    assert [len(part) for part in stream.segments(torch.zeros(12, 4), 0)] == [3, 6]
