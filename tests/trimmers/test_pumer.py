"""PuMer: what the guide has least use for is pruned, then the most similar of the rest merged."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from smarttrim_cli.pruning.stream import begin_packed
from smarttrim_cli.trimmers import pumer
from smarttrim_cli.trimmers._ranked import KeepsAll
from smarttrim_cli.trimmers.base import SiteInfo, TokenView, Trimmer

N, D, GUIDE = 21, 6, 4


def trimmer(keep: float, merged: float, index: int = 0) -> Trimmer:
    torch.manual_seed(0)
    options = pumer.Options(layers=[0], merged=merged, hidden_dim=8)
    built = pumer.build(options, SiteInfo(f"vision.{index}.token", index, 2, D, GUIDE))
    built.set_target(keep)
    return built


def view_of(threshold: float = 0.0) -> TokenView:
    generator = torch.Generator().manual_seed(1)
    stream, _ = begin_packed(torch.ones(1, N, dtype=torch.bool))
    tokens, guide = torch.randn(1, N, D, generator=generator), torch.randn(1, GUIDE, generator=generator)
    return TokenView(tokens, tokens[:, 0], guide, stream, torch.zeros(1, N), threshold)


@torch.no_grad()
@pytest.mark.parametrize(("keep", "merged"), [(0.7, 0.5), (0.8, 1.0), (0.6, 0.0), (0.5, 0.3)])
def test_prunes_then_merges(keep: float, merged: float) -> None:
    model, view = trimmer(keep, merged), view_of()
    tokens = view.tokens[0]
    kept = (model(view) > 0)[0]
    removed = round((1 - keep) * 20)
    pruned = removed - round(merged * removed)
    logits = model.key(tokens) @ model.query(view.guide_cls_BD[0])
    by_use = (logits[1:].argsort() + 1).tolist()
    alive = set(range(1, N)) - set(by_use[:pruned])
    second = [b for b in range(1, N, 2) if b in alive]
    similar = {
        a: max((cosine_similarity(tokens[a], tokens[b], 0).item(), b) for b in second)
        for a in range(2, N, 2)
        if a in alive
    }
    gone = sorted(similar, key=lambda a: -similar[a][0])[: removed - pruned]
    assert (~kept).nonzero().flatten().tolist() == sorted([*gone, *by_use[:pruned]])
    out = model.rewrite(view, kept[None])[0]
    for b in second:
        assert_close(out[b], tokens[[b, *(a for a in gone if similar[a][1] == b)]].mean(0))
    for a in set(similar) - set(gone):
        assert torch.equal(out[a], tokens[a])


@torch.no_grad()
@pytest.mark.parametrize("threshold", [-2.0, 1.0, 3.0])
def test_the_threshold_shifts_what_is_kept(threshold: float) -> None:
    share = torch.sigmoid(torch.logit(torch.tensor(0.6)) - threshold).item()
    model, view = trimmer(0.6, 0.5), view_of(threshold)
    assert int((model(view) > threshold).sum()) == 1 + round(share * 20)


@torch.no_grad()
@pytest.mark.parametrize(("threshold", "pruned"), [(-1.0, 3), (0.0, 6), (1.0, 10)])
def test_the_threshold_shifts_what_is_pruned(threshold: float, pruned: int) -> None:
    """Three quarters of the 4, 8 and 13 of 20 that go where 80 %, 60 % and 36 % are kept."""
    model, view = trimmer(0.6, 0.25), view_of(threshold)
    plan = model._plan(view)
    by_use = (plan.logits_RN[0, 1:].argsort() + 1).tolist()
    assert plan.pruned_RN[0].nonzero().flatten().tolist() == sorted(by_use[:pruned])


@torch.no_grad()
def test_more_is_pruned_where_half_of_the_rest_cannot_merge() -> None:
    model, view = trimmer(0.3, 1.0), view_of()  # 14 of 20 go, of which 6 can be merged into 6
    plan = model._plan(view)
    assert int(plan.pruned_RN.sum()) == 8
    assert int((model(view) > 0).sum()) == 7


def test_the_projections_learn_straight_through() -> None:
    model, view = trimmer(0.5, 0.5), view_of()
    scores = model(view)
    plain = scores.detach()
    (scores[:, 1:].sigmoid() * torch.arange(1.0, N)).sum().backward()
    assert model.query.weight.grad.abs().sum() > 0 and model.key.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert_close(model(view), plain)


def test_that_gradient_does_not_reach_the_host() -> None:
    """Nor does it in PuMer, which takes the most attended; merging has the gradient of a mean."""
    model, view = trimmer(0.5, 0.5), view_of()
    view.tokens.requires_grad_()
    assert view.guide_cls_BD is not None
    view.guide_cls_BD.requires_grad_()
    model(view)[:, 1:].sum().backward()
    assert view.tokens.grad is None and view.guide_cls_BD.grad is None
    model.rewrite(view, model(view) > 0).sum().backward()
    assert view.tokens.grad is not None


@torch.no_grad()
def test_text_is_only_merged() -> None:
    torch.manual_seed(0)
    options = pumer.Options(layers=[0], merged=0.5, hidden_dim=8)
    model = pumer.build(options, SiteInfo("text.0.token", 0, 2, D, GUIDE))
    model.set_target(0.6)
    view = view_of()
    assert int((model(view) > 0).sum()) == 1 + 12
    assert not model._plan(view).pruned_RN.any()


def test_layers_that_were_not_chosen_keep_all() -> None:
    assert isinstance(trimmer(0.5, 0.5, index=1), KeepsAll)
