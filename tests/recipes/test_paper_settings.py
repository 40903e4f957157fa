"""Recipes of the paper's rows: named after their row, with the official fine-tuning settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.costs import paper_rows
from smarttrim_cli.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
ROWS = paper_rows()

# From METER's meter/config.py: learning rate, factor of the heads, batch, epochs.
METER = {
    "vqa": (5e-6, 50, 512, 10),
    "nlvr2": (1e-5, 10, 256, 10),
    "snli_ve": (2e-6, 10, 64, 5),
    "retrieval": (5e-6, 5, 512, 10),
}
# From BLIP's configs/*.yaml (batch per GPU) and its README (GPUs): learning rate, batch, epochs.
BLIP = {"vqa": (2e-5, 16 * 16, 10), "nlvr2": (3e-5, 16 * 16, 15), "captioning": (1e-5, 32 * 8, 5)}


def parts(path: str) -> tuple[str, str, int, float]:
    """Backbone, task, image size and ratio in a recipe's name."""
    task, size, ratio = Path(path).name.removesuffix("x.yaml").rsplit("_", 2)
    return Path(path).parent.name, task, int(size), float(ratio)


def batch_of(recipe: Recipe) -> int:
    return recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps


@pytest.mark.parametrize("path", ROWS)
def test_named_after_its_row(path: str) -> None:
    backbone, task, size, ratio = parts(path)
    recipe, row = load_recipe(ROOT / path), ROWS[path]
    assert recipe.backbone.name == backbone
    assert recipe.backbone.options_dict()["image_size"] == size
    assert recipe.task.name == task
    assert recipe.output_dir == f"runs/{backbone}_{Path(path).name.removesuffix('.yaml')}"
    assert f"{row['paper_gmacs']} " in recipe.description
    assert f"Table {row['table']}" in recipe.description
    assert (recipe.pruning is None) == (ratio == 1.0)
    assert row["row"] == (backbone.upper() if ratio == 1.0 else f"SmartTrim {ratio}x")


@pytest.mark.parametrize("path", [path for path in ROWS if "/meter/" in path])
def test_official_settings_of_meter(path: str) -> None:
    recipe = load_recipe(ROOT / path)
    optimizer = recipe.optimizer
    rate, heads, batch, epochs = METER[recipe.task.name]
    assert (optimizer.learning_rate, batch_of(recipe)) == (rate, batch)
    assert recipe.train.num_train_epochs == epochs
    assert {**optimizer.multipliers, "trimmers": 0} == {"cross_modal": 5, "head": heads, "trimmers": 0}
    assert (optimizer.weight_decay, optimizer.betas, optimizer.eps) == (0.01, (0.9, 0.98), 1e-8)
    assert (optimizer.lr_scheduler_type, optimizer.warmup_steps) == ("linear", 0.1)


@pytest.mark.parametrize("path", [path for path in ROWS if "/blip/" in path])
def test_official_settings_of_blip(path: str) -> None:
    recipe = load_recipe(ROOT / path)
    optimizer = recipe.optimizer
    rate, batch, epochs = BLIP[recipe.task.name]
    assert (optimizer.learning_rate, batch_of(recipe)) == (rate, batch)
    assert recipe.train.num_train_epochs == epochs
    assert (optimizer.weight_decay, optimizer.betas, optimizer.eps) == (0.05, (0.9, 0.999), 1e-8)
    assert (optimizer.lr_scheduler_type, optimizer.warmup_steps) == ("cosine", 0)


@pytest.mark.parametrize("path", [path for path in ROWS if "1.0x" not in path])
def test_settings_of_trimming(path: str) -> None:
    recipe = load_recipe(ROOT / path)
    assert recipe.strategy.cost_loss.weight == 20
    assert recipe.strategy.self_distillation.weight == 1
    assert recipe.strategy.stable_init.enabled and recipe.strategy.curriculum.enabled
    rate = recipe.optimizer.learning_rate * recipe.optimizer.multipliers["trimmers"]
    assert rate == pytest.approx(5e-4, rel=0.03)
    removed = removed_by(recipe)
    heads = {share for group, share in removed.items() if "head" in group and share}
    assert len(heads) == 1  # image tokens most, then heads, text tokens least
    assert removed["token.vision"] > heads.pop() > removed["token.text"]


def removed_by(recipe: Recipe) -> dict[str, float]:
    assert recipe.pruning is not None and recipe.pruning.target_sparsity is not None
    return recipe.pruning.target_sparsity.groups()


def test_same_proportions_in_all_rows_of_a_task() -> None:
    by_task: dict[Any, list[dict[str, float]]] = {}
    for path in ROWS:
        backbone, task, _, ratio = parts(path)
        if ratio > 1:
            by_task.setdefault((backbone, task), []).append(removed_by(load_recipe(ROOT / path)))
    assert len(by_task) == 7
    for rows in by_task.values():
        for removed in rows:
            assert removed["token.text"] == pytest.approx(0.2 * removed["token.vision"], abs=1e-3) or (
                removed["token.text"] == 0  # captioning: no text before the decoder
            )
            assert removed["head.vision"] == pytest.approx(0.4 * removed["token.vision"], abs=5e-3)


def test_captions_of_nocaps_are_an_override_away() -> None:
    recipe = load_recipe(
        ROOT / "recipes/blip/captioning_288_2.0x.yaml",
        ["task.data={name: nocaps, data_dir: data/nocaps}", "task.extra_metrics=[spice]"],
    )
    assert recipe.task.options_dict()["data"] == {"name": "nocaps", "data_dir": "data/nocaps"}


@pytest.mark.parametrize("backbone", ["meter", "blip"])
def test_training_for_the_test_server_is_an_override_away(backbone: str) -> None:
    split = "train2014+val2014"
    recipe = load_recipe(ROOT / f"recipes/{backbone}/vqa_288_2.0x.yaml", [f"task.splits.train={split}"])
    assert recipe.task.options_dict()["splits"]["train"] == split
