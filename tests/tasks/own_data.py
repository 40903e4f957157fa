"""A folder of tiny pictures with JSON lines about them, and a processor that knows their words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, train_word_tokenizer

COLORS = ("red", "green", "blue", "white", "black", "gray")
GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


def write_pictures(folder: Path, names: Iterable[str] = COLORS) -> None:
    """One picture per name, ``<name>.png``, in its color."""
    for name in names:
        Image.new("RGB", (8, 8), name).save(folder / f"{name}.png")


def write_lines(folder: Path, split: str, lines: Iterable[dict[str, Any]]) -> None:
    """``<split>.jsonl``."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def section(folder: Path) -> dict[str, Any]:
    """The ``data`` key of a task."""
    return {"name": "jsonl", "data_dir": str(folder)}


def processor(*texts: str) -> Processor:
    """A word-level tokenizer of these texts, and pictures of 4 x 4."""
    return Processor(train_word_tokenizer(texts), Preprocess(size=4), 20)


def golden(name: str) -> Any:
    """Reference data computed with the official code."""
    return np.load(GOLDEN / name)
