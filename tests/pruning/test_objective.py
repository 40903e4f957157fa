"""Eq. 9-12 against numbers worked by hand; the objective's terms; gradients reach what is to learn."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.objective import (
    Objective,
    StatefulLoss,
    Target,
    Weights,
    cost_loss,
    distillation_loss,
    kept_fractions,
    macs_loss,
    macs_ratio,
    sites_heads,
    total_loss,
)
from smarttrim_cli.pruning.sites import Site
from tests import tiny

GROUPS = ("token.vision", "token.text", "head.vision", "head.text", "cross_head.vision", "cross_head.text")


def test_kept_fractions_leave_out_cls_and_padding() -> None:
    log = Decisions(
        valid={"text": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)},
        counts={
            "text.0.token": torch.tensor([5.0, 2.0]),
            "text.1.token": torch.tensor([2.0, 1.0]),
            "text.0.self_head": torch.tensor([3.0, 0.0]),
            "text.1.self_head": torch.tensor([6.0, 6.0]),
            "vision.0.token": torch.tensor([9.0, 9.0]),
        },
    )
    found = kept_fractions(log, ["token.text", "head.text"], {"text.0.self_head": 4, "text.1.self_head": 8})
    assert set(found) == {"token.text", "head.text"}
    assert found["token.text"].tolist() == [(4 / 4 + 1 / 4) / 2, (1 / 2 + 0 / 2) / 2]
    assert found["head.text"].tolist() == [(3 / 4 + 6 / 8) / 2, (0 / 4 + 6 / 8) / 2]


def test_kept_fractions_of_a_model_are_means_of_its_masks() -> None:
    model = tiny.paper_model()
    with torch.no_grad():
        log = model(tiny.ragged_inputs(model.backbone), "packed").decisions
    heads = {name: sites_heads(model, Site.parse(name)) for name in model.sites if name.endswith("head")}
    assert heads["text.0.self_head"] == 3 and heads["vision.3.cross_head"] == 4
    found = kept_fractions(log, list(GROUPS), heads)
    for index, length in enumerate(tiny.LENGTHS):
        kept = [log.keep[f"text.{layer}.token"][index, 1:length].float().mean() for layer in range(4)]
        assert_close(found["token.text"][index], torch.stack(kept).mean())
        cross = [log.keep[f"vision.{layer}.cross_head"][index].float().mean() for layer in (2, 3)]
        assert_close(found["cross_head.vision"][index], torch.stack(cross).mean())


def test_kept_fractions_are_not_rounded_with_the_scores() -> None:
    log = Decisions(counts={"text.0.self_head": torch.tensor([5.0], dtype=torch.bfloat16)})
    found = kept_fractions(log, ["head.text"], {"text.0.self_head": 12})
    assert found["head.text"].item() == pytest.approx(5 / 12)


def test_cost_loss() -> None:
    kept = {"a": torch.tensor(0.9), "b": torch.tensor(0.5), "c": torch.tensor(0.25)}
    assert cost_loss(kept, {"a": 0.5, "b": 0.7, "c": 0.25}).item() == pytest.approx((0.16 + 0.04 + 0.0) / 3)
    assert macs_loss(torch.tensor(0.8), 0.5).item() == pytest.approx(0.09)


def test_one_sided_cost_counts_only_what_is_above_its_target() -> None:
    kept = {"a": torch.tensor(0.9, requires_grad=True), "b": torch.tensor(0.5, requires_grad=True)}
    cost = cost_loss(kept, {"a": 0.5, "b": 0.7}, one_sided=True)
    assert cost.item() == pytest.approx(0.16 / 2)
    cost.backward()
    assert kept["a"].grad.item() == pytest.approx(0.4) and kept["b"].grad.item() == 0
    assert macs_loss(torch.tensor(0.8), 0.5, one_sided=True).item() == pytest.approx(0.09)
    assert macs_loss(torch.tensor(0.4), 0.5, one_sided=True).item() == 0


@pytest.mark.parametrize("cost_on", ["kept_fraction", "macs"])
def test_the_objective_with_a_one_sided_cost(cost_on: str) -> None:
    module, batch = objective(distillation=0.0, cost_on=cost_on, cost_one_sided=True)
    below = Target(dict.fromkeys(GROUPS, 0.99), 0.99, Sampling(1.0, 0.0))
    assert module(batch, below, 0.0)["cost"].item() == 0
    above = Target(dict.fromkeys(GROUPS, 0.01), 0.01, Sampling(1.0, 0.0))
    two_sided, _ = objective(distillation=0.0, cost_on=cost_on)
    assert_close(module(batch, above, 0.0)["cost"], two_sided(batch, above, 0.0)["cost"])


def test_distillation_loss_is_the_mean_divergence_of_trimmed_from_full() -> None:
    trimmed = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], requires_grad=True)  # p: 1/4, 3/4; 1/2, 1/2
    full = torch.zeros(2, 2, requires_grad=True)  # q: 1/2, 1/2
    loss = distillation_loss(trimmed, full)
    expected = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert full.grad is None  # the full model is the teacher
    assert trimmed.grad is not None and trimmed.grad[0].abs().min() > 0


def test_distillation_temperature() -> None:
    trimmed, full = torch.randn(3, 5), torch.randn(3, 5)
    warm = distillation_loss(trimmed, full, 2.0)
    assert warm.item() == pytest.approx(4 * distillation_loss(trimmed / 2, full / 2).item(), rel=1e-5)


def test_total_loss() -> None:
    found = total_loss(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.01), 2.0, 20.0)
    assert found.item() == pytest.approx(1.0 + 2.0 * 0.5 + 20.0 * 0.01)


def batch_of(model: Any) -> SimpleNamespace:
    inputs = tiny.ragged_inputs(model.backbone)
    return SimpleNamespace(inputs=inputs, labels=torch.tensor([0, 1, 2, 3, 4]), instance_ids=tiny.ids())


def task_loss(logits: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(logits, batch.labels)


def first(output: Tensor, batch: Any) -> Tensor:
    return output


def objective(**weights: Any) -> tuple[Objective, SimpleNamespace]:
    model = tiny.paper_model()
    return Objective(model, task_loss, first, Weights(**weights)), batch_of(model)


TARGET = Target(dict.fromkeys(GROUPS, 0.5), 0.4, Sampling(1.0, 0.0))


def test_the_objective_puts_its_terms_together() -> None:
    module, batch = objective(distillation=0.5, cost=3.0)
    out = module(batch, TARGET, 0.0)
    with torch.no_grad():
        full = module.model(batch.inputs, "full").output
        trimmed = module.model(batch.inputs, "masked")
        kept = {g: v.mean() for g, v in kept_fractions(trimmed.decisions, list(GROUPS), module.heads).items()}
    task = task_loss(trimmed.output, batch)
    distillation = task_loss(full, batch) + F.kl_div(
        full.log_softmax(-1), trimmed.output.log_softmax(-1), log_target=True, reduction="sum"
    ) / len(full)
    cost = sum((value - 0.5) ** 2 for value in kept.values()) / 6
    assert_close(out["task"], task)
    assert_close(out["distillation"], distillation)
    assert_close(out["cost"], torch.as_tensor(cost))
    assert_close(out["loss"].detach(), task + 0.5 * distillation + 3.0 * cost)
    assert {name for name in out if name.startswith("kept/")} == {f"kept/{group}" for group in GROUPS}
    assert [name for name, value in out.items() if value.requires_grad] == ["loss"]


def test_heads_without_a_trimmer_count_as_kept() -> None:
    model = tiny.paper_model()
    model.remove(["text.0.self_head", "vision.1.self_head"])
    out = Objective(model, task_loss, first, Weights(cost=1.0))(batch_of(model), TARGET, 0.0)
    with torch.no_grad():
        log = model(batch_of(model).inputs, "masked").decisions
    sites = [site for site in model.architecture.sites() if site.group == "head.text"]
    assert "text.0.self_head" in [site.name for site in sites]
    shares = [log.keep[site.name].float().mean(1) for site in sites]
    assert_close(out["kept/head.text"], torch.stack(shares).mean())


def test_the_objective_without_distillation_and_with_a_cost_on_macs() -> None:
    module, batch = objective(distillation=0.0, cost_on="macs")
    out = module(batch, TARGET, 0.0)
    with torch.no_grad():
        trimmed_B, full_B = instance_macs(module.model, module.model(batch.inputs, "packed").decisions)
    assert out["distillation"].item() == 0
    assert out["cost"].item() == pytest.approx((trimmed_B.sum() / full_B.sum() - 0.4).item() ** 2, rel=1e-4)


def test_without_a_target_the_full_model_learns_the_task() -> None:
    module, batch = objective()
    out = module(batch, None, 0.0)
    assert_close(out["loss"], task_loss(module.model(batch.inputs, "full").output, batch))
    out["loss"].backward()
    assert all(parameter.grad is None for parameter in module.model.trimmers.parameters())


class Counting(StatefulLoss):
    """Counts batches; has the full model see the first image of the trimmed pass's batch everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Any] = []
        self.seen: list[Tensor] = []

    def start(self, backbone: Any) -> None:
        self.started.append(backbone)
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def prepare(self, batch: Any) -> Any:
        self.batches += 1
        return SimpleNamespace(**{**vars(batch), "labels": batch.labels.flip(0)})

    def replay(self, output: Tensor) -> dict[str, Tensor]:
        self.seen.append(output)
        return {"pixel_values": self.pixels}

    def forward(self, output: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(output, batch.labels)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_loss_with_a_state(weight: float) -> None:
    model, loss = tiny.paper_model(), Counting()
    module, batch = Objective(model, loss, first, Weights(distillation=weight)), batch_of(model)
    loss.pixels = batch.inputs["pixel_values"][:1].expand(5, -1, -1, -1)
    assert loss.started == [model.backbone] and "task_loss.batches" in module.state_dict()
    out = module(batch, TARGET, 0.0)
    assert loss.batches == 1 and len(loss.seen) == int(weight > 0)
    with torch.no_grad():
        trimmed = model(batch.inputs, "masked", sampling=TARGET.sampling).output
        full = model({**batch.inputs, "pixel_values": loss.pixels}, "full").output
    labels = batch.labels.flip(0)
    assert_close(out["task"], F.cross_entropy(trimmed, labels))
    if weight:
        assert_close(out["distillation"], F.cross_entropy(full, labels) + distillation_loss(trimmed, full))
        assert_close(loss.seen[0].detach(), trimmed)
    module(batch, None, 0.0)
    assert loss.batches == 2  # without trimming, too


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("cost_on", ["kept_fraction", "macs"])
def test_one_step_reaches_every_trimmer_and_the_backbone(cost_on: str, noise: float) -> None:
    module, batch = objective(cost_on=cost_on)
    module.model.threshold.fill_(-1.5)  # a dropped token teaches later layers nothing
    module.train()
    torch.manual_seed(0)
    target = Target(TARGET.kept, TARGET.macs, Sampling(1.0, noise))
    module(batch, target, 0.5)["loss"].backward()
    for name, parameter in module.model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        ignored = name.endswith("key.bias")  # softmax does not see a shift of all keys
        assert parameter.grad.abs().max() > 0 or ignored, name


def test_the_task_loss_alone_reaches_every_trimmer() -> None:
    """Through the masked attention and nothing else, from the first layer to the last."""
    module, batch = objective(distillation=0.0, cost=0.0)
    module.model.threshold.fill_(-1.5)
    module(batch, TARGET, 0.0)["loss"].backward()
    for name, trimmer in module.model.sites.items():
        assert min(p.grad.abs().max() for p in trimmer.parameters()) > 0, name


def test_training_moves_the_kept_fractions_from_one_towards_their_targets() -> None:
    model = tiny.paper_model(lively=False)
    model.start_keeping(3.0)
    module, batch = Objective(model, task_loss, first, Weights(distillation=0.0, cost=20.0)), batch_of(model)
    optimizer = torch.optim.Adam(model.trimmers.parameters(), 1e-2)
    torch.manual_seed(0)
    targets = dict.fromkeys(GROUPS, 0.6)
    costs = []
    for _ in range(25):
        out = module(batch, Target(targets, 0.0, Sampling(1.0, 0.0)), 0.0)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        costs.append(out["cost"].item())
    assert costs[0] == pytest.approx(0.16, abs=1e-3)  # everything is kept
    assert costs[-1] < 0.12


def test_the_ratio_of_macs_is_differentiable_and_right() -> None:
    module, batch = objective()
    log = module.model(batch.inputs, "masked", sampling=Sampling(1.0, 0.0)).decisions
    ratio = macs_ratio(module.model, log)
    trimmed_B, full_B = instance_macs(module.model, log)
    assert ratio.item() == pytest.approx((trimmed_B.mean() / full_B.mean()).item(), rel=1e-4)
    ratio.backward()
    assert all(parameter.grad is not None for parameter in module.model.trimmers.parameters())
