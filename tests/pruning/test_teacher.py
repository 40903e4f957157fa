"""Distillation: what is recorded of a pass, and the terms of the loss, against plain formulas."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.objective import StatefulLoss, Weights
from smarttrim_cli.pruning.recording import recording
from smarttrim_cli.pruning.sites import SELF_HEAD, Site
from smarttrim_cli.pruning.teacher import (
    TaughtObjective,
    Teaching,
    attention_loss,
    attention_weights,
    hidden_loss,
    logits_loss,
    real_tokens,
)
from tests import tiny
from tests.tiny import Variant

VARIANTS = [v for v in tiny.variants() if (v.backbone, v.form) != ("blip", "retrieval")]
"""All but the one that runs its text encoder several times."""


def layers_of(host: Any) -> list[Any]:
    """Layers that mode ``full`` runs."""
    architecture = host.architecture()
    return [spec for spec in architecture.layers if spec.stream not in architecture.overhead]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_queries_and_keys_are_those_that_attention_gets(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = variant.build()
    inputs, layers, calls = tiny.ragged_inputs(host), layers_of(host), []
    fused = F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mask = kwargs.get("attn_mask", args[1] if len(args) > 1 else None)
        calls.append((query, key, mask, kwargs.get("is_causal", False)))
        return fused(query, key, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.no_grad(), recording(host, layers) as found:
        host(**inputs)
    sites = [(layer, kind, spec) for layer in layers for kind, spec in layer.attentions]
    assert len(found.queries) == len(sites)
    for layer, kind, spec in sites:
        name = Site(layer.stream, layer.index, kind).name
        q, k = found.queries[name], found.keys[name]
        same = [c for c in calls if c[0].shape == q.shape and torch.equal(c[0], q) and torch.equal(c[1], k)]
        assert len(same) == 1, name
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        _, _, mask, causal = same[0]
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        if causal:
            later = torch.ones(logits.shape[-2:]).triu(1).bool()
            logits = logits.masked_fill(later, float("-inf"))
        seen = real_tokens(inputs, spec.memory_stream or layer.stream, len(q))
        weights = attention_weights(q, k, seen, layer.stream == "decoder" and kind == SELF_HEAD).exp()
        difference_RN = (weights - logits.softmax(-1)).abs().amax((1, 3))
        if layer.stream == "decoder" and kind == SELF_HEAD:  # padding on the right sees padding
            difference_RN = difference_RN * real_tokens(inputs, layer.stream, len(q))
        assert difference_RN.max() < 1e-6, name


def test_outputs_of_layers_of_meter() -> None:
    host = tiny.meter()
    inputs = tiny.ragged_inputs(host)
    with torch.no_grad(), recording(host, layers_of(host), attention=False) as found:
        text, image = host.encode(**inputs)
        assert torch.equal(found.hidden["text", 3], text) and torch.equal(found.hidden["vision", 3], image)
    assert len(found.hidden) == 8 and not found.queries
    with torch.no_grad():
        mask = host.host_mask(inputs["attention_mask"])
        assert torch.equal(
            found.hidden["text", 1], host.encode_text(inputs["input_ids"], inputs["attention_mask"], mask)
        )
        encoded = host.encode_image(inputs["pixel_values"])
        assert torch.equal(host.vit_model.norm(found.hidden["vision", 1]), encoded)
        assert not torch.equal(host.vit_model.norm(found.hidden["vision", 0]), encoded)


def test_outputs_of_layers_of_blip() -> None:
    host = Variant("blip", "plain", tiny.BACKBONES["blip"]["plain"]).build()
    inputs = tiny.ragged_inputs(host)
    with torch.no_grad(), recording(host, layers_of(host), attention=False) as found:
        logits = host(**inputs)
        decoded = host.text_decoder.cls(found.hidden["decoder", 1]).view(logits.shape)
        assert torch.equal(decoded, logits)
    states: list[Tensor] = []
    host.vision_model.post_layernorm.register_forward_hook(lambda m, i, out: states.append(out))
    host.vision_model.encoder.layers[1].layer_norm1.register_forward_pre_hook(
        lambda m, i: states.append(i[0])
    )
    with torch.no_grad():
        host(**inputs)
        assert torch.equal(found.hidden["vision", 0], states[0])
        assert torch.equal(host.vision_model.post_layernorm(found.hidden["vision", 1]), states[1])
    assert len(found.hidden) == 6


def test_no_hook_stays() -> None:
    host = tiny.meter()
    with recording(host, layers_of(host)):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.modules())


def test_attention_that_cannot_be_watched_is_refused() -> None:
    host = tiny.meter()
    del host.text_transformer.encoder.layer[0].attention.self.query
    with pytest.raises(UserError, match="no query and key"), recording(host, layers_of(host)):
        pass


def test_the_attention_term_is_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, tq, tk = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(4))
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    expected, queries = 0.0, 0
    for row in range(2):
        count = int(real[row].sum())
        for n in range(count):
            queries += 1
            for head in range(3):
                own = [float(q[row, head, n] @ k[row, head, m]) / 5**0.5 for m in range(count)]
                its = [float(tq[row, head, n] @ tk[row, head, m]) / 5**0.5 for m in range(count)]
                p, s = torch.tensor(its).softmax(0), torch.tensor(own).softmax(0)
                expected += float((p * (p / s).log()).sum()) / 3
    loss = attention_loss(attention_weights(q, k, real), attention_weights(tq, tk, real), real)
    assert float(loss) == pytest.approx(expected / queries, rel=1e-5)


def test_the_logits_term_is_the_plain_formula() -> None:
    own, its = torch.tensor([[1.0, 0.0, -2.0], [0.5, 0.5, 3.0]]), torch.tensor([[9.0, 0, 0], [1.0, 2.0, 3.0]])
    p, q = (its / 2).softmax(-1), (own / 2).softmax(-1)
    expected = (p * (p / q).log()).sum() / 2 * 4
    assert float(logits_loss(own, its, 2.0)) == pytest.approx(float(expected), rel=1e-5)


def test_the_hidden_term_leaves_padding_out() -> None:
    own, its = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 3.0], [2.0, 0.0], [99.0, 99.0]]])
    real = torch.tensor([[True, True, False]])
    assert float(hidden_loss(own, its, real)) == pytest.approx((5.0 + 2.0) / 2)
    assert float(hidden_loss(own, its[:, :2].expand(1, 2, 2)[:, [0, 1, 1]])) == pytest.approx((5 + 2 + 2) / 3)


def objective(host: Any, teacher: Any, **weights: float) -> TaughtObjective:
    pairs = tuple(zip(layers_of(host), layers_of(teacher), strict=True))
    model = TrimmedModel(host, {})
    return TaughtObjective(Teaching(teacher, pairs, **weights), model, loss, logits, Weights())


def loss(output: Tensor, batch: Any) -> Tensor:
    output = getattr(output, "scores", output)
    return output.float().square().mean()


def logits(output: Any, batch: Any) -> Tensor:
    return getattr(output, "scores", output).float().flatten(0, -2)


def batch_of(inputs: dict[str, Tensor]) -> Any:
    return SimpleNamespace(inputs=inputs)


@pytest.mark.parametrize("variant", [v for v in tiny.one_per_form() if v in VARIANTS], ids=str)
def test_a_model_that_equals_its_teacher_has_nothing_to_learn(variant: Variant) -> None:
    host = variant.build()
    found = objective(host, copy.deepcopy(host))(batch_of(tiny.ragged_inputs(host)), None, 0.0)
    for term in ("logits", "hidden", "attention"):
        assert abs(float(found[f"teacher/{term}"])) < 1e-6, term
    assert float(found["loss"].detach()) == pytest.approx(float(found["task"]), rel=1e-5)


@pytest.mark.parametrize("variant", [v for v in tiny.one_per_form() if v in VARIANTS], ids=str)
def test_terms_do_not_depend_on_padding_and_reach_every_layer(variant: Variant) -> None:
    host, teacher = variant.build(), variant.build(seed=1)
    module = objective(host, teacher.requires_grad_(False))
    plain = module(batch_of(tiny.ragged_inputs(host)), None, 0.0)
    padded = module(batch_of(tiny.ragged_inputs(host, extra=3)), None, 0.0)
    for term in ("hidden", "attention"):
        value = float(plain[f"teacher/{term}"])
        assert value > 0.01 and float(padded[f"teacher/{term}"]) == pytest.approx(value, rel=1e-4), term
    plain["loss"].backward()
    missing = {
        spec.self_attention.path
        for spec in layers_of(host)
        for name, parameter in host.named_parameters()
        if name.startswith(spec.self_attention.path + ".") and name.endswith("weight")
        if parameter.grad is None
    }
    assert not missing
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_is_no_part_of_the_objective() -> None:
    host = tiny.meter()
    module = objective(host, tiny.meter(seed=1))
    assert all(name.startswith("model.") for name in module.state_dict())
    assert len(list(module.parameters())) == len(list(host.parameters()))
    teacher = module.teaching.model.eval()
    module.train()
    assert host.training and not teacher.training


def test_weights_of_0_record_nothing() -> None:
    host, teacher = tiny.meter(), tiny.meter(seed=1)
    found = objective(host, teacher, hidden=0.0, attention=0.0, logits=2.0)(
        batch_of(tiny.ragged_inputs(host)), None, 0.0
    )
    assert "teacher/hidden" not in found and "teacher/attention" not in found
    assert float(found["loss"].detach()) == pytest.approx(
        float(found["task"] + 2 * found["teacher/logits"]), rel=1e-6
    )


def test_what_cannot_be_combined() -> None:
    class Carried(StatefulLoss):
        pass

    teaching = Teaching(tiny.meter(), ())
    with pytest.raises(UserError, match="its own teacher"):
        TaughtObjective(teaching, tiny.paper_model(), loss, logits, Weights())
    with pytest.raises(UserError, match="losses of its own"):
        TaughtObjective(teaching, TrimmedModel(tiny.meter(), {}), Carried(), logits, Weights())


def test_a_layer_without_a_known_output() -> None:
    host = tiny.meter()
    layer = SimpleNamespace(stream="vision", index=0, output_of="", input_of="", attentions=())
    with pytest.raises(UserError, match="where the output of layer vision.0 is"), recording(host, [layer]):
        pass


def test_rows_of_real_tokens() -> None:
    mask = torch.tensor([[1, 1], [1, 0]])
    answers = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]])
    inputs = {"attention_mask": mask, "answer_mask": answers}
    assert real_tokens(inputs, "vision", 2) is None
    twice = real_tokens(inputs, "text", 4)
    assert twice is not None and twice.tolist() == [[True, True]] * 2 + [[True, False]] * 2
    own, together = real_tokens(inputs, "decoder", 4), real_tokens(inputs, "decoder", 2)
    assert own is not None and own.long().tolist() == [[1, 1], [1, 0], [1, 0], [0, 0]]
    assert together is not None and together.long().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
