"""The layouts in which scenes are written: whose task, which reader, and the options that each depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from smarttrim_cli.data import karpathy, nlvr2, snli_ve, vqa_v2
from smarttrim_cli.data.scenes import write_captions, write_nlvr2, write_snli_ve, write_vqa
from smarttrim_cli.data.scenes.options import CROWDED, Options
from smarttrim_cli.errors import UserError

OWN_OPTIONS: dict[str, set[str]] = {
    "vqa": {"questions_per_image", "question_weights", "neighbour_share", "max_count", "name_grounds"},
    "nlvr2": {"nlvr2"},
    "snli_ve": {"snli_ve"},
    "captions": {"captions"},
}
"""Options that only one layout depends on; all others are for all of them."""
_OFF = {"name_grounds": False, "crowded": None}
"""Options that came later. Turned off they are not told apart from older data, which stay good."""


@dataclass(frozen=True)
class Layout:
    """A way of writing scenes to a folder.

    Attributes:
        name: One of ``OWN_OPTIONS``.
        version: Raise it whenever the same options give other data: data of other versions are not used.
        says: What it says about images.
        write: Writes all splits to a new folder and returns numbers (images, ...) by split.
        folders: Folders of images (with all below them) in that of the data; empty: one per split.
        reader: The plug-in that reads the official files of this layout.
        reader_options: Its options beside the folder.
        images_at_once: How many images are made together; the number of a split is rounded up to these.
    """

    name: str
    version: int
    says: str
    write: Callable[[Path, Options], dict[str, dict[str, int]]]
    folders: tuple[str, ...]
    reader: ModuleType
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    images_at_once: int = 1

    def options(self, options: Options) -> dict[str, Any]:
        """Those options that this layout depends on, as plain data."""
        others = {key for name, keys in OWN_OPTIONS.items() if name != self.name for key in keys}
        plain = options.model_dump(mode="json", exclude=others)
        if options.crowded is None:
            del plain["num_images"][CROWDED]
        return {key: value for key, value in plain.items() if key not in _OFF or value != _OFF[key]}

    def image_folders(self, options: Options) -> tuple[str, ...]:
        """Folders of images (with all below them) in that of the data."""
        return self.folders or options.splits

    def total_images(self, options: Options) -> int:
        """How many images all splits have together."""
        numbers = [getattr(options.num_images, split) for split in options.splits]
        return sum(-(-number // self.images_at_once) * self.images_at_once for number in numbers)


CAPTIONS = Layout("captions", 1, "captions", write_captions.write, (), karpathy, {"dataset": "coco"})
LAYOUTS: dict[str, Layout] = {
    "vqa": Layout("vqa", 2, "questions", write_vqa.write, (), vqa_v2),
    "nlvr2": Layout(
        "nlvr2", 1, "statements", write_nlvr2.write, ("images",), nlvr2, {}, write_nlvr2.IMAGES_PER_SET
    ),
    "snli_ve": Layout("snli_ve", 1, "hypotheses", write_snli_ve.write, (write_snli_ve.IMAGES,), snli_ve),
    "retrieval": CAPTIONS,
    "captioning": CAPTIONS,
}
"""Layout by task."""


def layout_of(task: str) -> Layout:
    """The layout for a task.

    Raises:
        UserError: There are no scenes for it.
    """
    if task not in LAYOUTS:
        raise UserError(f"no scenes for task {task}", hint=f"There are scenes for {', '.join(LAYOUTS)}.")
    return LAYOUTS[task]
