"""Masked attention against the plain formula exp(a) m / sum(exp(a) m), and packed segments against it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from smarttrim_cli.engine.memory import LiveMemory
from smarttrim_cli.pruning import attention
from smarttrim_cli.pruning.attention import AttentionState, attend, key_bias, masked_sdpa, plain_attention
from smarttrim_cli.pruning.stream import MaskedStream

B, N, M, H, E = 2, 3, 6, 2, 4


class Given:
    """Projections that return given queries, keys and values and do not project the result."""

    num_heads, head_dim, scale, dropout = H, E, E**-0.5, 0.0

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.qkv = q, k, v

    def project(self, query: Tensor, memory: Tensor, heads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv

    def merge(self, context: Tensor, heads: Tensor | None) -> Tensor:
        return context.flatten(-2)

    def empty(self, query: Tensor) -> Tensor:
        return torch.zeros_like(query)


def tensors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> Tensor:
        return torch.randn(B, length, H, E, generator=generator, dtype=torch.float64).requires_grad_()

    return draw(N), draw(M), draw(M)


def mask() -> tuple[Tensor, Tensor]:
    """Keep mask with two dropped keys and one on padding, and the mask of real tokens."""
    keep = torch.tensor([[1.0, 0, 1, 0, 1, 1], [1, 1, 0, 1, 1, 0]], dtype=torch.float64)
    valid = torch.ones(B, M, dtype=torch.bool)
    valid[1, 5] = False
    return keep.requires_grad_(), valid


def plain(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, valid: Tensor) -> Tensor:
    logits = torch.einsum("bnhe,bmhe->bhnm", q, k) / math.sqrt(E)
    weights = logits.exp() * (keep * valid)[:, None, None, :]
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bhnm,bmhe->bnhe", weights, v).flatten(2)


def ours(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, valid: Tensor, heads: Tensor | None = None) -> Tensor:
    stream = MaskedStream(valid, keep)
    rows = q.new_zeros(B, N, H * E)
    return attend(Given(q, k, v), rows, rows, AttentionState(stream, stream, heads), False)


@pytest.fixture
def unclipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "key_bias", lambda keep, valid, *_: key_bias(keep, valid, math.inf))


@pytest.mark.parametrize("seed", range(3))
def test_forward_and_every_gradient_equal_the_plain_formula(unclipped: None, seed: int) -> None:
    q, k, v = tensors(seed)
    keep, valid = mask()
    expected, found = plain(q, k, v, keep, valid), ours(q, k, v, keep, valid)
    assert_close(found, expected, rtol=0.0, atol=1e-12)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v, keep))
    got = torch.autograd.grad((found * weight).sum(), (q, k, v, keep))
    for name, one, other in zip("qkvm", got, wanted, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    dropped = (keep == 0) & valid
    assert got[3][dropped].abs().min() > 1e-4  # a dropped key learns, too


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_without_a_gradient_for_the_mask_dropped_keys_are_gone(dtype: torch.dtype) -> None:
    q, k, v = (x.detach().to(dtype) for x in tensors())
    keep, valid = (x.detach() for x in mask())
    out = ours(q, k, v, keep, valid)
    assert out.dtype == dtype
    atol = 1e-12 if dtype == torch.float64 else 0.03
    assert_close(out.double(), plain(*tensors(), keep, valid), rtol=0.0, atol=atol)
    gone = (keep == 0) | ~valid
    k[gone], v[gone] = k[gone] + 40, v[gone] - 40
    assert torch.equal(ours(q, k, v, keep, valid), out)


def test_no_matrix_of_weights_is_kept_for_the_gradient_of_the_mask() -> None:
    tokens = 256
    q, k, v = (torch.randn(1, H, tokens, E, requires_grad=True) for _ in range(3))
    keep = (torch.arange(tokens) % 2 == 0).float()[None].requires_grad_()
    stream = MaskedStream(torch.ones(1, tokens, dtype=torch.bool), keep)
    with LiveMemory() as memory:
        out = masked_sdpa(Given(q, k, v), q, k, v, stream, training=True)
        kept = memory.live
        out.sum().backward()
    assert kept < H * tokens * tokens * 4 / 4
    assert keep.grad is not None and keep.grad[keep == 0].abs().min() > 0


def test_gradients_of_queries_keys_and_values_by_finite_differences() -> None:
    keep, valid = mask()
    keep = keep.detach()
    assert torch.autograd.gradcheck(lambda q, k, v: ours(q, k, v, keep, valid), tensors(5), atol=1e-6)


def test_float32_gradient_of_the_mask_is_close() -> None:
    q, k, v = (x.detach().float() for x in tensors())
    keep, valid = mask()
    single = keep.detach().float().requires_grad_()
    (wanted,) = torch.autograd.grad(plain(*tensors(), keep, valid).square().sum(), keep)
    (got,) = torch.autograd.grad(ours(q, k, v, single, valid).square().sum(), single)
    assert_close(got, wanted.clamp(-1, 1).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize(
    ("dtype", "scale", "close"),
    [(torch.bfloat16, 1.0, 0.05), (torch.float16, 1.0, 0.01), (torch.float16, 2.0**16, 0.01)],
)
def test_gradient_of_the_mask_in_half_precision(
    dtype: torch.dtype, scale: float, close: float, width: int
) -> None:
    """Under autocast, where kernels have another precision than what they are given, and a scaled loss."""
    generator = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(2, 4, 24, width, generator=generator) for _ in range(3))
    keep = (torch.rand(2, 24, generator=generator) > 0.4).float().requires_grad_()
    valid = torch.ones(2, 24, dtype=torch.bool)
    given = Given(q, k, v)
    given.head_dim, given.scale = width, width**-0.5
    weight = torch.randn(2, 4, 24, width, generator=generator) / 400

    def gradient(x: type | torch.dtype, limit: float, factor: float, enabled: bool) -> Tensor:
        stream = MaskedStream(valid, keep, gradient_limit=limit)
        with torch.autocast("cpu", dtype if enabled else torch.bfloat16, enabled=enabled):
            out = masked_sdpa(given, *(y.to(x) for y in (q, k, v)), stream, training=True)
        (found,) = torch.autograd.grad((out.float() * weight).sum() * factor, keep)
        return found / factor

    wanted, got = gradient(torch.float32, 1.0, 1.0, False), gradient(dtype, scale, scale, True)
    dropped = keep == 0
    assert 0 < wanted[dropped].abs().max() < 1
    for part in (dropped, ~dropped):
        assert (got[part] - wanted[part]).norm() <= close * wanted[part].norm()


@pytest.mark.parametrize("way", ["plain", "masked", "masked with gradients"])
def test_dropout_of_weights_is_active_in_training(way: str) -> None:
    """Alike rows, four keys of six seen: without any of them a query gets nothing, in the mean the same."""
    torch.manual_seed(0)
    rows, seen = 20000, torch.tensor([1.0, 0, 1, 0, 1, 1])
    q, k, v = (x[:1].detach().float().expand(rows, *x.shape[1:]) for x in tensors())
    given = Given(q, k, v)
    given.dropout = 0.5

    def attended(training: bool) -> Tensor:
        if way == "plain":
            return plain_attention(given, q, k, (seen > 0).view(1, 1, 1, M), training).unflatten(-1, (H, E))
        keep = seen.expand(rows, M).clone().requires_grad_(way == "masked with gradients")
        stream = MaskedStream(torch.ones(rows, M, dtype=torch.bool), keep)
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return masked_sdpa(given, *heads_first, stream, training).detach().transpose(1, 2)

    trained, evaluated = attended(True), attended(False)
    assert float((evaluated.abs() < 1e-12).all(-1).float().mean()) == 0
    assert float((trained.abs() < 1e-12).all(-1).float().mean()) == pytest.approx(0.5**4, abs=0.005)
    assert_close(trained.mean(0), evaluated[0], rtol=0.0, atol=0.05)


def test_padding_gets_no_weight_and_no_gradient(unclipped: None) -> None:
    q, k, v = tensors()
    keep, valid = mask()
    out = ours(q, k, v, keep, valid)
    gradients = torch.autograd.grad(out.square().sum(), (k, v, keep))
    assert gradients[0][1, 5].abs().max() == 0 and gradients[1][1, 5].abs().max() == 0
    assert gradients[2][1, 5] == 0
    other = v.detach().clone()
    other[1, 5] = 1e6
    assert torch.equal(ours(q, k, other, keep, valid), out)


def test_the_gradient_of_a_mask_is_clipped() -> None:
    keep, valid = mask()
    seen = torch.linspace(-3, 3, B * M, dtype=torch.float64).view(B, M)
    kept = keep > 0.5
    for limit in (0.5, 1.0, math.inf):
        upstream = torch.where(kept, seen, seen * math.exp(-50.0))
        (got,) = torch.autograd.grad(key_bias(keep, valid, limit), keep, upstream)
        assert_close(got, (seen * valid).clamp(-limit, limit))


def test_a_large_logit_of_a_dropped_key_is_clipped_by_default() -> None:
    q, k, v = tensors()
    keep, valid = mask()
    with torch.no_grad():
        k[0, 1] = q[0, 0] * 8
    (plain_gradient,) = torch.autograd.grad(plain(q, k, v, keep, valid).sum(), keep)
    (got,) = torch.autograd.grad(ours(q, k, v, keep, valid).sum(), keep)
    assert plain_gradient.abs().max() > 10
    assert got.abs().max() <= 1.0


def test_bias_values() -> None:
    keep, valid = mask()
    expected = torch.where(valid, torch.where(keep > 0.5, 0.0, -50.0), -1e4).double()
    assert torch.equal(key_bias(keep, valid), expected)


def test_dropped_heads_contribute_nothing_and_learn() -> None:
    q, k, v = tensors()
    keep, valid = mask()
    heads = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    out = ours(q, k, v, keep, valid, heads)
    whole = plain(q, k, v, keep, valid).unflatten(-1, (H, E))
    expected = (whole * heads[:, None, :, None]).flatten(2)
    assert_close(out, expected)
    (got,) = torch.autograd.grad(out.sum(), heads)
    assert_close(got, whole.sum((1, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_finite(dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in tensors())
    keep, valid = mask()
    single = keep.detach().float().requires_grad_()
    out = ours(q.to(dtype), k.to(dtype), v.to(dtype), single, valid)
    assert out.dtype == dtype
    assert_close(out.double(), plain(q, k, v, keep, valid), rtol=0.0, atol=0.03)
    (got,) = torch.autograd.grad(out.float().square().sum(), single)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_queries_and_keys_may_come_in_single_precision(dtype: torch.dtype) -> None:
    """As autocast's norms leave them on a GPU, beside values in half precision."""
    q, k, v = (x.detach() for x in tensors())
    keep, valid = mask()
    single = keep.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype):
        out = ours(q.float(), k.float(), v.to(dtype), single, valid)
    assert out.dtype == dtype
    assert_close(out.double(), plain(q, k, v, keep, valid), rtol=0.0, atol=0.03)


def test_a_dropped_key_with_a_huge_logit_has_no_influence() -> None:
    q, k, v = (x.detach() for x in tensors())
    keep, valid = (x.detach() for x in mask())
    k[0, 1] = q[0, 0] * 60 / q[0, 0].square().sum(-1, keepdim=True) * math.sqrt(E)  # logit 60 for query 0
    other = v.clone()
    other[0, 1] += 1.0
    assert_close(ours(q, k, other, keep, valid), ours(q, k, v, keep, valid), rtol=0.0, atol=1e-5)
