"""A preset is a whole method; a recipe's own keys and overrides have their say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.recipe import Recipe, RecipeError, load_recipe, resolved_yaml
from smarttrim_cli.recipe.presets import values
from smarttrim_cli.recipe.schema import PRESETS

_REST = """
output_dir: out
backbone: {name: meter, checkpoint: "builtin:scenes_meter"}
task: {name: vqa, data: {name: scenes}}
train: {max_steps: 10}
"""


def recipe(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(text + _REST, encoding="utf-8")
    return load_recipe(file, overrides)


def settings(found: Recipe, name: str) -> dict[str, Any]:
    """What a recipe has at the keys of a preset."""

    def pick(wanted: Any, there: Any) -> Any:
        if isinstance(wanted, dict) and "name" not in wanted:
            return {key: pick(value, there[key]) for key, value in wanted.items()}
        return there

    return pick(values(name), found.model_dump())


@pytest.mark.parametrize("name", PRESETS)
def test_a_short_recipe_is_the_whole_method(name: str, tmp_path: Path) -> None:
    found = recipe(tmp_path, f"preset: {name}\npruning: {{target_speedup: 2.0}}")
    assert settings(found, name) == values(name)
    assert found.pruning is not None and found.pruning.target_sparsity is None


def test_paper_is_the_default(tmp_path: Path) -> None:
    plain = recipe(tmp_path, "pruning: {target_speedup: 2.0}")
    named = recipe(tmp_path, "preset: paper\npruning: {target_speedup: 2.0}")
    assert plain == named
    assert settings(plain, "guided") != values("guided")


def test_a_file_s_own_keys_win(tmp_path: Path) -> None:
    text = """
preset: guided
pruning:
  target_speedup: 2.0
  token_trimmer: {name: local}
  head_trimmer: null
  calibrate: null
strategy: {guidance_warmup: {steps: 7}}
"""
    found = recipe(tmp_path, text, "strategy.curriculum.end_ratio=0.9")
    assert found.pruning is not None and found.pruning.token_trimmer is not None
    assert found.pruning.token_trimmer.name == "local"
    assert found.pruning.head_trimmer is None and found.pruning.calibrate is None
    assert found.strategy.guidance_warmup.steps == 7 and found.strategy.guidance_warmup.align == "worth"
    assert found.strategy.curriculum.end_ratio == 0.9


def test_options_of_the_same_trimmer_stay(tmp_path: Path) -> None:
    given = (
        "preset: guided\npruning: {target_speedup: 2.0, token_trimmer: {name: cross_modal, hidden_dim: 8}}"
    )
    trimmer = recipe(tmp_path, given).pruning.token_trimmer  # type: ignore[union-attr]
    assert trimmer is not None and trimmer.options_dict() == {"hidden_dim": 8}
    nameless = recipe(
        tmp_path, "preset: guided\npruning: {target_speedup: 2.0}", "pruning.token_trimmer.hidden_dim=8"
    )
    assert nameless.pruning is not None and nameless.pruning.token_trimmer == trimmer


def test_as_an_override_it_replaces_the_method(tmp_path: Path) -> None:
    text = """
pruning: {target_sparsity: {token: {vision: 0.4}}, head_trimmer: {name: global_head, hidden_dim: 4}}
strategy: {cost_loss: {weight: 30.0}, self_distillation: {weight: 0.5}}
"""
    found = recipe(tmp_path, text, "preset=guided", "strategy.budget_controller.gain=0.5")
    wanted = {**values("guided")["strategy"]["budget_controller"], "gain": 0.5}
    assert found.strategy.budget_controller.model_dump() == wanted
    assert found.strategy.cost_loss.weight == 0.0
    assert found.strategy.self_distillation.weight == 0.5, "no key of the preset"
    assert found.pruning is not None and found.pruning.head_trimmer is not None
    assert found.pruning.head_trimmer.name == "saliency_head"
    assert found.pruning.target_sparsity is not None and found.pruning.target_sparsity.token.vision == 0.4
    back = recipe(tmp_path, text, "preset=guided", "strategy.cost_loss.on=macs", "preset=paper")
    assert back.strategy.cost_loss.weight == 20.0 and not back.strategy.guidance_warmup.enabled
    assert back.pruning is not None and back.pruning.head_trimmer is not None
    assert back.pruning.head_trimmer.model_dump() == {"name": "global_head", "hidden_dim": 4}
    assert back.strategy.cost_loss.on == "macs", "no key of the preset"


def test_what_a_run_keeps_says_everything(tmp_path: Path) -> None:
    found = recipe(tmp_path, "preset: guided\npruning: {target_speedup: 2.0}", "strategy.cost_loss.weight=1")
    kept = tmp_path / "kept.yaml"
    kept.write_text(resolved_yaml(found), encoding="utf-8")
    assert resolved_yaml(load_recipe(kept)) == resolved_yaml(found)
    assert "saliency_head" in kept.read_text(encoding="utf-8")


def test_plain_fine_tuning_has_nothing_to_preset(tmp_path: Path) -> None:
    found = recipe(tmp_path, "preset: guided\npruning: null")
    assert found.pruning is None and not found.strategy.guidance_warmup.enabled


def test_a_target_is_still_needed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="give target_sparsity or target_speedup"):
        recipe(tmp_path, "preset: guided\npruning: {temperature: 1.0}")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("preset: guide", (), "did you mean guided"),
        ("seed: 1", ("preset=guide",), 'override "preset=guide": preset: expected'),
        ("preset: [guided]", (), "preset: expected"),
    ],
)
def test_a_wrong_name_is_told(text: str, overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, f"{text}\npruning: {{target_speedup: 2.0}}", *overrides)


def test_a_section_that_is_none_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="strategy: expected a section") as caught:
        recipe(tmp_path, "preset: guided\npruning: {target_speedup: 2.0}\nstrategy: 3")
    assert len(caught.value.problems) == 1
