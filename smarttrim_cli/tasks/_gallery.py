"""Retrieval as data: pairs to learn from, and the matrix of all images and texts of a split, in blocks.

A block is an image with some of the texts; an item of evaluation is a block, so that no more than a block of
the matrix is computed at once.

Legend: I images, T texts, K texts of a block or of a training instance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.utils.data import Dataset

from smarttrim_cli.data.images import BadSample
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import CaptionedImage, ImageSource, SampleId
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks._data import Item, pixels_of, spread, stable_hash


@dataclass(frozen=True)
class Pair:
    """An image with one of its texts; ``place`` is the text's in the gallery."""

    id: str
    images: tuple[ImageSource, ...]
    text: str
    place: int


@dataclass(frozen=True)
class Block:
    """An image to be scored with some texts; both by their places in the gallery named ``gallery``."""

    id: str
    images: tuple[ImageSource, ...]
    gallery: str
    image: int
    texts: Sequence[int]
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images (I) with their texts (T), which lie in the order of the images."""

    name: str
    images: Sequence[CaptionedImage]

    @cached_property
    def texts(self) -> list[str]:
        """All texts, (T,)."""
        return [caption for image in self.images for caption in image.captions]

    @cached_property
    def image_of_text(self) -> list[int]:
        """Place of each text's image, (T,)."""
        return [place for place, image in enumerate(self.images) for _ in image.captions]

    @cached_property
    def ids(self) -> list[SampleId]:
        """Of the images, (I,)."""
        return [image.id for image in self.images]

    def pairs(self) -> list[Pair]:
        """Every text with its image, (T,)."""
        return [
            Pair(f"{self.ids[image]}#{place}", self.images[image].images, self.texts[place], place)
            for place, image in enumerate(self.image_of_text)
        ]

    def false_texts(self, pairs: Sequence[Pair], number: int, seed: int) -> list[list[int]]:
        """So many different texts of other images for every pair, at random.

        They are a function of the seed and of the batch as a whole: batches differ from epoch to epoch, so
        the texts do, and neither workers nor a resumed run make a difference.
        """
        drawn = random.Random(stable_hash(seed, *(pair.place for pair in pairs)))
        return [self._others(pair.place, number, drawn) for pair in pairs]

    def _others(self, place: int, number: int, drawn: random.Random) -> list[int]:
        found: dict[int, None] = {}
        while len(found) < number:
            other = drawn.randrange(len(self.texts))
            if self.image_of_text[other] != self.image_of_text[place]:
                found[other] = None
        return list(found)


def gallery(split: str, images: Sequence[CaptionedImage], blocks: int | None, block_size: int) -> Gallery:
    """The gallery of a split, or of as many of its images, spread evenly, as give at most so many blocks.

    The matrix of those is complete; it is smaller than that of the split, and finding is easier there.

    Raises:
        UserError: An image has no text.
    """
    lacking = next((image for image in images if not image.captions), None)
    if lacking is not None:
        raise UserError(f"image {lacking.id} has no text", where=f"split {split}")
    whole = Gallery(split, images)
    if blocks is None or len(images) * math.ceil(len(whole.texts) / block_size) <= blocks:
        return whole
    texts_per_image = max(len(image.captions) for image in images)
    number = 1
    while (number + 1) * math.ceil((number + 1) * texts_per_image / block_size) <= blocks:
        number += 1
    return Gallery(f"{split}, {number} images", spread(images, number))


class BlockDataset(Dataset[Item | None]):
    """The whole matrix of a gallery, image by image; an item is None where a broken image is skipped."""

    def __init__(self, gallery: Gallery, processor: Processor, block_size: int, skip_bad: bool) -> None:
        self.gallery, self.processor, self.skip_bad = gallery, processor, skip_bad
        count = len(gallery.texts)
        self.blocks = math.ceil(count / block_size)
        self.size = math.ceil(count / self.blocks)
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.gallery.images) * self.blocks

    @property
    def samples(self) -> list[Block]:
        """All blocks."""
        return [self.block(index) for index in range(len(self))]

    def block(self, index: int) -> Block:
        """The block of an item. All have the same size: the last one may overlap with the one before."""
        image, number = divmod(index, self.blocks)
        first = min(number * self.size, len(self.gallery.texts) - self.size)
        sample = self.gallery.images[image]
        texts = range(first, first + self.size)
        return Block(f"{sample.id}/{first}", sample.images, self.gallery.name, image, texts)

    def __getitem__(self, index: int) -> Item | None:
        """Decode the image of a block, unless it is that of the item before."""
        block = self.block(index)
        if self._last is None or self._last[0] != block.image:
            try:
                self._last = (block.image, pixels_of(self.gallery.images[block.image], self.processor))
            except BadSample:
                if self.skip_bad:
                    return None
                raise
        return block, self._last[1]
