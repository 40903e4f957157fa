"""ToMe: the most similar tokens of one set are averaged into their partners of the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from smarttrim_cli.pruning.stream import begin_masked, begin_packed
from smarttrim_cli.trimmers import tome
from smarttrim_cli.trimmers._matching import merge
from smarttrim_cli.trimmers.base import SiteInfo, TokenView, Trimmer

D = 5


def trimmer(keep: float, width: int = D) -> Trimmer:
    built = tome.build(tome.Options(), SiteInfo("vision.0.token", 0, 1, width, 0))
    built.set_target(keep)
    return built


def view_of(tokens_ND: Tensor) -> TokenView:
    stream, _ = begin_packed(torch.ones(1, len(tokens_ND), dtype=torch.bool))
    return TokenView(tokens_ND[None], tokens_ND[:1], None, stream, torch.zeros(1, len(tokens_ND)))


@torch.no_grad()
def test_by_hand() -> None:
    """CLS, then 1 and 3 stay; 4 is nearly 3, 2 is somewhat like 1, and one of four removable goes."""
    tokens = torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.5], [0.0, 2.0], [0.1, 4.0]])
    model, view = trimmer(0.75, width=2), view_of(tokens)
    keep = model(view) > 0
    assert keep[0].tolist() == [True, True, True, True, False]
    out = model.rewrite(view, keep)[0]
    assert_close(out[:4], torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.5], [0.05, 3.0]]))


def test_several_may_merge_into_one() -> None:
    tokens = torch.tensor([[[7.0], [2.0], [4.0], [1.0], [6.0]]])
    merged, partner = torch.tensor([[False, True, True]]), torch.tensor([[0, 0, 0]])
    assert merge(tokens, merged, partner)[0, [0, 1, 3], 0].tolist() == [7.0, (2 + 4 + 6) / 3, 1.0]


@torch.no_grad()
@pytest.mark.parametrize("keep", [0.9, 0.75, 0.5, 0.3])
def test_r_tokens_merge_into_the_most_similar_ones(keep: float) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(21, D)
    model, view = trimmer(keep), view_of(tokens)
    kept = (model(view) > 0)[0]
    r = min(round((1 - keep) * 20), 10)
    first, second = list(range(2, 21, 2)), list(range(1, 21, 2))
    similar = {a: max((cosine_similarity(tokens[a], tokens[b], 0).item(), b) for b in second) for a in first}
    gone = sorted(first, key=lambda a: -similar[a][0])[:r]
    assert (~kept).nonzero().flatten().tolist() == sorted(gone)
    out = model.rewrite(view, kept[None])[0]
    for b in second:
        group = [b, *(a for a in gone if similar[a][1] == b)]
        assert_close(out[b], tokens[group].mean(0))


@torch.no_grad()
def test_the_second_set_is_never_dropped_and_the_cls_never_merged() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(12, D)
    tokens[3] = tokens[0]  # the CLS has a twin in the second set
    model, view = trimmer(0.05), view_of(tokens)
    keep = model(view) > 12.0
    assert keep[0].nonzero().flatten().tolist() == [0, 1, 3, 5, 7, 9, 11]
    twins = [a for a in (2, 4, 6, 8, 10) if cosine_similarity(tokens[a], tokens[1::2]).argmax() == 1]
    assert_close(model.rewrite(view, keep)[0, 3], tokens[[3, *twins]].mean(0))


def test_merged_tokens_pass_gradients_on() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 9, D, requires_grad=True)
    stream = begin_masked(torch.ones(1, 9, dtype=torch.bool))
    model = trimmer(0.5)
    view = TokenView(tokens, tokens[:, 0], None, stream, torch.zeros(1, 9))
    keep = model(view) > 0
    model.rewrite(view, keep)[keep].sum().backward()
    assert not list(model.parameters()) and (tokens.grad[0].abs().sum(1) > 0).all()


@torch.no_grad()
def test_an_instance_of_a_cls_alone() -> None:
    model, view = trimmer(0.5), view_of(torch.randn(1, D))
    assert (model(view) > 0).all()
    assert torch.equal(model.rewrite(view, torch.ones(1, 1, dtype=torch.bool)), view.tokens)
