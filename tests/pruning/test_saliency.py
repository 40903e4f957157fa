"""Saliency against finite differences of the attention's definition; the warm start's losses by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from smarttrim_cli.forms import Ranking
from smarttrim_cli.pruning import attention, saliency
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.objective import Objective, Weights
from smarttrim_cli.pruning.saliency import Warmup, distribution, divergence, own_answer, probe
from smarttrim_cli.pruning.sites import TOKEN, Site
from tests import tiny

STEP = 1e-4


def rows_of(output: Any) -> Tensor:
    """The distributions in a training output, as tasks find them (all places of a text count here)."""
    if hasattr(output, "matching"):
        return output.matching.flatten(0, -2)
    return output.flatten(0, -2)


def answer_of(output: Any) -> Tensor:
    return own_answer(output, rows_of(output))


def doubled(variant: tiny.Variant) -> tuple[Any, dict[str, Tensor]]:
    model = tiny.attach(variant.build(), "cross_modal", "global_head").double()
    inputs = tiny.ragged_inputs(model.backbone)
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        output = model(inputs, "full").output
    if hasattr(output, "negative_images"):  # which would be drawn anew
        inputs |= {"negative_images": output.negative_images, "negative_texts": output.negative_texts}
    return model, inputs


def answer_with(model: Any, inputs: dict[str, Tensor], masks: dict[str, Tensor]) -> float:
    """The answer with soft keep masks of tokens; nothing else is dropped."""
    log = model(inputs, "masked").decisions
    keep = {name: torch.ones_like(mask, dtype=torch.float64) for name, mask in log.keep.items()}
    for name, mask in masks.items():
        keep[name] = mask.clone().requires_grad_()  # so that attention looks at more than 0 and 1
    return float(answer_of(model(inputs, "masked", replay=Decisions(keep=keep)).output).detach())


def log_of_mask(keep_BM: Tensor, valid_BM: Tensor, *_: float) -> Tensor:
    """As a bias this makes attention exp(a) m / sum(exp(a) m), for any m > 0."""
    return keep_BM.clamp(min=1e-300).log().masked_fill(~valid_BM, -1e4)


@pytest.mark.parametrize("variant", tiny.one_per_form(), ids=str)
def test_saliency_is_the_slope_of_the_answer(variant: tiny.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = doubled(variant)
    found = probe(model, inputs)
    answer = answer_of(found.output)
    onward, alone = saliency.saliency(found, answer), saliency.saliency(found, answer, onward=False)
    monkeypatch.setattr(attention, "key_bias", log_of_mask)
    ones = {name: found.removable(name).double().fill_(1.0) for name in found.masks}
    for number, name in enumerate(onward):
        stream = Site.parse(name).stream
        later = [n for n in onward if Site.parse(n).stream == stream]
        after = later[later.index(name) + 1 :][:1]
        row, token = number % len(tiny.LENGTHS), 1 + number % 2

        def slope(both: list[str], name: str = name, place: Any = (row, token)) -> float:
            values = []
            for sign in (1, -1):
                masks = {n: mask.clone() for n, mask in ones.items()}
                masks[name][place] += sign * STEP
                for n in both:  # from there on the product is 1 again
                    masks[n][place] /= 1 + sign * STEP
                values.append(answer_with(model, inputs, masks))
            return abs(values[0] - values[1]) / (2 * STEP)

        assert float(onward[name][row, token]) == pytest.approx(slope([]), rel=1e-3, abs=1e-6), name
        assert float(alone[name][row, token]) == pytest.approx(slope(after), rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_everything_is_kept_and_what_may_not_be_dropped_has_none(variant: tiny.Variant) -> None:
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    found = probe(model, inputs)
    if isinstance(found.output, Tensor):
        assert_close(found.output, model(inputs, "full").output, atol=1e-5, rtol=1e-5)
    of_site = saliency.saliency(found, answer_of(found.output))
    assert list(of_site) == [name for name in model.sites if Site.parse(name).kind == TOKEN]
    for name, saliency_RN in of_site.items():
        removable_RN = found.removable(name)
        assert not removable_RN[:, 0].any() and removable_RN.any(1).all()
        assert saliency_RN[~removable_RN].abs().max() == 0
        assert (saliency_RN.sum(1) > 0).all() and torch.isfinite(saliency_RN).all()
        assert found.scores[name].shape == saliency_RN.shape
    lengths_B = torch.tensor(tiny.LENGTHS)
    if "text.0.token" in of_site and variant.form == "vqa":
        assert found.removable("text.0.token").sum(1).tolist() == (lengths_B - 1).tolist()


def test_saliency_of_a_host_without_trimmers() -> None:
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)
    first = probe(model, inputs)
    bare = saliency.TrimmedModel(model.backbone, {})
    second = probe(bare, inputs, sites=list(first.masks))
    assert second.scores == {}
    one, two = (saliency.saliency(found, answer_of(found.output)) for found in (first, second))
    for name in one:
        assert_close(one[name], two[name])


def test_an_instance_has_the_same_saliency_alone() -> None:
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)
    together = probe(model, inputs)
    alone = probe(model, tiny.instance(inputs, 1))
    one, all_of = (saliency.saliency(found, answer_of(found.output)) for found in (alone, together))
    for name in one:
        size = one[name].shape[1]
        assert_close(one[name][0], all_of[name][1, :size], rtol=1e-3, atol=1e-6)


def test_large_gradients_are_not_clipped() -> None:
    model = tiny.paper_model()
    found = probe(model, tiny.ragged_inputs(model.backbone))
    small = saliency.saliency(found, answer_of(found.output))
    large = saliency.saliency(found, answer_of(found.output) * 100)
    for name in small:
        assert_close(large[name], small[name] * 100, rtol=1e-3, atol=1e-5)


def test_small_gradients_do_not_vanish_in_float16() -> None:
    """Of answers that hardly depend on single tokens: what is learned is their relation."""
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)
    found = probe(model, inputs)
    exact = saliency.saliency(found, answer_of(found.output))
    with torch.autocast("cpu", torch.float16):
        found = probe(model, inputs)
        half = saliency.saliency(found, answer_of(found.output) * 0.01)
    for name in exact:
        one, two = (distribution(x[name], found.removable(name), Warmup()) for x in (exact, half))
        assert (one - two).abs().sum(-1).max() < 0.05, name


def test_own_answer() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 0.0]])
    assert own_answer(logits, logits).item() == 7.0
    ranking = Ranking(logits, torch.zeros(2, 2))
    assert own_answer(ranking, logits).item() == 7.0 and own_answer(ranking, logits[:1]).item() == 3.0
    written = logits.view(1, 1, 2, 3)
    expected = math.log(math.e**2 / (1 + math.e + math.e**2)) + math.log(
        math.e**5 / (math.e**5 + math.e**-1 + 1)
    )
    assert own_answer(written, logits).item() == pytest.approx(expected, rel=1e-5)


def test_distribution() -> None:
    saliency_RN = torch.tensor([[9.0, 4.0, 1.0, 0.0], [0.0, 0.0, 0.0, 7.0]])
    removable_RN = torch.tensor([[False, True, True, True], [False, True, True, False]])
    plain = distribution(saliency_RN, removable_RN, Warmup(smoothing=0.0))
    assert plain.tolist() == [[0.0, pytest.approx(0.8), pytest.approx(0.2), 0.0], [0.0] * 4]
    flat = distribution(saliency_RN, removable_RN, Warmup(temperature=2.0, smoothing=0.0))  # 2 : 1 : 0
    assert flat[0].tolist() == pytest.approx([0.0, 2 / 3, 1 / 3, 0.0])
    mixed = distribution(saliency_RN, removable_RN, Warmup(smoothing=0.3))
    assert mixed[0].tolist() == pytest.approx([0.0, 0.7 * 0.8 + 0.1, 0.7 * 0.2 + 0.1, 0.1])
    assert mixed[1].tolist() == [0.0] * 4  # no saliency at all: nothing to learn
    tiny_values = distribution(saliency_RN * 1e-30, removable_RN, Warmup(smoothing=0.0))
    assert_close(tiny_values, plain)


def test_divergence() -> None:
    target_RN = torch.tensor([[0.0, 0.75, 0.25, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    removable_RN = torch.tensor([[False, True, True, False]] * 2 + [[False] * 4])
    scores_RN = torch.tensor([[50.0, 1.0, 1.0, -30.0], [0.0, 2.0, 2.0, 99.0], [1.0, 2.0, 3.0, 4.0]])
    scores_RN.requires_grad_()
    found = divergence(target_RN, scores_RN, removable_RN)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found.item() == pytest.approx((expected + 0.0) / 2, rel=1e-5)
    found.backward()
    assert scores_RN.grad is not None
    assert_close(scores_RN.grad[0], torch.tensor([0.0, -0.125, 0.125, 0.0]))  # (softmax - target) / rows
    assert scores_RN.grad[2].abs().max() == 0


def test_the_warm_start_teaches_scores_and_backbone() -> None:
    model = tiny.paper_model(lively=False)
    model.start_keeping(3.0)
    for name, trimmer in model.sites.items():
        if name.endswith(TOKEN):
            assert trimmer.key.weight.abs().max() == 0
            trimmer.start_guided(0.1)
            assert trimmer.key.weight.std().item() == pytest.approx(0.1, rel=0.1)
    inputs, labels = tiny.ragged_inputs(model.backbone), torch.tensor([0, 1, 2, 3, 4])
    batch = type("Batch", (), {"inputs": inputs})

    def loss(output: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(output, labels)

    module = Objective(model, loss, lambda output, batch: output, Weights())
    optimizer = torch.optim.Adam(model.trimmers.parameters(), 1e-2)
    before = [p.clone() for p in model.trimmers.parameters()]
    found = []
    for _ in range(30):
        out = module(batch, Warmup(weight=2.0), 0.0)
        assert_close(out["loss"].detach(), out["task"] + 2.0 * out["guidance"])
        assert set(out) == {"loss", "task", "guidance", "guidance/token.vision", "guidance/token.text"}
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        found.append(out["guidance"].item())
    assert found[-1] < 0.5 * found[0]
    after = dict(zip([n for n, _ in model.trimmers.named_parameters()], before, strict=True))
    for name, parameter in model.trimmers.named_parameters():
        is_token = TOKEN in name.split(".")[0]
        moved = not torch.equal(parameter, after[name])
        constant = name.endswith("local.2.bias")  # a softmax does not see it
        assert moved == is_token or constant, name


def test_scores_and_backbone_learn_the_target_stays() -> None:
    model = tiny.paper_model()
    found = probe(model, tiny.ragged_inputs(model.backbone))
    losses = saliency.guidance_losses(found, answer_of(found.output), Warmup())
    assert all(torch.isfinite(loss) and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for name, parameter in model.backbone.named_parameters():
        if "patch_embed" in name or "embeddings.word" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
    head = [p.grad for n, p in model.backbone.named_parameters() if model.backbone.part_of(n) == "head"]
    assert head and all(grad is None for grad in head)  # it makes the target and nothing that is scored


def test_shifting_scores() -> None:
    model = tiny.attach(tiny.meter(), "local", "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    for trimmers in (model, tiny.paper_model()):
        with torch.no_grad():
            first = probe(trimmers, inputs)
            lowest = {name: saliency.score_quantiles(first, name, (0.0, 1.0))[0] for name in first.scores}
            for name in first.scores:
                trimmers.sites[name].shift_scores(1.5 - lowest[name])
            second = probe(trimmers, inputs)
        for name, scores_RN in second.scores.items():
            assert scores_RN[second.removable(name)].min().item() == pytest.approx(1.5, abs=1e-3)
            assert_close(scores_RN - first.scores[name], torch.full_like(scores_RN, 1.5 - lowest[name]))


def test_the_mean_level_of_rows() -> None:
    model = tiny.attach(tiny.meter(), "cross_modal", "global_head")
    found = probe(model, tiny.ragged_inputs(model.backbone))
    name = next(name for name in found.scores if name.startswith("text."))
    removable_RN, scores_RN = found.removable(name), found.scores[name]
    rows = [scores[there].exp().sum().log() for scores, there in zip(scores_RN, removable_RN, strict=True)]
    expected = torch.stack([row for row, there in zip(rows, removable_RN, strict=True) if there.any()]).mean()
    assert saliency.mean_log_total(found, name) == pytest.approx(float(expected.detach()), abs=1e-5)
