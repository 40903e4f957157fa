"""Embedded data: synthetic scenes for every task, written in the layouts of the official data sets.

Coloured shapes on textured backgrounds with exact ground truth: questions (VQA v2), statements about two
images (NLVR2), hypotheses (SNLI-VE) and captions (Karpathy's splits of COCO). The same options always give
the same data, and the readers of the official data sets read them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from smarttrim_cli.data.samples import Sample
from smarttrim_cli.data.scenes.cache import build, open_or_build
from smarttrim_cli.data.scenes.layouts import LAYOUTS, layout_of
from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.truth import SceneTruth, read_truth

__all__ = ["TASKS", "Options", "SceneTruth", "build", "locate", "open_or_build", "read", "read_truth"]
__all__ += ["splits"]

TASKS = tuple(LAYOUTS)


def locate(options: Options, log: Callable[[str], None] = print, task: str = "vqa") -> Path:
    """The folder with the scenes of these options for a task: the cached one, built now if need be."""
    return open_or_build(options, log=log, task=task)


def read(
    options: Options, task: str, split: str, *, labelled: bool, log: Callable[[str], None] = print
) -> list[Sample]:
    """Samples of a split, read by the plug-in for the official files; the scenes are built if need be.

    Args:
        options: What the scenes are like.
        task: One of ``TASKS``.
        split: ``train``, ``calibration``, ``val`` or ``test``, or ``crowded`` where the options have it;
            or several, joined by ``+``.
        labelled: All are.
        log: Takes lines for the user.

    Raises:
        UserError: Unknown task or split, options that allow no such scenes, or an unwritable cache.
    """
    layout = layout_of(task)
    folder = locate(options, log, task)
    files = layout.reader.Options(data_dir=str(folder), **layout.reader_options)
    samples: list[Sample] = layout.reader.read(files, task, split, labelled=labelled, log=log)
    return samples


def splits(options: Options, task: str) -> list[str]:
    """Names of the splits: the same for every task."""
    return list(options.splits)
