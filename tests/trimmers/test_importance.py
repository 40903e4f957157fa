"""Heads ranked by importance: grad-layer's share of every module, grad-all's share of the whole model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smarttrim_cli.pruning.sites import Site
from smarttrim_cli.trimmers import grad_all_head, grad_layer_head, saliency_head
from smarttrim_cli.trimmers._importance import ImportanceTrimmer, normalised, places_among
from smarttrim_cli.trimmers.base import SiteInfo
from tests import tiny

SITES = [f"vision.{layer}.self_head" for layer in range(4)] + ["text.0.self_head", "text.0.cross_head"]
HEADS = 12


def importance(seed: int = 0, scale: bool = True) -> dict[str, Tensor]:
    """Modules of very different size of gradient."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 3, len(SITES)) if scale else torch.ones(len(SITES))
    return {
        name: size * torch.rand(HEADS, generator=generator) ** 3
        for name, size in zip(SITES, sizes, strict=True)
    }


def trimmers(plugin: object, measured: dict[str, Tensor], **options: object) -> dict[str, ImportanceTrimmer]:
    built = {}
    for name, values in measured.items():
        site = SiteInfo(name, Site.parse(name).layer, 4, 8, 0, len(values))
        built[name] = plugin.build(plugin.Options(**options), site)  # type: ignore[attr-defined]
        built[name].set_importance(name, measured)
    return built


def kept(built: dict[str, ImportanceTrimmer], share: float, threshold: float = 0.0) -> dict[str, Tensor]:
    for trimmer in built.values():
        trimmer.set_target(share)
    return {name: t(torch.zeros(2, 8), None, torch.arange(2))[1] > threshold for name, t in built.items()}


@pytest.mark.parametrize("threshold", [-6.0, 0.0, 6.0])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_saliency_heads_are_the_best_of_the_model_at_their_level(share: float, threshold: float) -> None:
    measured = importance(2)
    built = trimmers(saliency_head, measured)
    for trimmer in built.values():
        trimmer.shift_scores(threshold - trimmer.level())
        assert trimmer.level() == threshold
    keep = kept(built, share, threshold)
    count = round(share * HEADS * len(SITES))
    assert sum(int(mask.sum()) for mask in keep.values()) == count
    best = torch.cat(list(measured.values())).sort(descending=True).values[:count]
    chosen = torch.cat([measured[name][mask] for name, mask in keep.items()]).sort(descending=True).values
    torch.testing.assert_close(chosen, best)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_grad_layer_keeps_the_best_of_every_module(share: float) -> None:
    measured = importance()
    for name, keep in kept(trimmers(grad_layer_head, measured), share).items():
        count = round(share * HEADS)
        assert int(keep.sum()) == count
        best = sorted(measured[name].tolist(), reverse=True)[:count]
        assert sorted(measured[name][keep].tolist(), reverse=True) == best


def test_grad_layer_loses_one_head_of_the_model_at_a_time() -> None:
    """Budgets can be met though all modules have the same number of heads."""
    built = trimmers(grad_layer_head, importance())
    kept(built, 0.5)
    scores = torch.cat([t(torch.zeros(1, 8), None, torch.zeros(1))[0] for t in built.values()]).tolist()
    assert len(set(scores)) == len(SITES) * HEADS
    turns = sorted(scores, reverse=True)
    for rank in range(HEADS):  # those of one rank are close together
        turn = turns[rank * len(SITES) : (rank + 1) * len(SITES)]
        assert turn[0] - turn[-1] < 0.15


def test_grad_layer_with_a_tie_keeps_one_more_where_it_matters_most() -> None:
    """Half of five heads: three in half of the modules, those whose third head has more of the importance."""
    measured = {name: values[:5] for name, values in importance().items()}
    counts = {name: int(keep.sum()) for name, keep in kept(trimmers(grad_layer_head, measured), 0.5).items()}
    third = {name: float(v.sort().values[2] / v.norm()) for name, v in measured.items()}
    threes = [name for name, count in counts.items() if count == 3]
    assert set(counts.values()) <= {2, 3}
    assert all(third[a] > third[b] for a in threes for b in counts if b not in threes)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_grad_all_keeps_the_best_of_the_model(normalise: bool, share: float) -> None:
    measured = importance(1)
    keep = kept(trimmers(grad_all_head, measured, normalise=normalise), share)
    values = {
        name: v / sum(x * x for x in v.tolist()) ** 0.5 if normalise else v for name, v in measured.items()
    }
    best = sorted(torch.cat(list(values.values())).tolist(), reverse=True)
    best = best[: round(share * len(SITES) * HEADS)]
    found = torch.cat([values[name][mask] for name, mask in keep.items()])
    assert sorted(found.tolist(), reverse=True) == best


def test_grad_all_may_empty_a_module() -> None:
    measured = importance(2)
    counts = [
        int(keep.sum()) for keep in kept(trimmers(grad_all_head, measured, normalise=False), 0.3).values()
    ]
    assert min(counts) == 0 and max(counts) == HEADS
    measured["vision.1.self_head"] = torch.ones(
        HEADS
    )  # nothing stands out here, so after dividing it is last
    keep = kept(trimmers(grad_all_head, measured), 0.2)
    assert int(keep["vision.1.self_head"].sum()) == 0


def test_without_importance_heads_rank_by_number() -> None:
    site = SiteInfo("vision.0.self_head", 0, 4, 8, 0, 4)
    for plugin in (grad_all_head, grad_layer_head):
        trimmer = plugin.build(plugin.Options(), site)
        trimmer.set_target(0.5)
        scores = trimmer(torch.zeros(3, 8), None, torch.arange(3))
        assert (scores > 0).tolist() == [[True, True, False, False]] * 3


def test_importances_are_saved_with_the_trimmer() -> None:
    measured = importance(3)
    one = trimmers(grad_all_head, measured)["text.0.cross_head"]
    one.set_target(0.4)
    other = grad_all_head.build(grad_all_head.Options(), SiteInfo("text.0.cross_head", 0, 4, 8, 8, HEADS))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.importance_H, measured["text.0.cross_head"])
    arguments = torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1, dtype=torch.long)
    assert torch.equal(other(*arguments), one(*arguments))


def test_grad_all_has_one_target_and_grad_layer_one_per_group() -> None:
    host = tiny.meter()
    every = {site.group for site in host.architecture().sites()}
    targets = dict.fromkeys(every, 1.0) | {"head.vision": 0.2, "head.text": 0.9}
    for name, same in (("grad_all_head", True), ("grad_layer_head", False)):
        model = tiny.attach(host, "random_token", name)
        model.set_targets(targets)
        heads = {n: t for n, t in model.sites.items() if "head" in n}
        shares = {n: float(t.keep_fraction) for n, t in heads.items()}
        if same:
            numbers = {n: len(t.place_H) for n, t in heads.items()}
            mean = sum(targets[Site.parse(n).group] * h for n, h in numbers.items()) / sum(numbers.values())
            assert all(share == pytest.approx(mean) for share in shares.values())
        else:
            assert all(share == pytest.approx(targets[Site.parse(n).group]) for n, share in shares.items())


def test_saliency_heads_share_the_mean_target_over_heads() -> None:
    model = tiny.attach(tiny.meter(), "random_token", "saliency_head")
    assert all(trimmer.one_target for name, trimmer in model.sites.items() if "head" in name)
    model.set_targets(dict.fromkeys(model.groups, 1.0) | {"head.vision": 0.2, "token.vision": 0.4})
    heads = {name: len(trimmer.place_H) for name, trimmer in model.sites.items() if "head" in name}
    vision = sum(count for name, count in heads.items() if Site.parse(name).group == "head.vision")
    mean = 1 - 0.8 * vision / sum(heads.values())
    assert 0.2 < mean < 1
    for name, trimmer in model.sites.items():
        target = mean if name in heads else {"vision": 0.4}.get(Site.parse(name).stream, 1.0)
        assert float(trimmer.keep_fraction) == pytest.approx(target), name


def test_places_and_norms_by_hand() -> None:
    assert places_among(torch.tensor([1.0, 5.0, 5.0, 0.0])).tolist() == [0.625, 0.125, 0.375, 0.875]
    result = normalised({"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)})
    assert result["a"].tolist() == pytest.approx([0.6, 0.8]) and result["b"].tolist() == [0.0, 0.0]
