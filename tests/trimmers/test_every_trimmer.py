"""What every trimmer must do: same scores in both modes, keep everything at the start, cost what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchprofile import profile_macs

from smarttrim_cli import registry
from smarttrim_cli.pruning.stream import begin_masked, begin_packed
from smarttrim_cli.trimmers._simulated import SimulatedTrimmer
from smarttrim_cli.trimmers.base import SiteInfo, TokenView, Trimmer
from tests import tiny

B, N, D, GUIDE, HEADS = 3, 7, 12, 10, 4
VALID = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [1] * 5 + [0] * 2], dtype=torch.bool)
IDS = torch.tensor([11, 5, 1000])
GUIDES = pytest.mark.parametrize("guide", [0, GUIDE], ids=["self", "cross"])


def trimmer_of(name: str, guide: int, layer: int = 2, seed: int = 0) -> Trimmer:
    plugin = registry.load("trimmers", name)
    kind = "token" if plugin.SCORES == "token" else "cross_head" if guide else "self_head"
    torch.manual_seed(seed)
    site = SiteInfo(f"vision.{layer}.{kind}", layer, 4, D, guide, HEADS if kind != "token" else 0)
    return plugin.build(plugin.Options(), site)


def tensors(guide: int, scale: float = 1.0) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(B, N, D, generator=generator) * scale
    return hidden, torch.randn(B, guide, generator=generator) * scale if guide else None


def masked_view(hidden: Tensor, guide: Tensor | None) -> TokenView:
    stream = begin_masked(VALID)
    return TokenView(hidden, hidden[:, 0], guide, stream, stream.spread_scalar(IDS))


def packed_view(hidden: Tensor, guide: Tensor | None) -> TokenView:
    stream, index_T = begin_packed(VALID)
    return TokenView(
        hidden.flatten(0, 1)[index_T][None], hidden[:, 0], guide, stream, stream.spread_scalar(IDS)
    )


@torch.no_grad()
@GUIDES
@pytest.mark.parametrize("name", tiny.trimmers("token"))
def test_token_scores_are_the_same_in_both_modes_and_alone(name: str, guide: int) -> None:
    trimmer = trimmer_of(name, guide)
    trimmer.set_target(0.5)
    hidden, other = tensors(guide)
    masked, packed = trimmer(masked_view(hidden, other)), trimmer(packed_view(hidden, other))
    assert masked.shape == (B, N) and packed.shape == (1, int(VALID.sum()))
    assert_close(packed[0], masked[VALID])
    for index in range(B):
        length = int(VALID[index].sum())
        stream = begin_masked(torch.ones(1, length, dtype=torch.bool))
        row = hidden[index : index + 1, :length]
        own_guide = None if other is None else other[index : index + 1]
        view = TokenView(row, row[:, 0], own_guide, stream, stream.spread_scalar(IDS[index : index + 1]))
        assert_close(trimmer(view)[0], masked[index, :length])


REWRITING = [name for name in tiny.trimmers("token") if trimmer_of(name, GUIDE).rewrites]


@torch.no_grad()
@GUIDES
@pytest.mark.parametrize("replayed", [False, True], ids=["own", "replayed"])
@pytest.mark.parametrize("name", REWRITING)
def test_rewritten_tokens_are_the_same_in_both_modes_and_alone(name: str, guide: int, replayed: bool) -> None:
    trimmer = trimmer_of(name, guide)
    trimmer.set_target(0.5)
    hidden, other = tensors(guide)
    masked, packed = masked_view(hidden, other), packed_view(hidden, other)
    keep = (trimmer(masked) > 0) & VALID
    if replayed:
        keep = (torch.rand(B, N, generator=torch.Generator().manual_seed(1)) < 0.5) & VALID
        keep[:, 0] = True
    else:
        trimmer(packed)
    out = trimmer.rewrite(masked, keep)
    assert out.shape == hidden.shape
    assert_close(trimmer.rewrite(packed, keep[VALID][None])[0][keep[VALID]], out[keep])
    assert not torch.allclose(out[keep], hidden[keep])
    assert torch.equal(out[:, 0], hidden[:, 0])
    for index in range(B):
        length = int(VALID[index].sum())
        stream = begin_masked(torch.ones(1, length, dtype=torch.bool))
        row = hidden[index : index + 1, :length]
        own_guide = None if other is None else other[index : index + 1]
        view = TokenView(row, row[:, 0], own_guide, stream, stream.spread_scalar(IDS[index : index + 1]))
        kept = keep[index, :length]
        assert_close(trimmer.rewrite(view, kept[None])[0][kept], out[index, :length][kept])


@torch.no_grad()
@pytest.mark.parametrize("name", REWRITING)
def test_nothing_is_rewritten_where_nothing_or_everything_is_dropped(name: str) -> None:
    trimmer = trimmer_of(name, GUIDE)
    trimmer.set_target(0.5)
    hidden, other = tensors(GUIDE)
    only_cls = torch.zeros_like(VALID)
    only_cls[:, 0] = True
    for keep in (VALID, only_cls):
        assert_close(trimmer.rewrite(masked_view(hidden, other), keep)[keep], hidden[keep])


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.trimmers("token"))
def test_a_simulated_trimmer_draws_at_random_and_rewrites(name: str) -> None:
    real, random = trimmer_of(name, GUIDE), trimmer_of("random_token", GUIDE)
    trimmer = SimulatedTrimmer(real, random)
    trimmer.set_target(0.5)
    hidden, other = tensors(GUIDE)
    view = packed_view(hidden, other)
    assert_close(trimmer(view), random(view))
    assert (trimmer.rewrites, trimmer.relative) == (real.rewrites, real.relative)
    keep = torch.arange(int(VALID.sum()))[None] % 2 == 0
    assert_close(trimmer.rewrite(view, keep), real.rewrite(view, keep))


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.trimmers("token"))
def test_a_packed_token_keeps_its_score_when_others_are_gone(name: str) -> None:
    trimmer = trimmer_of(name, GUIDE)
    if trimmer.relative:
        pytest.skip("scores are ranks among the tokens that are left")
    trimmer.set_target(0.5)
    hidden, other = tensors(GUIDE)
    whole = packed_view(hidden, other)
    stream, index_K = whole.stream.select(torch.arange(int(VALID.sum())) % 3 != 1)
    fewer = TokenView(whole.tokens[:, index_K], hidden[:, 0], other, stream, stream.spread_scalar(IDS))
    assert_close(trimmer(fewer)[0], trimmer(whole)[0, index_K])


@torch.no_grad()
@GUIDES
@pytest.mark.parametrize("name", tiny.trimmers("head"))
def test_head_scores_depend_on_the_instance_alone(name: str, guide: int) -> None:
    trimmer = trimmer_of(name, guide)
    trimmer.set_target(0.5)
    hidden, other = tensors(guide)
    scores = trimmer(hidden[:, 0], other, IDS)
    assert scores.shape == (B, HEADS)
    for index in range(B):
        rows = slice(index, index + 1)
        alone = trimmer(hidden[rows, 0], None if other is None else other[rows], IDS[rows])
        assert_close(alone[0], scores[index])
    if trimmer.by_importance:
        assert torch.equal(scores, scores[:1].expand_as(scores))
    else:
        assert not torch.allclose(scores[0], scores[1])


@torch.no_grad()
@GUIDES
@pytest.mark.parametrize("name", registry.names("trimmers"))
def test_stable_initialisation_keeps_everything(name: str, guide: int) -> None:
    for seed in range(5):
        trimmer = trimmer_of(name, guide, seed=seed)
        trimmer.start_keeping(3.0)
        trimmer.set_target(1.0)
        hidden, other = tensors(guide)
        token = registry.load("trimmers", name).SCORES == "token"
        scores = trimmer(masked_view(hidden, other)) if token else trimmer(hidden[:, 0], other, IDS)
        assert scores.min() > 1.0
        if any(True for _ in trimmer.parameters()) and not getattr(trimmer, "relative", False):
            assert_close(scores, torch.full_like(scores, 3.0), rtol=0.0, atol=1.5)


@torch.no_grad()
def test_stable_initialisation_keeps_everything_of_large_activations() -> None:
    """Residual streams of pretrained ViTs have channels of this size."""
    for name in (name for name in registry.names("trimmers") if list(trimmer_of(name, GUIDE).parameters())):
        _assert_keeps_everything(name, 30.0)


def _assert_keeps_everything(name: str, scale: float) -> None:
    trimmer = trimmer_of(name, GUIDE)
    trimmer.start_keeping(3.0)
    hidden, other = tensors(GUIDE, scale)
    token = registry.load("trimmers", name).SCORES == "token"
    scores = trimmer(masked_view(hidden, other)) if token else trimmer(hidden[:, 0], other, IDS)
    assert scores.min() > 0, name


@pytest.mark.parametrize("name", registry.names("trimmers"))
def test_stable_initialisation_leaves_every_parameter_something_to_learn(name: str) -> None:
    """Not necessarily at the first step: what lies behind a weight of zero follows at the second."""
    trimmer = trimmer_of(name, GUIDE)
    trimmer.start_keeping(3.0)
    if not list(trimmer.parameters()):
        return
    hidden, other = tensors(GUIDE)
    token = registry.load("trimmers", name).SCORES == "token"
    optimizer = torch.optim.SGD(trimmer.parameters(), 0.01)
    if trimmer.relative:  # it learns from what it drops
        trimmer.set_target(0.5)
    for _ in range(2):
        view = masked_view(hidden, other)
        scores = trimmer(view) if token else trimmer(hidden[:, 0], other, IDS)
        optimizer.zero_grad()
        loss = scores.clamp(max=100.0).square().sum()
        if trimmer.rewrites:
            loss = loss + trimmer.rewrite(view, (scores > 0) & VALID).square().sum()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trimmer.parameters())


class OneInstance(nn.Module):
    """A trimmer on one instance, with tensors for arguments: what torchprofile can trace."""

    def __init__(self, trimmer: Trimmer, token: bool) -> None:
        super().__init__()
        self.trimmer, self.token = trimmer, token

    def forward(self, tokens_1TD: Tensor, own: Tensor, guide: Tensor | None = None) -> Tensor:
        ids = torch.zeros(1, dtype=torch.long)
        if not self.token:
            return self.trimmer(own, guide, ids)
        stream, _ = begin_packed(torch.ones(tokens_1TD.shape[:2], dtype=torch.bool))
        view = TokenView(tokens_1TD, own, guide, stream, stream.spread_scalar(ids))
        scores = self.trimmer(view)
        if not self.trimmer.rewrites:
            return scores
        return torch.cat((scores.unsqueeze(-1), self.trimmer.rewrite(view, scores > 0)), -1)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
@GUIDES
@pytest.mark.parametrize("name", registry.names("trimmers"))
def test_macs_are_those_that_torchprofile_counts(name: str, guide: int) -> None:
    trimmer = trimmer_of(name, guide)
    token = registry.load("trimmers", name).SCORES == "token"
    for tokens in (1, 9, 30):
        arguments = [
            torch.randn(1, tokens, D),
            torch.randn(1, D),
            *([torch.randn(1, guide)] if guide else []),
        ]
        counted = profile_macs(OneInstance(trimmer, token), tuple(arguments))
        stated = trimmer.fixed_macs() + tokens * (trimmer.token_macs() + tokens * trimmer.pair_macs())
        if trimmer.pair_macs():  # an odd number of tokens makes unequal halves
            assert abs(stated - counted) <= trimmer.pair_macs()
        elif any(True for _ in trimmer.parameters()):
            assert counted == stated
        else:  # hashing multiplies a few integers, which no other trimmer of a model would notice
            assert stated == 0 and counted <= 20 * max(tokens, HEADS)


@pytest.mark.parametrize("name", registry.names("trimmers"))
def test_options_refuse_unknown_keys(name: str) -> None:
    with pytest.raises(ValueError, match="no_such_key"):
        registry.options("trimmers", {"name": name, "no_such_key": 1})
