"""Importance of heads: against finite differences of the loss, for every form; state and seeds untouched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, train_word_tokenizer
from smarttrim_cli.engine.importance import head_importance, rank_heads
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Contrast
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN
from smarttrim_cli.tasks.base import Batch
from smarttrim_cli.tasks.vqa import Options, build
from tests import tiny
from tests.tasks.own_data import COLORS, section, write_lines, write_pictures
from tests.tiny import Variant

FORMS = [v for v in tiny.one_per_form() if (v.backbone, v.form) != ("blip", "retrieval")]
CONTRASTING = next(v for v in tiny.one_per_form() if (v.backbone, v.form) == ("blip", "retrieval"))


class Logits:
    """What the engine asks of a task here."""

    @staticmethod
    def logits(output: Any, batch: Batch) -> Tensor:
        if isinstance(output, Contrast):
            return output.matching.flatten(0, 1)
        return output if output.dim() == 2 else output[..., :-1, :].flatten(0, -2)


def head_sites(host: Any) -> dict[str, int]:
    architecture = host.architecture()
    return {
        site.name: architecture.layer(site.stream, site.layer).attention(site.kind).heads
        for site in architecture.sites()
        if site.kind != TOKEN
    }


def batch_of(variant: Variant, host: Any) -> Batch:
    inputs = tiny.ragged_inputs(host)
    if variant.form == "retrieval":  # several texts per image
        inputs["input_ids"] = inputs["input_ids"].roll(1, 0).repeat(1, 2, 1)
        inputs["input_ids"][:, 1] = inputs["input_ids"][:, 1].roll(1, 0)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return Batch(inputs, tiny.ids(), {}, [])


def measure(variant: Variant, host: Any, batch: Batch) -> dict[str, Tensor]:
    return head_importance(host, head_sites(host), Logits(), [batch])  # type: ignore[arg-type]


@torch.no_grad()
def losses_B(model: TrimmedModel, batch: Batch, keep: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of every instance with the full model's own answers, heads multiplied by ``keep``."""
    full = model(batch.inputs, "full").output
    full, output = (
        Logits.logits(out, batch).double()
        for out in (full, model(batch.inputs, "masked", replay=Decisions(keep=dict(keep))).output)
    )
    loss_n = F.cross_entropy(output, full.argmax(-1), reduction="none")
    return loss_n.view(len(batch), -1).sum(1)


@torch.no_grad()
def answers_B(model: TrimmedModel, batch: Batch, keep: Mapping[str, Tensor]) -> Tensor:
    """What every instance's full model chooses, said by a model whose heads are multiplied by ``keep``."""
    full = model(batch.inputs, "full").output
    output = model(batch.inputs, "masked", replay=Decisions(keep=dict(keep))).output
    logits_nC = Logits.logits(output, batch).double()
    if output.dim() == 4:
        logits_nC = logits_nC.log_softmax(-1)
    chosen_n1 = Logits.logits(full, batch).argmax(-1, keepdim=True)
    return logits_nC.gather(1, chosen_n1).view(len(batch), -1).sum(1)


@pytest.mark.parametrize("what", ["loss", "answer"])
@pytest.mark.parametrize("variant", FORMS, ids=str)
def test_importance_is_the_slope_in_a_heads_size(variant: Variant, what: str) -> None:
    host = variant.build().double()
    batch = batch_of(variant, host)
    batch = Batch(
        {n: t.double() if t.is_floating_point() else t for n, t in batch.inputs.items()}, tiny.ids(), {}
    )
    sites, value_B = head_sites(host), losses_B if what == "loss" else answers_B
    importance = head_importance(host, sites, Logits(), [batch], measure=what)  # type: ignore[arg-type]
    probes = tiny.attach(host, "random_token", "random_head", kept=1.0)
    model = TrimmedModel(host, {name: probes.sites[name] for name in head_sites(host)}).eval()
    ones = model(batch.inputs, "masked").decisions.keep
    ones = {name: keep.double() for name, keep in ones.items() if name in importance}
    assert set(ones) == set(importance)
    checked = [(name, len(values) - 1) for name, values in list(importance.items())[::3]]
    for name, head in checked:
        slopes = []
        for step in (1e-3, -1e-3):
            scaled = ones[name].clone()
            scaled[:, head] += step
            slopes.append(value_B(model, batch, {**ones, name: scaled}))
        slope_B = (slopes[0] - slopes[1]) / 2e-3
        expected = float(slope_B.abs().mean())
        assert float(importance[name][head]) == pytest.approx(expected, rel=2e-3, abs=1e-6), name
    assert max(float(importance[name][head]) for name, head in checked) > 1e-3


@pytest.mark.parametrize("broken", [COLORS[:2], COLORS])
def test_broken_images_are_not_counted(broken: Sequence[str], tmp_path: Path) -> None:
    """Where there are no others, nothing is ranked by means of nothing (nan)."""
    write_pictures(tmp_path)
    lines = [{"image": f"{color}.png", "question": "what color?", "answer": color} for color in COLORS]
    write_lines(tmp_path, "train", lines)
    for color in broken:
        (tmp_path / f"{color}.png").write_bytes(b"")
    task = build(
        Options(data=section(tmp_path), on_bad_sample="skip", min_answer_count=1), print, "classifies"
    )
    task.prepare_labels(None)
    model = tiny.attach(tiny.meter(), "random_token", "grad_all_head")
    reads = Processor(train_word_tokenizer(["what color?"]), Preprocess(32), 20)
    bundle: Any = SimpleNamespace(model=model, task=task, processor=reads)
    if len(broken) < len(COLORS):
        assert rank_heads(bundle, "train", 4, 0) == len(COLORS) - len(broken)
        return
    with pytest.raises(UserError, match="none of 6 instances of train can be used"):
        rank_heads(bundle, "train", 4, 0)


@pytest.mark.parametrize(
    ("head", "what"), [("saliency_head", "answer"), ("grad_all_head", "loss"), ("grad_layer_head", "loss")]
)
def test_heads_are_ranked_by_what_their_trimmer_asks_for(
    head: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.attach(tiny.meter(), "random_token", head)
    batch = batch_of(tiny.METER, model.backbone)
    monkeypatch.setattr("smarttrim_cli.engine.importance.Loader", lambda *_, **__: [batch])
    task = SimpleNamespace(logits=Logits.logits, dataset=lambda *_, **__: batch.instance_ids)
    bundle: Any = SimpleNamespace(model=model, task=task, processor=None)
    assert rank_heads(bundle, "train", 5, 0) == len(batch)
    wanted, other = (
        head_importance(model.backbone, head_sites(model.backbone), task, [batch], measure=measure)  # type: ignore[arg-type]
        for measure in (what, "loss" if what == "answer" else "answer")
    )
    for name, values in wanted.items():
        torch.testing.assert_close(model.sites[name].importance_H, values)
        assert not torch.allclose(values, other[name], rtol=1e-3)


def test_a_backbone_that_contrasts_is_measured_with_its_hard_negatives() -> None:
    host = CONTRASTING.build()
    batch = batch_of(CONTRASTING, host)
    first = {name: t[:, :1] if t.dim() == 3 and "i" in name else t for name, t in batch.inputs.items()}
    inputs = {**first, "pixel_values": batch.inputs["pixel_values"], "image_ids": torch.arange(len(batch))}
    batch = Batch(inputs, tiny.ids(), {}, [])
    one, two = (measure(CONTRASTING, host, batch) for _ in range(2))
    assert set(one) == set(head_sites(host))
    for name, values in one.items():
        assert torch.equal(values, two[name]) and (values > 0).all()


def test_nothing_else_is_touched() -> None:
    host = tiny.meter().train()
    batch = batch_of(tiny.METER, host)
    before = {name: value.clone() for name, value in host.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    importance = measure(tiny.METER, host, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert host.training and all(parameter.grad is None for parameter in host.parameters())
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    halves = [
        Batch({n: t[rows] for n, t in batch.inputs.items()}, tiny.ids()[rows], {})
        for rows in ([0, 1], [2, 3, 4])
    ]
    again = head_importance(host, head_sites(host), Logits(), halves)  # type: ignore[arg-type]
    for name, values in importance.items():  # measured without dropout, and a mean over instances
        torch.testing.assert_close(again[name], values)
