"""Fixtures of the tests that train or use a tiny run."""

from __future__ import annotations

from tests.engine.tiny_run import settings, trained

__all__ = ["settings", "trained"]
