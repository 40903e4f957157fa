"""Memory of forward and backward passes, counted by hand for a few operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from smarttrim_cli.engine.memory import LiveMemory, peak_activation_bytes

N = 1 << 12
BYTES = 4 * N


def test_a_temporary_counts_until_it_dies() -> None:
    weights = torch.ones(N)
    with LiveMemory() as memory:
        first = weights * 2
        second = first + 1
        del first
        assert (memory.live, memory.peak) == (BYTES, 2 * BYTES)
        del second
    assert memory.live == 0


def test_views_and_what_was_there_before_do_not_count() -> None:
    weights = torch.ones(N)
    with LiveMemory() as memory:
        weights.add_(1)
        view = weights.view(2, -1)[0]
    assert memory.peak == 0 and len(view) == N // 2


def test_what_autograd_keeps_counts_after_python_let_it_go() -> None:
    weights = torch.ones(N, requires_grad=True)
    with LiveMemory() as memory:
        loss = (weights * 2).sigmoid().exp().sum()  # the results of sigmoid and exp are kept
        kept = memory.live
        loss.backward()
        after = memory.live
        del loss
    assert 2 * BYTES <= kept < 2 * BYTES + 16
    assert BYTES <= after < BYTES + 16  # the gradient
    assert memory.peak >= 3 * BYTES


def test_fused_attention_keeps_no_matrix() -> None:
    q, k, v = (torch.randn(1, 2, 256, 8, requires_grad=True) for _ in range(3))
    with LiveMemory() as memory:
        out = F.scaled_dot_product_attention(q, k, v)
    assert out.nbytes <= memory.live < 2 * out.nbytes  # the matrices would be 32 times as much


def test_peak_of_a_run() -> None:
    weights = torch.ones(N)
    assert peak_activation_bytes(lambda: (weights + 1) * 2) == 2 * BYTES
