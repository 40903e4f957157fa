"""Budgets held by a solved threshold, scores that go on learning saliency, and what both need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.steering import steer
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe.schema import BudgetController
from tests.engine.test_warmup import interrupted
from tests.engine.tiny_run import metrics, tiny_recipe, tree

GUIDED = (
    "strategy.guidance_warmup={enabled: true, steps: 2, hold_weight: 2.0, align: probability}",
    "strategy.budget_controller={enabled: true, method: solved, gain: 1.0}",
    "strategy.curriculum.end_ratio=0.5",
    "strategy.cost_loss.weight=0",
    "pruning.straight_through=false",
    "pruning.head_trimmer=null",
    "pruning.gumbel_noise=false",
    "pruning.target_speedup=1.4",
    "train.max_steps=12",
    "train.save_steps=4",
)


@pytest.fixture(scope="module")
def guided(settings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which scores learn by saliency alone; not to be changed."""
    folder = tmp_path_factory.mktemp("guided")
    finetune(tiny_recipe(folder, *GUIDED))
    return folder / "run"


def test_the_budget_is_held_and_guidance_goes_on(guided: Path) -> None:
    rows = [row for row in metrics(guided) if row.get("phase") != "warmup" and "loss" in row]
    assert all(row["guidance"] > 0 for row in rows)
    for row in rows:
        expected = row["task"] + row["distillation"] + 2 * row["guidance"]
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert rows[-1]["macs_ratio"] == pytest.approx(1 / 1.4, abs=0.06)  # four instances a step


def test_it_resumes_bit_identically(guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, *GUIDED)
    interrupted(monkeypatch, recipe, after=10)
    torch.manual_seed(999)
    finetune(recipe, resume="auto")
    assert metrics(tmp_path / "run") == metrics(guided)
    one, two = tree(tmp_path / "run/model"), tree(guided / "model")
    assert one == two


WITH_HEADS = (
    *GUIDED,
    "pruning.straight_through=heads",
    "pruning.head_trimmer={name: global_head, hidden_dim: 8}",
    "pruning.target_sparsity={token: {vision: 0.5}, head: {vision: 0.5, text: 0.5, cross: 0.5}}",
    "strategy.budget_controller.hold_heads=true",
    "strategy.curriculum.enabled=false",
    "pruning.calibrate.remove_unprofitable=true",
)


def test_heads_keep_to_a_target_of_their_own(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, *WITH_HEADS))
    rows = [row for row in metrics(tmp_path / "run") if row.get("phase") != "warmup" and "loss" in row]
    groups = [name.removeprefix("level/") for name in rows[-1] if name.startswith("level/")]
    assert sorted(groups) == ["cross_head.text", "cross_head.vision", "head.text", "head.vision"]
    for group in groups:
        late = [row[f"kept/{group}"] for row in rows[-6:]]
        assert sum(late) / 6 == pytest.approx(rows[-1][f"target/{group}"], abs=0.15)
        assert abs(rows[-1][f"level/{group}"] - rows[-2]["threshold"]) < 0.5  # scores were shifted there


RANKED = (*WITH_HEADS, "pruning.head_trimmer={name: saliency_head}", "pruning.straight_through=false")


def test_ranked_heads_resume_bit_identically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worth = "strategy.guidance_warmup.align=worth"
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    finetune(tiny_recipe(tmp_path / "whole", *RANKED, worth))
    recipe = tiny_recipe(tmp_path / "parts", *RANKED, worth)
    interrupted(monkeypatch, recipe, after=10)
    torch.manual_seed(999)
    finetune(recipe, resume="auto")
    assert metrics(tmp_path / "parts/run") == metrics(tmp_path / "whole/run")
    assert tree(tmp_path / "parts/run/model") == tree(tmp_path / "whole/run/model")


def test_heads_that_know_their_level_stay_there(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, *RANKED))
    rows = [row for row in metrics(tmp_path / "run") if row.get("phase") != "warmup" and "loss" in row]
    heads = {name: row for row in rows for name in row if name.startswith(("kept/head", "kept/cross_head"))}
    assert len(heads) == 4
    kept = [sum(row[name] for name in heads) / 4 for row in rows]  # groups differ, the model's share does not
    assert max(kept) - min(kept) < 0.02 and rows[-1]["threshold"] != rows[0]["threshold"]
    assert all(row["macs_ratio"] == pytest.approx(1 / 1.4, abs=0.1) for row in rows[-3:])


def test_both_methods_move_the_threshold() -> None:
    threshold = torch.tensor(1.0)
    steer(threshold, BudgetController(gain=0.5), solved=9.0, ratio=0.7, target=0.5)
    assert float(threshold) == pytest.approx(1.1)
    steer(threshold, BudgetController(method="solved", gain=0.5), solved=2.1, ratio=9.0, target=0.5)
    assert float(threshold) == pytest.approx(1.6)
    steer(threshold, BudgetController(method="solved", gain=3.0), solved=-1.0, ratio=9.0, target=0.5)
    assert float(threshold) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("override", "where", "message"),
    [
        ("strategy.guidance_warmup.enabled=false", "pruning.straight_through", "warm start"),
        ("strategy.budget_controller.enabled=false", "pruning.straight_through", "hold the budget"),
        ("pruning.head_trimmer={name: global_head, hidden_dim: 8}", "pruning.straight_through", "head"),
        (
            "strategy.budget_controller={enabled: true, method: integral, hold_heads: true}",
            "strategy.budget_controller.hold_heads",
            "solved threshold",
        ),
    ],
)
def test_without_straight_through_something_else_has_to_teach(
    override: str, where: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        finetune(tiny_recipe(tmp_path, *GUIDED, override))
    assert caught.value.where == where and message in caught.value.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["trips", "tome", "pumer"])
def test_what_ranks_tokens_has_no_threshold_to_solve_for(name: str, tmp_path: Path) -> None:
    solved = "strategy.budget_controller={enabled: true, method: solved}"
    with pytest.raises(UserError) as caught:
        finetune(tiny_recipe(tmp_path, solved, f"pruning.token_trimmer={{name: {name}}}"))
    assert caught.value.where == "strategy.budget_controller.method" and caught.value.hint == "integral"
