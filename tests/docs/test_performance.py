"""The tables of docs/performance.md are those of the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_tables_are_those_of_the_committed_json() -> None:
    spec = importlib.util.spec_from_file_location("update_performance", ROOT / "docs/update_performance.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert module.updated(page) == page
