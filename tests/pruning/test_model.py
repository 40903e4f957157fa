"""The model around a backbone: sites, trimmers, thresholds, logs; and what the context passes to trimmers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.context import (
    ForwardContext,
    current,
    enter,
    host_heads,
    leave,
    running,
    trim,
)
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.inject import attach_attention
from smarttrim_cli.pruning.model import TrimmedModel, build_trimmers, site_info
from smarttrim_cli.pruning.sites import Architecture, AttentionSpec, LayerSpec, Site
from smarttrim_cli.trimmers.base import SiteInfo, TokenView, Trimmer
from tests import tiny


class Spy(Trimmer):
    """Keeps everything and notes what it was given."""

    def __init__(self, info: SiteInfo) -> None:
        super().__init__()
        self.info = info
        self.seen: list[tuple[tuple[int, ...] | None, ...]] = []
        self.target: float | None = None
        self.started: float | None = None

    def forward(
        self, first: TokenView | Tensor, guide: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        if isinstance(first, TokenView):
            guide, own = first.guide_cls_BD, first.own_cls_BD
            self.seen.append((tuple(first.tokens.shape), tuple(own.shape), _shape(guide)))
            return first.tokens.new_ones(first.tokens.shape[:-1])
        self.seen.append((None, tuple(first.shape), _shape(guide)))
        return first.new_ones(first.shape[0], self.info.heads)

    def start_keeping(self, keep_logit: float) -> None:
        self.started = keep_logit

    def set_target(self, keep_fraction: float) -> None:
        self.target = keep_fraction


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def spied() -> TrimmedModel:
    host = tiny.meter()
    architecture = host.architecture()
    groups = sorted({site.group for site in architecture.sites()})
    return TrimmedModel(host, build_trimmers(architecture, groups, Spy, Spy)).eval()


def test_sites_and_groups() -> None:
    site = Site("vision", 3, "cross_head")
    assert site.name == "vision.3.cross_head" and site.group == "cross_head.vision"
    assert Site.parse("a.b.12.self_head") == Site("a.b", 12, "self_head")
    assert (
        Site("text", 0, "self_head").group == "head.text" and Site("text", 0, "token").group == "token.text"
    )


def test_every_site_has_its_widths() -> None:
    architecture = spied().architecture
    assert len(list(architecture.sites())) == 8 * 2 + 4  # eight layers, four of them with cross-attention
    assert architecture.depth("vision") == 4 and architecture.streams == ("text", "vision")
    assert site_info(architecture, Site("text", 1, "token")) == SiteInfo("text.1.token", 1, 4, 24, 0, 0)
    assert site_info(architecture, Site("vision", 0, "self_head")) == SiteInfo(
        "vision.0.self_head", 0, 4, 32, 24, 4
    )
    assert site_info(architecture, Site("text", 2, "cross_head")) == SiteInfo(
        "text.2.cross_head", 2, 4, 40, 40, 4
    )


@torch.no_grad()
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_what_trimmers_see(mode: str) -> None:
    model = spied()
    model(tiny.ragged_inputs(model.backbone), mode)
    text = (1, sum(tiny.LENGTHS)) if mode == "packed" else (5, 9)
    image = (1, 5 * 17) if mode == "packed" else (5, 17)
    seen = {name: trimmer.seen for name, trimmer in model.sites.items()}
    assert seen["text.0.token"] == [((*text, 24), (5, 24), None)]  # self guidance
    assert seen["vision.1.token"] == [((*image, 32), (5, 32), (5, 24))]  # the question guides
    assert seen["text.3.token"] == [((*text, 40), (5, 40), (5, 40))]
    assert seen["vision.0.self_head"] == [(None, (5, 32), (5, 24))]
    assert seen["vision.2.cross_head"] == [(None, (5, 40), (5, 40))]
    assert all(len(calls) == 1 for calls in seen.values())


@torch.no_grad()
def test_the_question_guides_with_its_final_cls() -> None:
    class Guided(Spy):
        def forward(self, first, guide=None, ids=None):  # type: ignore[no-untyped-def]
            self.guide = first.guide_cls_BD
            return first.tokens.new_ones(first.tokens.shape[:-1])

    host = tiny.meter()
    model = TrimmedModel(host, build_trimmers(host.architecture(), ["token.vision"], Guided, None)).eval()
    inputs = tiny.ragged_inputs(host)
    final = host.text_transformer(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state[:, 0]
    for mode in ("masked", "packed"):
        model(inputs, mode)
        torch.testing.assert_close(model.sites["vision.0.token"].guide, final, rtol=0.0, atol=1e-5)


def test_initial_state_and_targets_reach_all_trimmers() -> None:
    model = spied()
    model.start_keeping(2.5)
    model.set_targets({group: index / 10 for index, group in enumerate(model.groups)})
    assert {trimmer.started for trimmer in model.sites.values()} == {2.5}
    for name, trimmer in model.sites.items():
        assert trimmer.target == model.groups.index(Site.parse(name).group) / 10


def test_a_threshold_for_a_while() -> None:
    model = spied()
    model.threshold.fill_(0.5)
    with pytest.raises(KeyError), model.at_threshold(2.0):
        assert float(model.threshold) == 2.0
        raise KeyError
    assert float(model.threshold) == 0.5


@torch.no_grad()
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_scores_are_logged_in_original_positions(mode: str) -> None:
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)
    log = model(inputs, mode, log_scores=True).decisions
    assert set(log.scores) == set(model.sites)
    for name, scores in log.scores.items():
        assert scores.shape == log.keep[name].shape
        if name.endswith("head"):
            assert torch.equal(scores > 0, log.keep[name])
    before = log.keep["vision.0.token"]
    if mode == "packed":
        assert torch.equal(log.scores["vision.1.token"].isnan(), ~before)
    later = before & (log.scores["vision.1.token"] > 0)
    later[:, 0] = True
    assert torch.equal(later, log.keep["vision.1.token"])
    assert not model(inputs, mode).decisions.scores


def test_full_takes_no_decisions_and_unknown_modes_are_refused() -> None:
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)
    with pytest.raises(ValueError, match="no decisions"):
        _ = model(inputs, "full").decisions
    with pytest.raises(ValueError, match="mode must be one of"):
        model(inputs, "sparse")


def test_sampling_draws_anew_and_is_reproducible() -> None:
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)

    def draw(seed: int) -> list[float]:
        torch.manual_seed(seed)
        counts = model(inputs, "masked", sampling=Sampling(1.0, 1.0)).decisions.counts
        return torch.stack(list(counts.values())).flatten().tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_sampling_without_noise_decides_as_evaluation_does() -> None:
    model = tiny.paper_model()
    model.threshold.fill_(0.3)
    inputs = tiny.ragged_inputs(model.backbone)
    sampled = model(inputs, "masked", sampling=Sampling(0.5, 0.0)).decisions
    decided = model(inputs, "masked").decisions
    assert all(torch.equal(keep, decided.keep[name]) for name, keep in sampled.keep.items())


def test_without_a_context_nothing_happens() -> None:
    hidden = torch.randn(2, 3, 4)
    assert current() is None
    assert enter("text", hidden) is hidden
    assert trim(text=(0, hidden), vision=(3, hidden))[1] is hidden
    assert torch.equal(leave("text", hidden), hidden[:, 0])


def test_contexts_nest() -> None:
    outer, inner = (ForwardContext(mode, Architecture((), (), ()), {}) for mode in ("masked", "packed"))
    with running(outer):
        with running(inner):
            assert current() is inner
        assert current() is outer
    assert current() is None


def test_kept_heads_on_the_host() -> None:
    assert host_heads(torch.tensor([[1.0, 1.0], [1.0, 1.0]])) is None
    assert host_heads(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])) == (None, (1,), ())


def test_an_attention_that_no_adapter_reads_is_refused() -> None:
    def layer(style: str) -> Architecture:
        return Architecture(
            (LayerSpec("text", 0, "text_encoder", 4, 8, AttentionSpec("0", style, 1, 4)),), (), ()
        )

    with pytest.raises(UserError, match="no attention adapter named 'flax'") as error:
        attach_attention(nn.Sequential(nn.Linear(4, 4)), layer("flax"))
    assert error.value.where == "0"
    with pytest.raises(UserError, match="BERT family"):
        attach_attention(nn.Sequential(nn.Linear(4, 4)), layer("bert"))


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_training_step_in_mixed_precision(noise: float) -> None:
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        forward = model(inputs, "masked", sampling=Sampling(1.0, noise))
        kept = torch.stack([count.float().mean() for count in forward.decisions.counts.values()])
    (forward.output.float().square().mean() + kept.mean()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 0.9 * len(list(model.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_bfloat16_modes_agree_under_the_same_decisions(autocast: bool) -> None:
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)
    replay = model(inputs, "masked").decisions
    if not autocast:
        model.bfloat16()
        inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        masked, packed = (model(inputs, mode, replay=replay) for mode in ("masked", "packed"))
    assert all(torch.equal(keep, replay.keep[name]) for name, keep in packed.decisions.keep.items())
    torch.testing.assert_close(packed.output.float(), masked.output.float(), rtol=0.0, atol=0.15)
