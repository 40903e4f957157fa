"""Embedded data: synthetic scenes with questions, written in the official VQA v2 layout.

Coloured shapes on textured backgrounds with questions of five types (attribute, existence, count, relation,
comparison), and for every question the boxes of the objects it is about. The same options always give the
same data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from smarttrim_cli.data.scenes.cache import build, open_or_build
from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.truth import SceneTruth, read_truth

__all__ = ["Options", "SceneTruth", "build", "locate", "open_or_build", "read_truth"]


def locate(options: Options, log: Callable[[str], None] = print) -> Path:
    """The folder with the scenes of these options: the cached one, built now if need be."""
    return open_or_build(options, log=log)
