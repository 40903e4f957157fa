from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.tiny_run import tiny_settings, trained_run


@pytest.fixture(scope="module", autouse=True)
def _settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with tiny_settings(tmp_path_factory):
        yield


@pytest.fixture
def trained(_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's trained run; not to be changed."""
    return trained_run(tmp_path_factory)
