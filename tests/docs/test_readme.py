"""README's numbers are those of the committed results, and its commands exist."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_results_table_is_that_of_the_committed_json() -> None:
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "docs/update_readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "docs/results/quickstart.json").read_text(encoding="utf-8"))
    assert module.updated(readme, result) == readme


def test_the_committed_result_meets_what_the_quick_start_promises() -> None:
    result = json.loads((ROOT / "docs/results/quickstart.json").read_text(encoding="utf-8"))
    full, trimmed = result["full"], result["trimmed"]
    assert full["accuracy"] >= 0.97
    assert trimmed["accuracy"] >= 0.95 * full["accuracy"]
    assert result["speedup"]["macs"] >= 2.0 and result["speedup"]["macs_torchprofile"] >= 2.0
    assert trimmed["accuracy"] >= result["baselines"]["random"]["accuracy"] + 0.10
    assert abs(result["baselines"]["random"]["gmacs"] / trimmed["gmacs"] - 1) < 0.02


def test_every_make_target_and_recipe_that_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", readme, flags=re.M))
    assert targets == {"quickstart", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)
    recipes = set(re.findall(r"recipes/[\w./-]+\.yaml", readme))
    assert recipes and all((ROOT / recipe).is_file() for recipe in recipes)
