"""Fixtures of the tests that train or use a tiny run, and of those that draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from smarttrim_cli.engine.figures.canvas import Canvas
from tests.engine.tiny_run import settings, trained

__all__ = ["made", "settings", "trained"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Canvas]:
    """The canvases that were saved."""
    canvases: list[Canvas] = []
    save = Canvas.save

    def spy(self: Canvas, path: Path, height: float) -> Path:
        canvases.append(self)
        return save(self, path, height)

    monkeypatch.setattr(Canvas, "save", spy)
    return canvases
