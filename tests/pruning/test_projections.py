"""Projections of some heads are slices of the whole, and a module without heads is its output bias."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Attention
from torch import nn
from torch.testing import assert_close

from smarttrim_cli.backbones._coattention import CoAttention
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning import prepared
from smarttrim_cli.pruning.projections import BertProjections, TimmProjections
from smarttrim_cli.pruning.static_heads import StaticHeads

WIDTH, HEADS = 12, 3
E = WIDTH // HEADS


def adapters() -> list[tuple[str, TimmProjections | BertProjections]]:
    torch.manual_seed(0)
    timm = Attention(WIDTH, HEADS, qkv_bias=True)
    normed = Attention(WIDTH, HEADS, qkv_bias=False, qk_norm=True, norm_layer=nn.LayerNorm, proj_bias=False)
    bert = CoAttention(WIDTH, HEADS, 0.0)
    named = (
        ("timm", TimmProjections(timm)),
        ("normed", TimmProjections(normed)),
        ("bert", BertProjections(bert)),
    )
    return list(named)


@torch.no_grad()
@pytest.mark.parametrize(("name", "p"), adapters(), ids=lambda value: value if isinstance(value, str) else "")
def test_some_heads_are_slices(name: str, p: TimmProjections | BertProjections) -> None:
    query, memory = torch.randn(5, WIDTH), torch.randn(7, WIDTH)
    memory = query if name != "bert" else memory
    heads = torch.tensor([0, 2])
    for whole, some in zip(p.project(query, memory, None), p.project(query, memory, heads), strict=True):
        assert whole.shape[-2:] == (HEADS, E)
        assert_close(some, whole[:, heads])
    context = torch.randn(5, HEADS, E)
    context[:, 1] = 0
    assert_close(p.merge(context[:, heads], heads), p.merge(context, None))
    assert_close(p.empty(query), p.merge(torch.zeros(5, HEADS, E), None))


def test_the_bert_adapter_asks_for_its_children() -> None:
    with pytest.raises(UserError, match="BERT family") as error:
        BertProjections.check(nn.Linear(2, 2), "a.b")
    assert error.value.where == "a.b"


@pytest.mark.parametrize("options", [{"gated": True}, {"scale_norm": True, "norm_layer": nn.LayerNorm}])
def test_the_timm_adapter_refuses_what_it_does_not_repeat(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="not supported"):
        TimmProjections.check(Attention(WIDTH, HEADS, **options), "blocks.0.attn")  # type: ignore[arg-type]
    TimmProjections.check(Attention(WIDTH, HEADS, qk_norm=True, norm_layer=nn.LayerNorm), "blocks.0.attn")


@torch.no_grad()
@pytest.mark.parametrize("heads", [None, StaticHeads((0, 2), torch.device("cpu"))], ids=["all", "static"])
def test_a_prepared_hosts_projections_are_joined(
    heads: StaticHeads | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MIN_WEIGHTS", "MIN_JOINT"):
        monkeypatch.setattr(prepared, name, 1)
    module, query, memory = CoAttention(WIDTH, HEADS, 0.0), torch.randn(5, WIDTH), torch.randn(7, WIDTH)
    p = BertProjections(module)
    expected = [*p.project(query, query, heads), *p.keys_values(memory, heads), p.queries(query, heads)]
    prepared.prepare(module)
    p = BertProjections(module)
    calls: list[int] = []
    operators = prepared._OPERATORS
    assert operators is not None

    def counted(x: torch.Tensor, *args: object) -> torch.Tensor:
        calls.append(len(x))
        return operators[0](x, *args)

    monkeypatch.setattr(prepared, "_OPERATORS", (counted, operators[1]))
    found = [*p.project(query, query, heads), *p.keys_values(memory, heads), p.queries(query, heads)]
    assert calls == [5, 7, 5]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@torch.no_grad()
@pytest.mark.parametrize("heads", [None, StaticHeads((0, 2), torch.device("cpu"))], ids=["all", "static"])
def test_layers_with_and_without_bias_stay_apart(
    heads: StaticHeads | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "MIN_WEIGHTS", 1)
    module, x = CoAttention(WIDTH, HEADS, 0.0), torch.randn(5, WIDTH)
    module.self.key = nn.Linear(WIDTH, WIDTH, bias=False)
    expected = BertProjections(module).project(x, x, heads)
    prepared.prepare(module)
    for one, other in zip(BertProjections(module).project(x, x, heads), expected, strict=True):
        assert_close(one, other)
