"""The tables of docs/performance.md are those of the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def update_performance() -> Any:
    spec = importlib.util.spec_from_file_location("update_performance", ROOT / "docs/update_performance.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_committed_json() -> None:
    module = update_performance()
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert module.updated(page) == page


@pytest.mark.parametrize(
    ("value", "bar", "shown"),
    [(0.948, 0.95, "0.948"), (0.9496, 0.95, "0.9496"), (0.95, 0.95, "0.95"), (0.94, 0.95, "0.94")],
)
def test_a_value_is_told_from_its_target(value: float, bar: float, shown: str) -> None:
    assert update_performance().beside(value, bar, 2) == shown
