"""TRIPS: exactly k tokens and a fused one, whose value is the attention-weighted mean of what was dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from smarttrim_cli.pruning.stream import begin_masked, begin_packed
from smarttrim_cli.trimmers import trips
from smarttrim_cli.trimmers._ranked import KeepsAll
from smarttrim_cli.trimmers.base import SiteInfo, TokenView, Trimmer

B, N, D, GUIDE = 2, 9, 6, 4
VALID = torch.tensor([[1] * 9, [1] * 6 + [0] * 3], dtype=torch.bool)


def trimmer(guide: int = GUIDE, index: int = 0, keep: float = 0.5, **options: object) -> Trimmer:
    torch.manual_seed(0)
    section = trips.Options(**{"layers": [0], "hidden_dim": 8, "heads": 2, **options})
    built = trips.build(section, SiteInfo(f"vision.{index}.token", index, 2, D, guide))
    built.set_target(keep)
    return built


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, N, D, generator=generator), torch.randn(B, GUIDE, generator=generator)


def masked_view(hidden: Tensor, guide: Tensor | None) -> TokenView:
    stream = begin_masked(VALID)
    return TokenView(hidden, hidden[:, 0], guide, stream, stream.spread_scalar(torch.arange(B)))


def attention(trips_trimmer: Trimmer, tokens_ND: Tensor, guide_D: Tensor) -> Tensor:
    """Mean over the two heads of the softmax over the tokens of one instance, its CLS left out."""
    query, keys = trips_trimmer.query(guide_D), trips_trimmer.key(tokens_ND[1:])
    heads = [(keys[:, h : h + 4] @ query[h : h + 4] / 2.0).softmax(0) for h in (0, 4)]
    return (heads[0] + heads[1]) / 2


@torch.no_grad()
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_k_tokens_of_most_attention_and_a_fused_one(share: float) -> None:
    model = trimmer(keep=share)  # one chosen layer at the start: the ratio is the mean
    hidden, guide = inputs()
    view = masked_view(hidden, guide)
    keep = (model(view) > 0) & VALID
    out = model.rewrite(view, keep)
    for row, length in enumerate((8, 5)):
        weights = attention(model, hidden[row, : length + 1], guide[row])
        order = (weights.argsort(descending=True) + 1).tolist()
        k = round(share * length)
        assert keep[row].nonzero().flatten().tolist() == sorted([0, *order[: k + 1]])
        fused = weights[[i - 1 for i in order[k:]]]
        assert_close(out[row, order[k]], (fused / fused.sum()) @ hidden[row, order[k:]])
        for index in (0, *order[:k]):
            assert torch.equal(out[row, index], hidden[row, index])


@torch.no_grad()
def test_without_fusing_k_tokens_are_left_as_they_are() -> None:
    model = trimmer(fuse=False)
    assert not model.rewrites
    hidden, guide = inputs()
    keep = (model(masked_view(hidden, guide)) > 0) & VALID
    assert keep.sum(1).tolist() == [5, 3]  # the CLS, four of eight, two of five


@torch.no_grad()
def test_the_own_cls_guides_where_there_is_no_other() -> None:
    hidden, guide = inputs()
    model = trimmer(guide=0)
    scores = model(masked_view(hidden, None))
    order = scores[0, 1:].argsort(descending=True)
    assert torch.equal(order, attention(model, hidden[0], hidden[0, 0]).argsort(descending=True))
    assert not torch.equal(order, trimmer()(masked_view(hidden, guide))[0, 1:].argsort(descending=True))


@torch.no_grad()
def test_layers_that_were_not_chosen_keep_all_and_cost_nothing() -> None:
    other = trimmer(index=1, keep=0.1)
    assert isinstance(other, KeepsAll) and not other.rewrites
    assert (other(masked_view(*inputs())) > 1000).all()
    assert other.fixed_macs() == other.token_macs() == 0


@torch.no_grad()
def test_large_activations_do_not_spoil_the_weights() -> None:
    model, (hidden, guide) = trimmer(), inputs()
    view = masked_view(hidden * 1e4, guide * 1e4)
    out = model.rewrite(view, (model(view) > 0) & VALID)
    assert out.isfinite().all()


def test_the_projections_learn_through_the_fused_token_alone() -> None:
    hidden, guide = inputs()
    model = trimmer()
    view = masked_view(hidden, guide)
    scores = model(view)
    assert not scores.requires_grad
    model.rewrite(view, (scores > 0) & VALID).square().sum().backward()
    assert model.query.weight.grad.abs().sum() > 0 and model.key.weight.grad.abs().sum() > 0


def test_a_plain_top_k_learns_straight_through() -> None:
    model = trimmer(fuse=False)
    scores = model(masked_view(*inputs()))
    scores[:, 1:].square().sum().backward()
    assert model.query.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_an_instance_of_a_cls_alone() -> None:
    stream, _ = begin_packed(torch.ones(1, 1, dtype=torch.bool))
    tokens, model = torch.randn(1, 1, D), trimmer()
    view = TokenView(tokens, tokens[:, 0], torch.randn(1, GUIDE), stream, torch.zeros(1, 1))
    assert model(view).shape == (1, 1)
    assert torch.equal(model.rewrite(view, torch.ones(1, 1, dtype=torch.bool)), tokens)


def test_options() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        trips.Options(hidden_dim=10, heads=4)
    assert trips.Options().fuse
