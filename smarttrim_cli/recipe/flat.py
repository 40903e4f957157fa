"""A recipe as dotted keys, for comparing two of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BESIDE_TRAINING = (
    "schema_version",
    "description",
    "preset",  # what it stands for is in the other keys
    "train.eval_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.dataloader_num_workers",
    "train.num_threads",
    "evaluate",
    "logging",
)
"""Keys and sections that training itself does not depend on."""


def flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; a section that is empty or null is a value."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_in(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of these keys, or in one of these sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
