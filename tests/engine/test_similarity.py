"""Similarity of tokens and heads, against plain loops over the host's own modules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from smarttrim_cli.engine.figures.canvas import style
from smarttrim_cli.engine.figures.data import LayerSimilarity
from smarttrim_cli.engine.figures.similarity import draw_similarity
from smarttrim_cli.engine.similarity import head_cosine, pairwise_cosine, similarity_of, summarised
from smarttrim_cli.engine.visualize import visualize
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import Site
from tests import tiny
from tests.engine.tiny_run import finetune, tiny_recipe


def loop(vectors: Tensor) -> float:
    pairs = [float(a @ b / (a.norm() * b.norm())) for a, b in combinations(vectors.double().unbind(), 2)]
    return sum(pairs) / len(pairs)


def heads_loop(q_HNE: Tensor, k_HME: Tensor) -> float:
    maps = (q_HNE.double() @ k_HME.double().transpose(1, 2) / math.sqrt(q_HNE.shape[-1])).softmax(-1)
    return sum(loop(maps[:, query]) for query in range(maps.shape[1])) / maps.shape[1]


def split_heads(x_ND: Tensor, heads: int) -> Tensor:
    return x_ND.unflatten(-1, (heads, -1)).transpose(0, 1)


def seen(host: nn.Module, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """What every module of a plain pass got and gave, for a single instance."""
    log: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, out: Any) -> None:
            if name not in log and args and torch.is_tensor(out):
                log[name] = [args[0], out]

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in host.named_modules()]
    host(**inputs)
    for handle in handles:
        handle.remove()
    return log


@torch.no_grad()
def ragged(variant: tiny.Variant) -> tuple[TrimmedModel, dict[str, Tensor]]:
    host = variant.build()
    return TrimmedModel(host, {}), tiny.ragged_inputs(host)


def named(result: dict[str, Tensor], kind: str) -> set[tuple[str, int]]:
    sites = map(Site.parse, result)
    return {(site.stream, site.layer) for site in sites if site.kind == kind}


# --- the two measures ---


def test_pairs_without_forming_them() -> None:
    vectors = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert float(pairwise_cosine(vectors)) == pytest.approx(loop(vectors), abs=1e-6)
    valid = torch.tensor([1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    assert float(pairwise_cosine(vectors, valid)) == pytest.approx(loop(vectors[valid]), abs=1e-6)


def test_known_values() -> None:
    assert float(pairwise_cosine(torch.tensor([[1.0, 2.0]] * 6))) == pytest.approx(1.0)
    assert float(pairwise_cosine(torch.eye(4))) == pytest.approx(0.0)
    assert float(pairwise_cosine(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))) == pytest.approx(-1.0)
    assert math.isnan(pairwise_cosine(torch.ones(1, 3)))


def test_heads_with_padding_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, 4, length, 6, generator=generator) for length in (5, 7))
    queries, keys = [5, 2, 4], [7, 3, 1]
    seen_R11M = (torch.arange(7) < torch.tensor(keys)[:, None])[:, None, None]
    valid_RN = torch.arange(5) < torch.tensor(queries)[:, None]
    expected = [heads_loop(q[r, :, : queries[r]], k[r, :, : keys[r]]) for r in range(3)]
    for at_once in (2**24, 1):
        monkeypatch.setattr("smarttrim_cli.engine.similarity._WEIGHTS_AT_ONCE", at_once)
        found = head_cosine(q, k, seen_R11M, 6**-0.5, valid_RN)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert expected[2] == pytest.approx(1.0)  # one key: all heads look at it


# --- in models ---


@torch.no_grad()
def test_meter_against_loops() -> None:
    model, inputs = ragged(tiny.METER)
    for row in (0, 1):
        one = tiny.instance(inputs, row)
        log, found = seen(model.backbone, one), similarity_of(model, one)
        expected = {
            "text.1.token": loop(log["text_transformer.encoder.layer.1"][1][0]),
            "vision.0.token": loop(log["vit_model.blocks.0"][1][0]),
            "vision.1.token": loop(log["vit_model.blocks.1"][1][0]),
            "text.3.token": loop(log["cross_modal_text_layers.1"][1][0]),
            "vision.2.token": loop(log["cross_modal_image_layers.0"][1][0]),
        }
        vit = log["vit_model.blocks.1.attn.qkv"][1][0].unflatten(-1, (3, 4, -1)).permute(1, 2, 0, 3)
        expected["vision.1.self_head"] = heads_loop(vit[0], vit[1])
        for site, path in {
            "text.0.self_head": "text_transformer.encoder.layer.0.attention.self",
            "vision.3.self_head": "cross_modal_image_layers.1.attention.self",
            "text.2.cross_head": "cross_modal_text_layers.0.crossattention.self",
            "vision.3.cross_head": "cross_modal_image_layers.1.crossattention.self",
        }.items():
            heads = model.architecture.layer(*_place(site)).attention(Site.parse(site).kind).heads
            q, k = (split_heads(log[f"{path}.{name}"][1][0], heads) for name in ("query", "key"))
            expected[site] = heads_loop(q, k)
        assert {name: float(found[name]) for name in expected} == pytest.approx(expected, abs=1e-5)


def _place(name: str) -> tuple[str, int]:
    site = Site.parse(name)
    return site.stream, site.layer


@torch.no_grad()
def test_blip_against_loops() -> None:
    model, inputs = ragged(tiny.Variant("blip", "plain", tiny.BACKBONES["blip"]["plain"]))
    for row in (0, 1):
        one = tiny.instance(inputs, row)
        log, found = seen(model.backbone, one), similarity_of(model, one)
        expected = {
            "vision.0.token": loop(log["vision_model.encoder.layers.1.layer_norm1"][0][0]),
            "vision.1.token": loop(log["vision_model.post_layernorm"][0][0]),
            "text.0.token": loop(log["text_encoder.encoder.layer.0.output"][1][0]),
            "text.1.token": loop(log["text_encoder.encoder.layer.1.output"][1][0]),
        }
        vit = log["vision_model.encoder.layers.0.self_attn.qkv"][1][0]
        vit = vit.unflatten(-1, (3, 4, -1)).permute(1, 2, 0, 3)
        expected["vision.0.self_head"] = heads_loop(vit[0], vit[1])
        for site, part in {"text.1.self_head": "attention", "text.1.cross_head": "crossattention"}.items():
            path = f"text_encoder.encoder.layer.1.{part}.self"
            q, k = (split_heads(log[f"{path}.{name}"][1][0], 3) for name in ("query", "key"))
            expected[site] = heads_loop(q, k)
        assert {name: float(found[name]) for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_every_layer_of_every_model_and_no_padding(variant: tiny.Variant) -> None:
    model, inputs = ragged(variant)
    together = similarity_of(model, inputs)
    layers = [
        spec for spec in model.architecture.layers if spec.stream in ("vision", "text")
    ]  # what generates text, and what only trimming needs, is left out
    assert named(together, "token") == {(spec.stream, spec.index) for spec in layers}
    heads = {(spec.stream, spec.index, kind) for spec in layers for kind, _ in spec.attentions}
    sites = [Site.parse(name) for name in together]
    assert {(site.stream, site.layer, site.kind) for site in sites if site.kind != "token"} == heads
    for row in range(len(tiny.LENGTHS)):
        alone = similarity_of(model, tiny.instance(inputs, row))
        for name, values in together.items():
            assert values.shape == (len(tiny.LENGTHS),)
            assert float(values[row]) == pytest.approx(float(alone[name]), abs=2e-5, nan_ok=True)
    flat = torch.cat(list(together.values()))
    assert flat.isfinite().all()
    assert flat.abs().max() <= 1 + 1e-5


def test_trimmers_stay_out_of_it_and_nothing_is_left_behind() -> None:
    host = tiny.meter()
    inputs = tiny.ragged_inputs(host)
    expected = similarity_of(TrimmedModel(host, {}), inputs)
    model = tiny.attach(host, "cross_modal", "global_head")
    with torch.no_grad():
        before = model(inputs, "full").output
        found = similarity_of(model, inputs)
        assert torch.equal(model(inputs, "full").output, before)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(module._forward_pre_hooks for module in host.modules())


def test_attention_at_no_site_is_left_alone() -> None:
    host = tiny.meter()
    inputs = tiny.ragged_inputs(host)
    expected = similarity_of(TrimmedModel(host, {}), inputs)

    def pool(module: nn.Module, args: Any, output: Tensor) -> None:
        x = output.unsqueeze(1)
        F.scaled_dot_product_attention(x, x, x)

    handle = host.vit_model.patch_embed.register_forward_hook(pool)
    found = similarity_of(TrimmedModel(host, {}), inputs)
    handle.remove()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_spread_over_instances() -> None:
    architecture: Any = tiny.meter().architecture()
    values = {"text.2.cross_head": [0.5, math.nan], "vision.0.token": [0.1 * i for i in range(11)]}
    tokens, heads = summarised(architecture, {**values, "text.0.token": [math.nan]})
    assert (tokens.stream, tokens.part, tokens.number, tokens.kind) == ("vision", "vision", 1, "token")
    assert (heads.part, heads.number, heads.kind, heads.count) == ("cross", 1, "cross_head", 1)
    assert (tokens.mean, tokens.p10, tokens.p50, tokens.p90) == pytest.approx((0.5, 0.1, 0.5, 0.9))
    assert tokens.std == pytest.approx(0.1 * math.sqrt(11))  # sample variance of 0..10 is 11
    assert (heads.mean, heads.std, heads.p10, heads.p90) == (0.5, 0.0, 0.5, 0.5)


# --- the command ---


def test_picture_and_numbers_of_a_run(trained: Path, tmp_path: Path) -> None:
    limit = ["evaluate.max_instances=20"]
    pictures = visualize(str(trained), num_instances=1, overrides=limit, similarity=True, out=tmp_path)
    names = [path.name for path in pictures]
    assert "similarity.png" in names
    assert Image.open(tmp_path / "similarity.png").width == 1728
    assert "similarity.json" in (tmp_path / "index.html").read_text(encoding="utf-8")
    numbers = json.loads((tmp_path / "similarity.json").read_text(encoding="utf-8"))
    assert (numbers["model"], numbers["split"], numbers["instances"]) == ("full", "test", 20)
    tokens = [(entry["part"], entry["number"], entry["count"]) for entry in numbers["tokens"]]
    parts = [("text", 1), ("text", 2), ("vision", 1), ("vision", 2), ("cross", 1), ("cross", 1)]
    assert sorted(tokens) == sorted((*part, 20) for part in parts)
    assert len(numbers["heads"]) == 4 + 4  # four encoder layers; two kinds in both co-attention layers
    assert all(entry["p10"] <= entry["p50"] <= entry["p90"] for entry in numbers["heads"])


def test_a_run_that_trims_nothing(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, "pruning=null", "train.max_steps=1"))
    pictures = visualize(str(tmp_path / "run"), similarity=True, overrides=["evaluate.max_instances=7"])
    assert [path.name for path in pictures] == ["similarity.png", "training_curves.png", "index.html"]
    numbers = json.loads((tmp_path / "run/figures/similarity.json").read_text(encoding="utf-8"))
    assert numbers["instances"] == 7


def test_not_of_a_single_picture() -> None:
    with pytest.raises(UserError, match="measured on a split"):
        visualize(None, image=Path("x.png"), questions=["a?", "b?"], similarity=True)


@pytest.mark.parametrize("depths", [(1, 0), (40, 3)])
def test_layers_of_any_number(depths: tuple[int, int], tmp_path: Path) -> None:
    layers = [
        LayerSimilarity(stream, 0, part, number + 1, kind, 0.2, 0.1, -0.1, 0.2, 0.3, 5)
        for stream in ("vision", "text", "other")
        for part, depth in ((stream, depths[0]), ("cross", depths[1]))
        for number in range(depth)
        for kind in ("token", "self_head", "cross_head", "cross_head1")
    ]
    with style():
        assert Image.open(draw_similarity(tmp_path / "s.png", layers, "test", 5)).width == 1728


def test_lines_at_the_edge_are_whole(tmp_path: Path) -> None:
    def ink(mean: float) -> int:
        layers = [
            LayerSimilarity("vision", layer, "vision", layer + 1, kind, mean, 0.0, mean, mean, mean, 3)
            for kind in ("token", "self_head")
            for layer in range(4)
        ]
        with style():
            picture = Image.open(draw_similarity(tmp_path / "similarity.png", layers, "test", 3))
        blue = torch.tensor([0x00, 0x72, 0xB2])
        return int((torch.from_numpy(np.array(picture.convert("RGB"))) == blue).all(-1).sum())

    assert min(ink(0.0), ink(1.0)) > 0.97 * ink(0.5)  # at 1: heads that all attend alike, as in a new model
