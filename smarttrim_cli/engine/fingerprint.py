"""Whether training data, and what a model reads and says of them, are as they were, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.tasks.base import Task


def fingerprint(samples: Iterable[Any]) -> str:
    """Number of samples, and a hash of what they say in their order: ``6000 1f2e...``.

    Of paths only names count, since data may be moved, and an id that is the place of an image (of one's own
    VQA data) does not; what is in an image may change unseen.
    """
    found, count = hashlib.blake2b(digest_size=8), 0
    for sample in samples:
        count += 1
        found.update(repr(_said(sample)).encode("utf-8", errors="surrogatepass"))
    return f"{count} {found.hexdigest()}"


def _said(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if is_dataclass(value):
        images = getattr(value, "images", ())
        places = set(map(str, images)) if isinstance(images, list | tuple) else set()
        values = [getattr(value, field.name) for field in fields(value)]
        return [None if isinstance(one, str) and one in places else _said(one) for one in values]
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_said(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else None


def meaning(bundle: Bundle) -> dict[str, str]:
    """A hash each of the ``labels`` that classes stand for, of the ``tokens``, and of what ``images`` become.

    They may come from files (``task.answers``, ``backbone.tokenizer``, ``backbone.checkpoint``).
    """
    processor = bundle.processor
    found = {
        "labels": sorted((name, content.hex()) for name, content in labels_of(bundle.task).items()),
        "tokens": sorted(processor.tokenizer.get_vocab().items()),
        "images": repr(processor.preprocess),
    }
    return {name: _hash(json.dumps(content)) for name, content in found.items()}


def labels_of(task: Task) -> dict[str, bytes]:
    """What a task writes down of its labels, by the names of the files."""
    with tempfile.TemporaryDirectory() as folder:
        task.save_labels(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
